"""Plots one below the other as one SVG file: with the colours that a page would give them, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from nopad.charts.svg import escaped, style_sheet

# The page's colours, which the style sheet of plots takes from around it.
_LIGHT = "--ink: #1b1f24; --soft: #59636e; --grid: #d9dee3; --card: #ffffff"
_DARK = "--ink: #e6edf3; --soft: #9aa4af; --grid: #333b44; --card: #0d1117"
_GAP, _TITLE = 18.0, 24.0


class Panel(NamedTuple):
    """A plot of `nopad.charts.svg` with its title and a remark beside that."""

    title: str
    remark: str
    svg: str


def standalone(panels: Sequence[Panel], *, width: float) -> str:
    """The text of the SVG file; `width` is its least, in px."""
    parts: list[str] = []
    top = 8.0
    for panel in panels:
        box = re.search(r'width="([\d.]+)" height="([\d.]+)"', panel.svg)
        assert box is not None, "a plot has its size"
        width = max(width, float(box[1]))
        title = f'<tspan class="strong">{escaped(panel.title)}</tspan> {escaped(panel.remark)}'
        parts.append(f'<text x="8" y="{top + 14:.0f}">{title}</text>')
        own = panel.svg.replace(' class="plot"', "", 1)  # whose rules are for a page's columns
        parts.append(f'<g transform="translate(0,{top + _TITLE:.0f})">{own}</g>')
        top += _TITLE + float(box[2]) + _GAP
    sheet = f":root {{ {_LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }} {style_sheet()}"
    size = f'viewBox="0 0 {width:.0f} {top:.0f}" width="{width:.0f}" height="{top:.0f}"'
    ground = f'<rect width="{width:.0f}" height="{top:.0f}" fill="var(--card)"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{sheet}</style>{ground}{"".join(parts)}</svg>\n'
