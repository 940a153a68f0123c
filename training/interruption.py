"""Ctrl-C and SIGTERM while a model is trained: the step is finished and saved, for `--resume` to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from nopad.runtime.errors import Terminated

_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class SaveAndStop(TrainerCallback):
    """Once a signal has come, saves at the end of the step, and raises what the signal stands for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._signal: signal.Signals | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals. The second one ends the run at once."""
        asked = signal.Signals(number)
        if self._signal is not None:
            raise _RAISED[asked]
        self._signal = asked
        self._console.print("stopping after this step, whose state is saved; once more to stop at once")

    def raise_noted(self) -> None:
        """Raise `KeyboardInterrupt`, or its kind `Terminated`, if a signal has come."""
        if self._signal is not None:
            raise _RAISED[self._signal]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have this step saved. An epoch's last step is saved anyway, after its evaluation."""
        epoch_ends = args.save_strategy == SaveStrategy.EPOCH and float(state.epoch).is_integer()
        if self._signal is not None and not epoch_ends:
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
