"""Progress of a training run as one rich bar, and a line per epoch."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class RichProgress(TrainerCallback):
    """Shows steps and loss; silent where the console is quiet."""

    def __init__(self, console: Console) -> None:
        self._console = console
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
        """One line per evaluation."""
        names = [name for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_mse") if name in metrics]
        figures = ", ".join(f"{name.removeprefix('eval_')} {metrics[name]:.4f}" for name in names)
        self._console.print(f"epoch {state.epoch:.4g}: {figures}")

    def stop(self) -> None:
        """End the bar, also after an error."""
        self._progress.stop()
