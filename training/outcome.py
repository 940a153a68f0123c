"""What a run came to: which evaluation's weights are kept, and everything that its record, card and curves tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from nopad.model.errors import CheckpointError
from nopad.training.data import TrainingData
from nopad.training.lengths import LengthReport
from nopad.training.recipe import Recipe
from nopad.training.saved import Notes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run."""

    name: str  # of the model
    model: str | None  # what was fine-tuned, as the user named it; None: random weights
    sources: Sequence[str]  # the data, as the user named it: to train on, and to evaluate
    data: TrainingData
    recipe: Recipe
    metrics: Mapping[str, float]  # of the evaluation whose weights are kept
    epoch: float
    history: Sequence[Mapping[str, float]]  # `Trainer`'s log
    lengths: LengthReport  # of the texts trained on
    notes: Notes  # as of the end, with the evaluation's details
    provenance: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """Plain values, for `config.json`."""
        return {
            "metrics": dict(self.metrics),
            "epoch": self.epoch,
            "recipe": vars(self.recipe),
            "task": {"head": self.data.task.head, **vars(self.data.task)},
            "seconds": round(self.notes.seconds, 1),
            "lengths": self.lengths.record(),
            "cpu_seconds": round(self.notes.cpu_seconds, 1),
            **self.provenance,
        }


class BestBesideIt(TrainerCallback):
    """A run that goes on finds its best state beside the others: their folder may have moved since they were saved."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Once `Trainer` has read the state; else it would go on without the best one."""
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(_best_in(Path(args.output_dir), state))


def _best_in(work: Path, state: TrainerState) -> Path:
    return work / f"checkpoint-{state.best_global_step}"


def kept_evaluation(
    state: TrainerState, work: Path, metric_names: Sequence[str]
) -> tuple[Path, float, dict[str, float]]:
    """The saved state whose weights `Trainer` has loaded at the end: its folder, its epoch, its metrics.

    Raises `CheckpointError` if it is gone.
    """
    folder = _best_in(work, state)
    if not folder.is_dir():  # Trainer only warns
        raise CheckpointError(f"the best epoch is gone from {work}; train without --resume")
    entry = next(
        entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == state.best_global_step
    )
    metrics = {name: float(entry[f"eval_{name}"]) for name in ("loss", *metric_names) if f"eval_{name}" in entry}
    return folder, float(entry["epoch"]), metrics
