"""The plots of an analysis."""

from __future__ import annotations

from nopad.analysis.analysis import Analysis, Result
from nopad.analysis.groups import Group
from nopad.analysis.words import letters
from nopad.charts import units
from nopad.charts.standalone import Panel
from nopad.charts.svg import Axis, Bar, Point, Series, bars, scatter
from nopad.runtime.reliability_plots import reliability_panels


def calibration(found: Analysis) -> list[Panel]:
    """The reliability diagram, and how many answers its bins have."""
    shown = [
        (letter.strip(": ") or "this model", style, result.classes)
        for style, (letter, result) in enumerate(zip(letters(found), found.results, strict=True))
        if result.classes is not None and result.classes.calibration is not None
    ]
    if not shown:
        return []
    errors = ", ".join(
        f"{f'{name} ' if len(shown) > 1 else ''}{each.calibration.ece:.4f}"
        for name, _, each in shown
        if each.calibration
    )
    return reliability_panels(
        [(name, style, each.bins) for name, style, each in shown],
        label="of the answers",
        errors=f"expected calibration error {errors}",
        rows=f"of {found.rows:,} rows",
    )


def scattered(found: Analysis) -> list[Panel]:
    """Answers over the truth, of each model."""
    panels = []
    for style, (letter, result) in enumerate(zip(letters(found), found.results, strict=True)):
        assert result.numbers is not None, "all results are of one kind"
        points = tuple(Point(x=x, y=y, tip=f"truth {x:g}, answer {y:.4g}") for x, y in result.numbers.points)
        ends = [value for point in result.numbers.points for value in point]
        ideal = tuple(Point(x=end, y=end) for end in (min(ends), max(ends)))
        series = [Series(name="", style=style, points=points), Series(name="ideal", style=7, points=ideal)]
        truth, answer = (Axis(title=name, write=units.tick) for name in ("truth", "answer"))
        svg = scatter(series, truth, answer, label=f"Answers {letter}over the truth")
        panels.append(Panel(f"{letter}answers", f"{len(points):,} of {found.rows:,} rows", svg))
    return panels


def groups(found: Analysis) -> list[Panel]:
    """Scores by length, by what was cut off, and by the columns."""
    first = found.results[0]
    panels = [_groups(found, "Tokens", "of the whole text", lambda result: result.lengths)]
    if len(first.truncation) > 1:
        cut = f"at {first.max_length:,} tokens"
        panels.append(_groups(found, "Long texts", cut, lambda result: result.truncation))
    panels += [_groups(found, name, "", lambda result, name=name: result.slices[name]) for name in first.slices]
    return panels


def _groups(found: Analysis, title: str, remark: str, choose: object) -> Panel:
    assert callable(choose)
    rows: list[Bar] = []
    together: dict[str, list[Bar]] = {}
    for style, (letter, result) in enumerate(zip(letters(found), found.results, strict=True)):
        for group in choose(result):
            together.setdefault(group.name, []).append(_bar(group, style, letter, result))
    for same in together.values():
        rows += same
    first = found.results[0]
    of = "mean absolute error" if first.numbers else "texts with every entity right" if first.tags else "accuracy"
    axis = (
        Axis(title=of, write=lambda x: f"{100 * x:g} %", least=0.0, most=1.0)
        if not first.numbers
        else Axis(title=of, write=units.tick, least=0.0)
    )
    alone = len(found.results) == 1
    whole = first.classes.accuracy if first.classes else first.tags.texts if first.tags else None
    limit = (whole.value, "all rows") if whole and alone else None
    return Panel(title, ", ".join(filter(None, (remark, of))), bars(rows, axis, label=f"{of} by {title}", limit=limit))


def _bar(group: Group, style: int, letter: str, result: Result) -> Bar:
    one = group.score
    shares = result.numbers is None
    value = units.share(one.value) if shares else f"{one.value:.3f}"
    ends = [f"{100 * end:.1f} %" if shares else f"{end:.3f}" for end in (one.low, one.high)]
    return Bar(
        name=f"{letter}{group.name}",
        style=style,
        value=one.value,
        text=f"{value} of {group.rows:,}" if shares else f"{value}, {group.rows:,} rows",
        interval=(one.low, one.high),
        tip=f"{letter}{group.name}: {value} ({ends[0]} to {ends[1]}), {group.rows:,} rows",
    )
