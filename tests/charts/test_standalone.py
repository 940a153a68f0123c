"""Plots as one SVG file: all of them inside, each with its title, and the colours that they need."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree

from nopad.charts.standalone import Panel, Table, page, standalone
from nopad.charts.svg import Axis, Bar, Point, Series, bars, lines

SVG = "{http://www.w3.org/2000/svg}"


def test_every_panel_lies_below_the_one_before_with_its_title() -> None:
    axis = Axis(title="x", write=str)
    first = lines([Series(name="a", style=0, points=(Point(x=1, y=2),))], axis, axis, label="one")
    second = bars([Bar(name="b", style=1, value=1.0, text="1")], axis, label="two")
    text = standalone([Panel("Title <1>", "a remark", first), Panel("Title 2", "", second)], width=100)
    root = ElementTree.fromstring(text)
    inner = [one for one in root.iter(f"{SVG}svg") if one is not root]
    assert [one.get("aria-label") for one in inner] == ["one", "two"]
    assert ["".join(one.itertext()) for one in root.findall(f"{SVG}text")] == ["Title <1> a remark", "Title 2 "]
    places = [float(re.findall(r"[\d.]+", one.get("transform", ""))[1]) for one in root.findall(f"{SVG}g")]
    heights = [float(one.get("height", "0")) for one in inner]
    assert places[0] + heights[0] < places[1] and places[1] + heights[1] <= float(root.get("height", "0"))
    assert float(root.get("width", "0")) == max(float(one.get("width", "0")) for one in inner)


def test_no_colour_is_left_to_a_page() -> None:
    style = ElementTree.fromstring(standalone([], width=100)).findtext(f"{SVG}style") or ""
    used, set_here = (set(re.findall(pattern, style)) for pattern in (r"var\((--\w+)", r"(--\w+):"))
    assert used and used <= set_here


def test_a_page_sets_every_colour_and_allows_its_own_style_alone() -> None:
    text = page("A <title>", "", [Panel("P", "", "<svg></svg>")], [Table("T", ("a", "b"), [("1", "<2>")], words=True)])
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    used, set_here = (set(re.findall(pattern, style)) for pattern in (r"var\((--\w+)", r"(--\w+):"))
    assert used <= set_here
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in text
    assert "<td>1</td><td>&lt;2&gt;</td>" in text and "<h1>A &lt;title&gt;</h1>" in text
