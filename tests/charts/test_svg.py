"""Plots: lengths, places and names of what is drawn, and the style sheet's classes."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from nopad.charts.svg import COLOURS, Axis, Bar, Point, Series, bars, lines, parallel, scatter, style_sheet


def test_a_bar_is_as_long_as_its_value() -> None:
    axis = Axis(title="things", write=str)
    rows = [Bar(name=str(n), style=n, value=value, text="") for n, value in enumerate((10.0, 5.0, None))]
    svg = ElementTree.fromstring(bars(rows, axis, label="things"))
    long, short = (float(one.attrib["width"]) for one in svg.iter("rect"))
    assert long == pytest.approx(2 * short, abs=0.2)


def test_names_at_the_ends_of_lines_do_not_cover_each_other() -> None:
    axis = Axis(title="x", write=str)
    series = [Series(name=f"s{n}", style=n, points=(Point(x=1, y=1), Point(x=2, y=1 + n / 1e6))) for n in range(12)]
    svg = ElementTree.fromstring(lines(series, axis, axis, label="crowded"))
    heights = sorted(float(one.attrib["y"]) for one in svg.iter("text") if one.get("class") == "name")
    assert len(heights) == 12
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) >= 14
    assert heights[0] > 0 and heights[-1] < 340


def test_a_logarithmic_axis_spaces_by_ratio() -> None:
    x, y = (Axis(title=name, write=str, log=True) for name in "xy")
    series = [Series(name="s", style=0, points=tuple(Point(x=n, y=n) for n in (1, 10, 100)))]
    svg = ElementTree.fromstring(scatter(series, x, y, label="log"))
    marks = [re.findall(r"[\d.]+", one.attrib["transform"])[:2] for one in svg.iter("path") if one.get("transform")]
    (x1, y1), (x2, y2), (x3, y3) = [(float(x), float(y)) for x, y in marks]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert x3 > x2 and y3 < y2
    assert not math.isclose(x1, x2)


def test_the_style_sheet_has_every_class_and_leaves_four_colours_to_the_page() -> None:
    style = style_sheet()
    x, y = (Axis(title=name, write=str) for name in "xy")
    points = (Point(x=1, y=1, interval=(0.5, 2)), Point(x=2, y=2))
    series = [Series(name=str(n), style=n, points=points, strong=n == 0) for n in range(COLOURS)]
    rows = [
        Bar(name="a", style=0, value=1.0, text="1", interval=(0.5, 2)),
        Bar(name="b", style=1, value=None, text="-"),
    ]
    drawn = (
        lines(series, x, y, label="") + scatter(series, x, y, label="") + bars(rows, x, label="", limit=(2.0, "most"))
    )
    classes = {name for names in re.findall(r'class="([^"]*)"', drawn) for name in names.split()}
    assert not [name for name in classes if not re.search(rf"\.{name}\b", style)]
    used, set_here = (set(re.findall(pattern, style)) for pattern in (r"var\((--\w+)", r"(--\w+):"))
    assert used - set_here == {"--ink", "--soft", "--grid", "--card"}


def test_parallel_axes_have_scales_of_their_own_and_later_lines_are_darker() -> None:
    axes = [Axis(title="rate", write=str, log=True), Axis(title="size", write=str)]
    pairs = ((1e-5, 8.0), (1e-4, 16.0), (1e-3, 24.0))
    series = [
        Series(name="", style=0, points=tuple(Point(x=x, y=y, tip=f"{n}") for x, y in enumerate(pair)))
        for n, pair in enumerate(pairs)
    ]
    svg = ElementTree.fromstring(parallel(series, axes, label="settings"))
    drawn = [one for one in svg.iter("path") if one.get("class") == "line s0"]
    ends = [[float(y) for y in re.findall(r",([\d.]+)", one.attrib["d"])] for one in drawn]
    (a1, b1), (a2, b2), (a3, b3) = ends
    assert a1 - a2 == pytest.approx(a2 - a3, abs=0.2) and b1 - b2 == pytest.approx(b2 - b3, abs=0.2)
    assert a1 > a2 > a3 and b1 > b2 > b3
    shades = [float(one.attrib["stroke-opacity"]) for one in drawn]
    assert shades == sorted(shades) and len(set(shades)) == 3 and max(shades) <= 1
    assert [one.text for one in svg.iter("title")] == ["0", "1", "2"]
