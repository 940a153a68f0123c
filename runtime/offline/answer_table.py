"""JSON lines that `nopad predict` has written -> a CSV or Parquet file of the same rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.model.head import BARE
from nopad.runtime.data.opening import suffix_of
from nopad.runtime.data.table import need
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Manifest

TABLES = {".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet"}
# Endings of other kinds of tables: nobody expects JSON lines in those files.
_REFUSED = (".xlsx", ".xls", ".arrow", ".feather", ".pq", ".ods")
# Names of an answer's own fields: a kept column with one of these names is written as `input_NAME`.
ANSWER_FIELDS = (
    "line", "label", "score", "labels", "scores", "abstained", "entities", "masks", "vector", "vectors", "tokens_text",
    "tokens", "tokens_used", "windows", "engine", "error",
)  # fmt: skip
_OF_TASK = {
    "token-classification": ("entities", "labels"),
    "fill-mask": ("masks",),
    "embeddings": ("vector",),
    "token-embeddings": ("tokens_text", "vectors"),
}
_ROWS = 4096  # of a Parquet row group


def kept_name(name: str) -> str:
    """The name of an input column in an answer."""
    return f"input_{name}" if name in ANSWER_FIELDS or name.startswith("score_") else name


@dataclass(frozen=True, kw_only=True)
class AnswerTable:
    """The columns of a file of answers: line, kept columns, the answer's own fields, error."""

    kind: str  # a value of `TABLES`
    task: str
    labels: tuple[str, ...]
    multi_label: bool  # several labels may be right at once
    abstains: bool = False  # some answers are too uncertain
    scores: bool  # a column `score_LABEL` for each label
    windows: bool = False  # how many windows a text was read in
    kept: tuple[str, ...] | None = ()  # None: every column that the rows have

    def write(self, answers: Path, output: Path) -> None:
        """Write the JSON lines of `answers` as a table to `output`, in bounded memory."""
        if self.kind == "Parquet":
            self._write_parquet(answers, output)
            return
        columns = self._columns(answers)
        with output.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if self.kind == "TSV" else ",")
            writer.writerow(columns)
            writer.writerows([_cell(row.get(name)) for name in columns] for row in self._rows(answers))

    def _columns(self, answers: Path) -> list[str]:
        kept = self.kept
        if kept is None:
            own = (*self._answer_columns(), "line", "scores", "labels", "error")
            kept = tuple(dict.fromkeys(name for row in _lines(answers) for name in row if name not in own))
        return ["line", *(kept_name(name) for name in kept), *self._answer_columns(), "error"]

    def own_columns(self) -> tuple[str, ...]:
        """What an answer says, without the tokens that it was made of."""
        names = _OF_TASK.get(self.task)
        if names is not None:
            return names
        labels = ("labels",) if self.multi_label else ()
        abstained = ("abstained",) if self.abstains else ()
        return ("label", "score", *labels, *abstained, *(f"score_{label}" for label in self.labels if self.scores))

    def row(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer as `as_object` makes it, with all columns that the table has for it."""
        scores = answer.get("scores") if self.scores else None
        if isinstance(scores, dict):
            answer |= {f"score_{label}": score for label, score in scores.items()}
        if self.multi_label and "label" in answer:
            answer.setdefault("labels", [answer["label"]])  # JSON omits `labels` where `label` is the only label
        if self.abstains and "label" in answer:
            answer.setdefault("abstained", False)
        if self.windows and "tokens" in answer:
            answer.setdefault("windows", 1)  # JSON omits it then
        return answer

    def _answer_columns(self) -> tuple[str, ...]:
        windows = ("windows",) if self.windows else ()
        return (*self.own_columns(), "tokens", "tokens_used", *windows, "engine")

    def _rows(self, answers: Path) -> Iterator[dict[str, Any]]:
        return map(self.row, _lines(answers))

    def _write_parquet(self, answers: Path, output: Path) -> None:
        arrow, parquet = need("pyarrow", "Parquet"), need("pyarrow.parquet", "Parquet")
        columns = self._columns(answers)
        own = {"line", *self._answer_columns(), "error"}
        types = self._types(arrow, answers)
        kept = _kept_types(arrow, [name for name in columns if name not in own], answers)
        types |= {name: kind for name, (kind, _) in kept.items()}
        converters = {name: convert for name, (_, convert) in kept.items()}
        schema = arrow.schema([(name, types[name]) for name in columns])
        with parquet.ParquetWriter(output, schema) as writer:
            for rows in _batches(self._rows(answers)):
                data = [
                    arrow.array([converters.get(name, _encodable)(row.get(name)) for row in rows], type=types[name])
                    for name in columns
                ]
                writer.write_table(arrow.Table.from_arrays(data, schema=schema))

    def _types(self, arrow: Any, answers: Path) -> dict[str, Any]:
        text, number = arrow.string(), arrow.float32()
        entity = [("label", text), ("score", number), ("start", arrow.int64()), ("end", arrow.int64()), ("text", text)]
        types = {
            **dict.fromkeys(("line", "tokens", "tokens_used", "windows"), arrow.int64()),
            **dict.fromkeys(("label", "engine", "error"), text),
            **dict.fromkeys(("score", *(f"score_{label}" for label in self.labels)), number),
            **dict.fromkeys(("labels", "tokens_text"), arrow.list_(text)),
            "abstained": arrow.bool_(),
            "entities": arrow.list_(arrow.struct(entity)),
            "vectors": arrow.list_(arrow.list_(number)),
            "masks": arrow.list_(arrow.list_(arrow.struct([("token", text), ("score", number)]))),
        }
        if self.task == "embeddings":
            width = next((len(row["vector"]) for row in _lines(answers) if "vector" in row), 0)
            types["vector"] = arrow.list_(number, width) if width else arrow.list_(number)
        return types


def table_of(manifest: Manifest, *, kind: str, scores: bool, **fields: Any) -> AnswerTable:
    """The table of a bundle's answers; `fields` are further ones of `AnswerTable`."""
    return AnswerTable(
        kind=kind,
        task=manifest.task,
        labels=manifest.labels,
        multi_label=manifest.head.multi_label,
        abstains=manifest.head.abstain_below is not None,
        scores=scores,
        **fields,
    )


def has_scores(task: str) -> bool:
    """Whether answers of a task have a score for each label."""
    return task not in _OF_TASK


def table_kind(output: Path, *, task: str, scores: bool) -> str | None:
    """The kind of table that the ending of `output` names; None for JSON lines.

    Raises `UsageError` for the ending of another kind of table, for embeddings in CSV, and for `scores` without a table
    or labels; `EnvironmentProblem` if Parquet's package is missing.
    """
    suffix = output.suffix.lower()
    if suffix in _REFUSED or suffix_of(output) != suffix:
        raise UsageError(f"--output {output}: {suffix} is not written; name it .jsonl, .csv or .parquet")
    kind = TABLES.get(suffix)
    if kind in ("CSV", "TSV") and task in BARE:
        raise UsageError(f"--output {output}: a cell of {kind} holds no vector; name it .parquet or .jsonl")
    if scores and (kind is None or not has_scores(task)):
        what = f"the task {task} has none" if not has_scores(task) else "lines of JSON have `scores` already"
        raise UsageError(f"--scores makes columns of the labels' scores in a CSV or Parquet --output; {what}")
    if kind == "Parquet":
        need("pyarrow.parquet", f"--output {output}")
    return kind


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS:
            yield batch
            batch = []
    yield batch


def _cell(value: Any) -> Any:
    """A value as a CSV cell: empty for None, JSON for lists and objects."""
    if isinstance(value, Mapping | list | bool):
        return json.dumps(value, ensure_ascii=False)
    return value


def _encodable(value: Any) -> Any:
    """The value with lone surrogates, which Parquet cannot hold, as JSON escapes."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return {key: _encodable(item) for key, item in value.items()} if isinstance(value, dict) else value


def _kept_types(arrow: Any, names: list[str], answers: Path) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Name -> the type that holds every value of a kept column, and the function that converts a value to it."""
    kinds: dict[str, set[type]] = {name: set() for name in names}
    for row in _lines(answers) if names else ():
        for name in names:
            value = row.get(name)
            if value is not None:
                kinds[name].add(str if type(value) is int and abs(value) >= 1 << 63 else type(value))
    converters: dict[str, tuple[Any, Callable[[Any], Any]]] = {}
    for name, types in kinds.items():
        if types in ({bool}, {int}):
            converters[name] = (arrow.bool_() if types == {bool} else arrow.int64(), _same)
        elif types and types <= {int, float}:
            converters[name] = (arrow.float64(), lambda value: None if value is None else float(value))
        else:
            converters[name] = (arrow.string(), lambda value: None if value is None else _encodable(_text(value)))
    return converters


def _same(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def kept_columns(keep: Sequence[str], columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The columns that `--keep` names in a table with `columns`; None where only the rows can tell."""
    if "*" in keep:
        return None if columns is None else tuple(dict.fromkeys([*columns, *(name for name in keep if name != "*")]))
    return tuple(keep)
