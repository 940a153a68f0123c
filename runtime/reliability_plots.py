"""The reliability diagram as plots: how often answers with a score are right, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence

from nopad.charts.standalone import Panel
from nopad.charts.svg import Axis, Point, Series, lines
from nopad.model.reliability import Bin


def reliability_panels(
    bins: Sequence[tuple[str, int, Sequence[Bin]]], *, label: str, errors: str, rows: str
) -> list[Panel]:
    """The diagram beside the ideal, and the counts of its bins: of each name, with its style; the last one is strong.

    `label` ends the plots' names for screen readers; `errors` and `rows` are the remarks beside their titles.
    """

    def series(name: str, style: int, found: Sequence[Bin], value: str) -> Series:
        points = [
            Point(
                x=one.probability,
                y=float(getattr(one, value)),
                tip=f"{name}: {one.count:,} with a mean score of {one.probability:.3f}, {one.right:.1%} of them right",
            )
            for one in found
            if one.count
        ]
        return Series(name=name, style=style, points=tuple(points), strong=name == bins[-1][0])

    ends = (Point(x=0.0, y=0.0), Point(x=1.0, y=1.0))
    score = Axis(title="mean score of a bin", write=lambda x: f"{x:g}", least=0.0, most=1.0)
    share = Axis(title="share that is right", write=lambda y: f"{y:.0%}", least=0.0, most=1.0)
    count = Axis(title="answers in the bin", write=lambda y: f"{y:,.0f}", least=0.0)
    diagram = lines(
        [Series(name="ideal", style=7, points=ends), *(series(*one, "right") for one in bins)],
        score,
        share,
        label=f"Reliability {label}, and the ideal",
    )
    counts = lines(
        [series(*one, "count") for one in bins], score, count, label=f"How many answers each bin has, {label}"
    )
    return [Panel("Reliability", errors, diagram), Panel("Answers in each bin", rows, counts)]
