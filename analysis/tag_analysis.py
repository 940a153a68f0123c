"""The analysis of taggers: the entities of one or two models against the true ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nopad.analysis.analysis import Analysis, Result, Wanted, analysis_of, result_of
from nopad.analysis.answers import Show, answered_by_all, collected
from nopad.analysis.comparison import Change, Comparison, changes_of, compared
from nopad.analysis.groups import Mask
from nopad.analysis.intervals import Estimate, wilson
from nopad.analysis.mistakes import Mistake
from nopad.analysis.overlap import Side, find_overlap
from nopad.analysis.tagged_rows import Span, TaggedRows, kinds_of
from nopad.analysis.tags import right_texts, tag_figures
from nopad.runtime.data.labelled import BadRow
from nopad.runtime.errors import InputFileError
from nopad.runtime.model import Model
from nopad.runtime.types import Entity, Tagging


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one model found in all texts."""

    entities: tuple[tuple[Entity, ...], ...]
    tokens: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]

    @property
    def spans(self) -> list[tuple[Span, ...]]:
        return [tuple(Span(one.label, one.start, one.end) for one in found) for found in self.entities]


def analyze_tags(
    models: Sequence[Model], data: TaggedRows, train: TaggedRows | None, wanted: Wanted, show: Show
) -> Analysis:
    """Ask each tagger (one, or two to be compared) every text. Raises as `analyze`."""
    kinds = kinds_of(models[0].labels)
    rows, answers, failed = _ask(models, data, show)
    rights = [right_texts(rows.entities, each.spans) for each in answers]
    show("looking for texts that repeat")
    between, within, _ = find_overlap(
        _side(rows), None if train is None else _side(train), lambda mask: _share(rights[0], mask), wanted.rows
    )
    results = [
        _result(model, rows, each, right, kinds, wanted)
        for model, each, right in zip(models, answers, rights, strict=True)
    ]
    return analysis_of(
        len(rows.texts),
        kinds,
        results,
        _compare(rows, answers, rights, wanted.rows) if len(answers) > 1 else None,
        repeats=within,
        between=between,
        train=train,
        bad=[*data.bad, *failed],
    )


def _ask(models: Sequence[Model], data: TaggedRows, show: Show) -> tuple[TaggedRows, list[_Answers], list[BadRow]]:
    """The rows that every model has answered, their answers, and the rows that one of them could not answer."""
    if not data.texts:
        raise InputFileError(f"none of {len(data.bad):,} rows can be used; {data.bad[0].place}: {data.bad[0].reason}")
    found = [collected(model.results(iter(data.texts)), len(data.texts), show) for model in models]
    good, bad = answered_by_all(found, data.lines)
    rows = TaggedRows(
        texts=[data.texts[place] for place in good],
        entities=[data.entities[place] for place in good],
        lines=[data.lines[place] for place in good],
        kept=[data.kept[place] for place in good],
        bad=[],
    )
    return rows, [_answers([each[place] for place in good]) for each in found], bad


def _answers(answers: Sequence[Tagging]) -> _Answers:
    return _Answers(
        entities=tuple(answer.entities for answer in answers),
        tokens=np.array([answer.tokens for answer in answers], dtype=np.int64),
        used=np.array([answer.tokens_used for answer in answers], dtype=np.int64),
    )


def _share(right: npt.NDArray[np.bool_], mask: Mask) -> Estimate:
    return wilson(int(right[mask].sum()), int(mask.sum()))


def _side(rows: TaggedRows) -> Side:
    labels = [_words(text, spans) for text, spans in zip(rows.texts, rows.entities, strict=True)]
    return Side(texts=rows.texts, lines=rows.lines, labels=labels)


def _words(text: str, spans: Sequence[Span]) -> str:
    """Entities as words: "PER Ada Lovelace; LOC London"."""
    return "; ".join(f"{span.kind} {text[span.start : span.end]}" for span in spans) or "none"


def _result(
    model: Model,
    rows: TaggedRows,
    answers: _Answers,
    right: npt.NDArray[np.bool_],
    kinds: Sequence[str],
    wanted: Wanted,
) -> Result:
    def measure(mask: Mask) -> Estimate:
        return _share(right, mask)

    return result_of(
        model,
        rows.kept,
        answers.tokens,
        answers.used,
        measure,
        wanted.slices,
        tags=tag_figures(rows.entities, answers.spans, kinds),
        mistakes=_mistakes(rows, answers, np.flatnonzero(~right), wanted.rows),
        wrong=int((~right).sum()),
    )


def _mistakes(rows: TaggedRows, answers: _Answers, wrong: npt.NDArray[np.int64], most: int) -> tuple[Mistake, ...]:
    """Texts with wrong entities, those with the surest one first; then those where some are missing alone."""
    found = []
    for row in map(int, wrong):
        true, spans = set(rows.entities[row]), answers.spans[row]
        extra = [one for one, span in zip(answers.entities[row], spans, strict=True) if span not in true]
        surest = max(extra, key=lambda one: one.score, default=None)
        missing = next((span.kind for span in rows.entities[row] if span not in set(spans)), "")
        found.append(
            Mistake(
                line=rows.lines[row],
                text=rows.texts[row],
                truth=_words(rows.texts[row], rows.entities[row]),
                given=_words(rows.texts[row], spans),
                label=missing if surest is None else surest.label,
                missed=surest is None,
                certainty=None if surest is None else surest.score,
                tokens=int(answers.tokens[row]),
                used=int(answers.used[row]),
            )
        )
    return tuple(sorted(found, key=lambda one: -(one.certainty or 0.0))[:most])


def _compare(
    rows: TaggedRows, answers: Sequence[_Answers], rights: Sequence[npt.NDArray[np.bool_]], most: int
) -> Comparison:
    """What changed, text by text: all its entities right, or not."""
    spans = [each.spans for each in answers]
    same = right_texts(spans[0], spans[1])

    def change(row: int) -> Change:
        return Change(
            line=rows.lines[row],
            text=rows.texts[row],
            truth=_words(rows.texts[row], rows.entities[row]),
            first=_words(rows.texts[row], spans[0][row]),
            second=_words(rows.texts[row], spans[1][row]),
        )

    return compared(rights, same, lambda mask: changes_of(rows.lines, np.flatnonzero(mask), change, most))
