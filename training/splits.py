"""What is trained on and what is evaluated: parts of the data that its source names, or a fraction held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nopad.runtime.data.table import DataSource
from nopad.training.errors import DataError
from nopad.training.sources import Rows, find_splits, read_rows


def read_parts(
    source: DataSource | str, evaluation: DataSource | str | None, *, wanted: Sequence[str]
) -> tuple[Rows, Rows | None]:
    """The rows to train on, and those to evaluate on: of `evaluation`, else of a split of `source`, else None.

    `wanted` are the names that the text's column may have. Raises `DataError`.
    """
    parts = find_splits(source)
    rows = read_rows(parts.pop("train" if "train" in parts else next(iter(parts))), wanted=wanted)
    held_out = _part_to_evaluate(parts, evaluation)
    return rows, None if held_out is None else read_rows(held_out, wanted=wanted)


def hold_out(rows: Any, eval_fraction: float, seed: int) -> tuple[Any, Any]:
    """Divide a `datasets.Dataset`: what to train on, and the fraction to evaluate on. Raises `DataError`."""
    split = rows.train_test_split(test_size=rows_to_hold_out(len(rows), eval_fraction), seed=seed)
    return split["train"], split["test"]


def rows_to_hold_out(rows: int, eval_fraction: float) -> int:
    """How many of the rows that fraction is, at least one. Raises `DataError` if nothing would be left to train on."""
    count = math.ceil(eval_fraction * rows) if 0 < eval_fraction < 1 else 0
    if not 0 < count < rows:
        raise DataError(
            f"{rows} text(s) cannot be divided into some to train on and --eval-fraction {eval_fraction} "
            "to evaluate on; give more, another fraction, or --eval"
        )
    return count


def _part_to_evaluate(parts: Mapping[str, Any], evaluation: DataSource | str | None) -> Any:
    if evaluation is not None:
        parts = find_splits(evaluation)
    split = next((parts[name] for name in ("validation", "test") if name in parts), None)
    return next(iter(parts.values())) if split is None and evaluation is not None else split
