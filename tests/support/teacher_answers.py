"""A teacher's answers to rows, as training asks for them. Helpers, no tests."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from training_samples import write_jsonl

from nopad.training.data import TrainingData, load_data
from nopad.training.run_folder import KEPT
from nopad.training.tasks.base import TEACHER
from nopad.training.teacher import taught, teacher_digest

LABELS = ["neg|ative", "posi_tive"]


def data_of(rows: list[dict[str, Any]], folder: Path, labels: list[str] | None = None) -> TrainingData:
    return load_data(str(write_jsonl(folder / "rows.jsonl", rows)), labels=labels or LABELS)


def ask(data: TrainingData, teacher: Path, work: Path) -> np.ndarray[Any, Any]:
    digest = f"rows {teacher_digest(str(teacher))}"
    answers = taught(data, str(teacher), kept=work / KEPT, digest=digest, console=Console(quiet=True), log_every=30.0)
    assert [row for row in answers.train.remove_columns(TEACHER)] == list(data.train)
    return np.concatenate([np.asarray(row, dtype=np.float32) for row in answers.train[TEACHER]]).reshape(
        -1, len(data.labels) or len(answers.train[TEACHER][0]) // len(data.train[0].get("texts", [0]))
    )
