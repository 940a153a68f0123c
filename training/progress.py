"""Progress of training: a bar on a terminal, a line every so many seconds in a log, a line for each evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from nopad.training.meter import Meter


class ProgressReport(TrainerCallback):
    """Shows steps, loss, rates and the time left; silent where the console is quiet.

    `every`: seconds from line to line where the console is no terminal. The first is of the first step.
    """

    def __init__(self, console: Console, meter: Meter, metric_names: Sequence[str], *, every: float) -> None:
        self._console = console
        self._meter = meter
        self._names = ("loss", *metric_names)
        self._every = every
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(
            *columns,
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self._training = self._bars.add_task("training", figures="")
        self._evaluation: TaskID | None = None
        self._evaluated = 0  # batches of the evaluation that runs
        self._evaluation_began = 0.0
        self.evaluation_seconds = 0.0  # of all evaluations, whose time is not training's
        self._started = self._told = self._read = 0.0
        self._first_step = 0
        self._before = (0, 0, 0, 0.0)  # of the meter, when it was last read

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock and the bar."""
        self._started = time.monotonic()
        self._told = self._read = self._started
        self._first_step = state.global_step
        self._bars.update(self._training, total=state.max_steps, completed=state.global_step)
        self._bars.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar, or say where the run is."""
        if not self._due(first=state.global_step == self._first_step + 1):
            self._bars.update(self._training, completed=state.global_step)
            return
        figures = self._figures()
        self._bars.update(self._training, completed=state.global_step, figures=figures)
        done = state.global_step - self._first_step
        left = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step)
        place = f"step {state.global_step:,}/{state.max_steps:,} (epoch {state.epoch:.2f})"
        self._line(f"{place}: {figures}, {duration(left)} left")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The same for the batches of an evaluation."""
        batches = len(kwargs["eval_dataloader"])
        self._evaluated += 1
        if self._evaluation is None:
            self._evaluation_began = time.monotonic()
            self._evaluation = self._bars.add_task("evaluating", total=batches, figures="")
        self._bars.update(self._evaluation, completed=self._evaluated)
        if self._due():
            self._line(f"evaluating: batch {self._evaluated:,}/{batches:,}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """A line for each evaluation."""
        if self._evaluation is not None:
            self._bars.remove_task(self._evaluation)
            taken = time.monotonic() - self._evaluation_began
            self.evaluation_seconds += taken
            self._read += taken  # the rates are those of training
        self._evaluation, self._evaluated = None, 0
        known = [name for name in self._names if f"eval_{name}" in metrics]
        figures = ", ".join(f"{name} {metrics[f'eval_{name}']:.4f}" for name in known)
        self._console.print(f"epoch {state.epoch:.4g}: {figures}")

    def stop(self) -> None:
        """End the bar, also after an error."""
        self._bars.stop()

    def _due(self, *, first: bool = False) -> bool:
        """Whether it is time for the next figures; on a terminal, every second."""
        return first or time.monotonic() - self._told >= (1.0 if self._console.is_terminal else self._every)

    def _line(self, text: str) -> None:
        self._told = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(text, style="dim")

    def _figures(self) -> str:
        """Loss and rates since the last time, or since the beginning."""
        now = (self._meter.batches, self._meter.texts, self._meter.tokens, self._meter.loss)
        batches, texts, tokens, loss = (new - old for new, old in zip(now, self._before, strict=True))
        seconds = max(time.monotonic() - self._read, 1e-9)
        self._before, self._read = now, time.monotonic()
        return f"loss {loss / batches:.4f}, {texts / seconds:,.1f} texts/s, {tokens / seconds:,.0f} tokens/s"


def duration(seconds: float) -> str:
    """As 45 s, 12 min, or 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
