"""Training rows from the Hub, CSV, TSV, JSONL, Parquet or a folder of them, with labels made into targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from nopad.model.config import ProblemType
from nopad.model.errors import NopadError

_BUILDERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_TEXT_COLUMNS = ("text", "sentence", "content", "review")
_LABEL_COLUMNS = ("label", "labels", "score")


class DataError(NopadError):
    """A data set that cannot be trained on: file, column or value at fault is named."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Rows ready for tokenization: columns `text` and `target`."""

    train: Any  # datasets.Dataset
    evaluation: Any
    labels: tuple[str, ...]
    problem_type: ProblemType


def load_data(
    source: str,
    evaluation: str | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    eval_fraction: float = 0.1,
    seed: int = 42,
) -> TrainingData:
    """Read `source` (and `evaluation`, or a split of it, or a held-out fraction) and encode the labels.

    The problem type follows from the label column: integers or strings are classes, floats a regression target,
    lists several labels at once. Raises `DataError`.
    """
    splits = _read(source)
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    splits = {name: part for name, part in splits.items() if part is not train}
    if evaluation is not None:
        parts = _read(evaluation)
        held_out = _held_out(parts) or next(iter(parts.values()))
    elif _held_out(splits) is not None:
        held_out = _held_out(splits)
    else:
        parts = train.train_test_split(test_size=eval_fraction, seed=seed)
        train, held_out = parts["train"], parts["test"]
    text = _column(train, text_column, _TEXT_COLUMNS, "--text-column")
    label = _column(train, label_column, _LABEL_COLUMNS, "--label-column")
    for column in (text, label):
        if column not in held_out.column_names:
            raise DataError(f"evaluation data has no column {column!r}; it has {', '.join(held_out.column_names)}")
    names, problem_type, encode = _label_encoder(train, label, labels)

    def row(example: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(example[text], str) or not example[text].strip():
            return {"text": "", "target": None}
        return {"text": example[text], "target": encode(example[label])}

    made = []
    for part, name in ((train, "training"), (held_out, "evaluation")):
        rows = part.map(row, remove_columns=part.column_names, desc=f"Reading {name} rows")
        kept = rows.filter(lambda example: example["text"] != "", desc="Dropping empty texts")
        if not len(kept):
            raise DataError(f"the {name} data has no row with text in column {text!r}")
        made.append(kept)
    return TrainingData(train=made[0], evaluation=made[1], labels=names, problem_type=problem_type)


def _read(source: str) -> Any:
    path = Path(source)
    if path.is_file() or path.is_dir():
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _BUILDERS)
        kinds = {file.suffix for file in files}
        if len(kinds) != 1 or not kinds <= set(_BUILDERS):
            raise DataError(f"{path}: expected one kind of {', '.join(_BUILDERS)}, found {len(files)} file(s) to read")
        by_split: dict[str, list[str]] = {}
        for file in files:
            split = next((s for s in ("train", "validation", "test") if file.stem.startswith(s)), "train")
            by_split.setdefault("train" if path.is_file() else split, []).append(str(file))
        options = {"sep": "\t"} if files[0].suffix == ".tsv" else {}
        arguments: tuple[str, dict[str, Any]] = (_BUILDERS[kinds.pop()], {"data_files": by_split, **options})
    elif path.suffix in _BUILDERS or source.startswith((".", "/", "~")):
        raise DataError(f"no file or folder at {source}")
    else:
        arguments = (source, {})
    try:
        return datasets.load_dataset(arguments[0], **arguments[1])
    except Exception as error:  # the library raises many types; all mean that the data cannot be read
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise DataError(f"cannot read {source}: {type(error).__name__}: {reason}") from error


def _held_out(splits: Any) -> Any:
    return splits.get("validation", splits.get("test"))


def _column(rows: Any, given: str | None, known: Sequence[str], option: str) -> str:
    names = list(rows.column_names)
    for name in [given] if given else known:
        if name in names:
            return str(name)
    wanted = repr(given) if given else " or ".join(known)
    raise DataError(f"the training data has no column {wanted}; it has {', '.join(names)}: name one with {option}")


def _label_encoder(
    rows: Any, column: str, given: Sequence[str] | None
) -> tuple[tuple[str, ...], ProblemType, Callable[[Any], Any]]:
    feature = rows.features[column]
    values = [value for value in rows[column] if value is not None]
    if not values:
        raise DataError(f"column {column!r} has no value")
    names = tuple(given) if given else tuple(getattr(feature, "names", None) or ())
    if all(isinstance(value, float) for value in values):

        def number(value: Any) -> float:
            if not isinstance(value, float):
                raise DataError(f"column {column!r}: label {value!r} is not a number")
            return value

        return names or (column,), "regression", number
    several = all(isinstance(value, list) for value in values)
    flat = {item for value in values for item in value} if several else set(values)
    if several and values and all(len(v) == len(values[0]) and set(v) <= {0, 1} for v in values) and flat <= {0, 1}:
        names = names or tuple(f"LABEL_{i}" for i in range(len(values[0])))
        width = len(values[0])

        def ones(hot: Any) -> list[float]:
            if not isinstance(hot, list) or len(hot) != width or not set(hot) <= {0, 1}:
                raise DataError(f"column {column!r}: label {hot!r} is not a list of {width} zeros and ones")
            return [float(x) for x in hot]

        return names, "multi_label_classification", ones
    if all(isinstance(value, int) for value in flat):  # bool is an int too: False 0, True 1
        names = names or tuple(f"LABEL_{i}" for i in range(max(flat) + 1))
        if min(flat) < 0 or max(flat) >= len(names):
            wrong = min(flat) if min(flat) < 0 else max(flat)
            raise DataError(f"column {column!r} has label {wrong}, but only {len(names)} names: {', '.join(names)}")
        index = {value: int(value) for value in flat}
    else:
        names = names or tuple(sorted(str(value) for value in flat))
        index = {value: names.index(str(value)) for value in flat if str(value) in names}
        if len(index) != len(flat):
            unknown = sorted(str(value) for value in flat if str(value) not in names)
            raise DataError(f"column {column!r} has labels that --labels does not name: {', '.join(unknown)}")

    def encode(value: Any) -> Any:
        try:
            if not several:
                return index[value]
            hot = [0.0] * len(names)
            for item in value:
                hot[index[item]] = 1.0
            return hot
        except (KeyError, TypeError):
            raise DataError(f"column {column!r}: label {value!r} is not among {', '.join(names)}") from None

    return names, "multi_label_classification" if several else "single_label_classification", encode
