"""The tables and texts of an analysis, as HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nopad.analysis.analysis import Analysis, Result
from nopad.analysis.comparison import Change, Changes, Comparison
from nopad.analysis.mistakes import Mistake
from nopad.analysis.overlap import Overlap
from nopad.analysis.scores import LabelScore
from nopad.analysis.words import number
from nopad.charts import units
from nopad.charts.standalone import Table, table_html
from nopad.charts.svg import escaped
from nopad.runtime.explain.page import headline, marked
from nopad.runtime.types import Text

SHADES = 10
_MOST_LABELS = 20  # of a matrix that can be read
_MOST_BAD = 100


def labels(result: Result) -> str:
    """Precision and recall of each label, and which are taken for which."""
    classes = result.classes
    assert classes is not None, "asked of classes alone"
    content = _scores(classes.labels, "label", "rows", "given")
    if classes.confusion is not None and len(classes.labels) <= _MOST_LABELS:
        names = [one.label for one in classes.labels]
        return _matrix("Confusion matrix", "true label", "answer", classes.confusion, names) + content
    pairs = [[one.label, one.given, f"{one.rows:,}", units.share(one.share)] for one in classes.confusions]
    often = Table("Most often taken for another", ("true label", "answer", "rows", "of the label's rows"), pairs)
    return content + (table_html(often) if pairs else "")


def _scores(found: Sequence[LabelScore], *names: str) -> str:
    rows = [
        [one.label, f"{one.rows:,}", f"{one.given:,}", *(_share(x) for x in (one.precision, one.recall, one.f1))]
        for one in found
    ]
    return _untitled(Table(f"Each {names[0]}", (*names, "precision", "recall", "F1"), rows))


def entities(result: Result) -> str:
    """Precision and recall of each kind of entity, and which are taken for which."""
    tags = result.tags
    assert tags is not None, "asked of taggers alone"
    scores = _scores(tags.kinds, "kind", "entities", "found")
    if len(tags.names) > _MOST_LABELS:
        return scores
    title = "Entities that overlap, whatever their limits"
    limits = f"<p>{tags.limits:,} of them have the right kind and other limits, which counts as wrong below.</p>"
    return _matrix(title, "true kind", "kind found", tags.confusion, tags.names) + limits + scores


def numbers(result: Result) -> str:
    """The figures of a regression."""
    assert result.numbers is not None, "asked of numbers alone"
    one = result.numbers.figures
    rows = [
        ["mean absolute error", number(one.absolute)],
        ["root of the mean squared error", f"{one.squared:.4f}"],
        ["mean of answer less truth", f"{one.bias:+.4f}"],
        ["Spearman's rank correlation", "-" if one.spearman is None else number(one.spearman)],
        ["Pearson's correlation", "-" if one.pearson is None else f"{one.pearson:.4f}"],
    ]
    return _untitled(Table("Figures", ("", "with 95 % interval"), rows))


def mistakes(result: Result) -> str:
    """Rows that are answered wrongly, some with their words marked."""
    if not result.mistakes:
        return "<p>None: every row is answered rightly.</p>"
    lead = ""
    if result.wrong is not None:
        lead = f"{len(result.mistakes):,} of {result.wrong:,} rows that are wrong, the surest first. "
    if any(one.explanation for one in result.mistakes):
        lead += "Blue speaks for the wrong answer, orange against it; point at a word for its part of the log-odds."
    return f"<p>{escaped(lead)}</p>" + "".join(map(_mistake, result.mistakes))


def _mistake(one: Mistake) -> str:
    said = f"truth <b>{escaped(one.truth)}</b>, answer <b>{escaped(one.given)}</b>"
    if one.error is not None:
        said += f" ({one.error:+.4g})"
    elif one.certainty is not None:
        said += f" ({'without ' if one.missed else ''}{escaped(one.label)} {one.certainty:.4f})"
    read = f"{one.tokens:,} tokens" + (f", {one.used:,} of them read" if one.used < one.tokens else "")
    if one.explanation is not None:
        content, why = marked(one.text, one.explanation), headline(one.explanation)
    else:
        content, why = _plain(one.text), one.unexplained and f"not explained: {one.unexplained}"
    return _article(f"row {one.line:,}: {said}; {read}", content, why)


def changes(found: Comparison, names: Sequence[str]) -> str:
    """What the second model answers differently."""
    if found.worse is None or found.better is None:
        return _changed("The largest differences", found.other, score=False)
    rows = [
        ["A right", f"{found.both_right:,}", f"{found.worse.rows:,}"],
        ["A wrong", f"{found.better.rows:,}", f"{found.both_wrong:,}"],
    ]
    content = _untitled(Table("Right and wrong", ("rows", "B right", "B wrong"), rows))
    if found.answers is not None and len(names) <= _MOST_LABELS:
        content += _matrix("Answers of both", "answer of A", "answer of B", found.answers, names)
    return (
        content
        + _changed("Right, now wrong", found.worse)
        + _changed("Wrong, now right", found.better)
        + _changed("Wrong in another way", found.other)
    )


def _changed(title: str, found: Changes, *, score: bool = True) -> str:
    if not found.rows:
        return f"<h3>{escaped(title)}</h3><p>No row.</p>"
    shown = f": {len(found.shown):,} of {found.rows:,} rows" if found.rows > len(found.shown) else f": {found.rows:,}"
    return f"<h3>{escaped(title + shown)}</h3>" + "".join(_change(one, score=score) for one in found.shown)


def _change(one: Change, *, score: bool) -> str:
    said = f"truth <b>{escaped(one.truth)}</b>; A <b>{escaped(one.first)}</b>, B <b>{escaped(one.second)}</b>"
    moved = ""
    if score and one.first_score is not None:
        moved = f"; {escaped(one.label)} {one.first_score:.4f}, then {one.second_score:.4f}"
    return _article(f"row {one.line:,}: {said}{moved}", _plain(one.text))


def overlap(found: Overlap, other: str) -> str:
    """Rows whose text is found again, beside what it is found as."""
    if not found.rows:
        return "<p>No row: neither exactly (but for capitals and blanks) nor nearly.</p>"
    lead = (
        f"{found.rows:,} rows: {found.exact:,} exactly (but for capitals and blanks), {found.near:,} nearly; "
        f"{found.conflicts:,} with another label there. {len(found.pairs):,} of them:"
    )
    articles = []
    for one in found.pairs:
        there = "" if one.other_label is None else f" (<b>{escaped(one.other_label)}</b>)"
        said = f"row {one.line:,} (<b>{escaped(one.label)}</b>) and {other} {one.other_line:,}{there}"
        alike = "exactly" if one.exact else "nearly"
        texts = [one.text] if one.text == one.other_text else [one.text, one.other_text]
        content = "".join(_plain(text) for text in texts)
        articles.append(_article(f"{said}, {alike}", f'<div class="twins">{content}</div>'))
    return f"<p>{escaped(lead)}</p>{''.join(articles)}"


def noise(result: Result) -> str:
    """Rows whose label is likely wrong."""
    found = result.classes.noise if result.classes is not None else None
    if found is None:
        return ""
    lead = (
        f"Confident learning finds {found.suspects:,} rows whose given label is likely wrong, and estimates that "
        f"{units.share(found.share)} of all labels are. A hint where to look, no verdict: it takes the model's word "
        "for it, and means something only on rows that the model was not trained on: one that has learned a wrong "
        "label by heart defends it."
    )
    articles = [
        _article(
            f"row {one.line:,}: labelled <b>{escaped(one.given)}</b> ({one.given_probability:.4f}), likely "
            f"<b>{escaped(one.likely)}</b> ({one.likely_probability:.4f})",
            _plain(one.text),
        )
        for one in found.shown
    ]
    return f"<p>{escaped(lead)}</p>{''.join(articles)}"


def bad_rows(found: Analysis) -> str:
    """Rows that were left out, and why."""
    if not found.bad:
        return ""
    rows = [[f"{one.line:,}", one.reason[:300]] for one in found.bad[:_MOST_BAD]]
    more = f"<p>and {len(found.bad) - _MOST_BAD:,} more.</p>" if len(found.bad) > _MOST_BAD else ""
    return _untitled(Table("Rows that were left out", ("row", "reason"), rows, words=True)) + more


def _matrix(title: str, down: str, across: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Counts as a table: shares of a row in shades, the diagonal in another colour."""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in names)
    rows = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        cells = "".join(_cell(count, sum(row), i == j) for j, count in enumerate(row))
        rows.append(f'<tr><th scope="row">{escaped(name)}</th>{cells}</tr>')
    return (
        f"<p>{escaped(title)}: rows are the {escaped(down)}, columns the {escaped(across)}.</p>"
        f'<div class="scroll" role="group" aria-label="{escaped(title)}" tabindex="0"><table class="matrix">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, whole: int, right: bool) -> str:
    share = count / whole if whole else 0.0
    shade = math.ceil(share * SHADES)
    name = f' class="{"right" if right else "wrong"}{shade}"' if shade else ""
    return f"<td{name}>{count:,}<small>{units.share(share) if whole else '-'}</small></td>"


def _untitled(table: Table) -> str:
    """A table below the heading that is there already."""
    return table_html(table).partition("</h2>")[2]


def _article(said: str, content: str, below: str = "") -> str:
    last = f"<p><small>{escaped(below)}</small></p>" if below else ""
    # What scrolls must be reachable by keyboard.
    return f'<article><p>{said}</p><div class="excerpt" tabindex="0">{content}</div>{last}</article>'


def _plain(text: Text) -> str:
    parts: Iterable[str] = text if isinstance(text, tuple) else (text,)
    return "".join(f'<p class="text plain">{escaped(part)}</p>' for part in parts)


def _share(value: float | None) -> str:
    return "-" if value is None else units.share(value)
