"""Progress of a training run as a rich bar, and a line for each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class RichProgress(TrainerCallback):
    """Shows steps and loss; silent where the console is quiet."""

    def __init__(self, console: Console, metric_names: Sequence[str]) -> None:
        self._console = console
        self._names = ("loss", *metric_names)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal or console.quiet)
        self._task = self._progress.add_task("training")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance it."""
        self._progress.update(self._task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """A line for each evaluation."""
        known = [name for name in self._names if f"eval_{name}" in metrics]
        figures = ", ".join(f"{name} {metrics[f'eval_{name}']:.4f}" for name in known)
        self._console.print(f"epoch {state.epoch:.4g}: {figures}")

    def stop(self) -> None:
        """End the bar, also after an error."""
        self._progress.stop()
