"""Ctrl-C and SIGTERM while a model is trained: the step is finished and saved, for `--resume` to go on.

Several processes get their signals at different moments, or only some of them do: after each step, and before any of
them ends, they tell each other, so that all save and end at the same step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from nopad.runtime.errors import Terminated
from nopad.training.processes import greatest, several_processes

_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_AT_ONCE = 2.0  # seconds: a terminal or a job's manager, and torchrun, may each send one signal to a process


class SaveAndStop(TrainerCallback):
    """Once a signal has come, saves at the end of the step, and raises what the signal stands for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._signal: signal.Signals | None = None
        self._noted = 0.0  # when it came
        self._device = torch.device("cpu")

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals. The second one ends the run at once."""
        asked = signal.Signals(number)
        if self._signal is not None:
            if time.monotonic() - self._noted < _AT_ONCE and several_processes():
                return
            raise _RAISED[asked]
        self._signal, self._noted = asked, time.monotonic()
        self._console.print("stopping after this step, whose state is saved; once more to stop at once")

    def agreed(self) -> signal.Signals | None:
        """The signal that any of the processes has had; all of them must ask."""
        number = greatest(self._signal or 0, self._device)
        return signal.Signals(number) if number else None

    def raise_noted(self) -> None:
        """Raise `KeyboardInterrupt`, or its kind `Terminated`, if a signal has come; all processes must ask."""
        if (asked := self.agreed()) is not None:
            raise _RAISED[asked]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn what is trained on."""
        self._device = args.device

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have this step saved. An epoch's last step, and the last of all, is saved anyway, after its evaluation."""
        last = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        epoch_ends = args.save_strategy == SaveStrategy.EPOCH and last
        if self.agreed() is not None and not epoch_ends:
            control.should_save = control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The state is on the disk."""
        self.raise_noted()


@contextmanager
def saving_on_signals(console: Console) -> Iterator[SaveAndStop]:
    """Handle SIGINT and SIGTERM, by the callback that is yielded, until the end; raise what was asked for then.

    Only the main thread can: elsewhere signals do what they did. One that is ignored (as `nohup` has it) stays so.
    """
    callback = SaveAndStop(console)
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _RAISED}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, callback.note)
    try:
        yield callback
        callback.raise_noted()  # a signal after the last save
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
