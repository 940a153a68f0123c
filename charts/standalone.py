"""Plots as a file of its own, an SVG or an HTML page without requests: with their colours, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from nopad.charts.document import html_document
from nopad.charts.svg import escaped, style_sheet

# The page's colours, which the style sheet of plots takes from around it.
_LIGHT = "--ink: #1b1f24; --soft: #59636e; --grid: #d9dee3; --card: #ffffff"
_DARK = "--ink: #e6edf3; --soft: #9aa4af; --grid: #333b44; --card: #0d1117"
_COLOURS = f":root {{ {_LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}"
_GAP, _TITLE = 18.0, 24.0
_PAGE = """
:root { color-scheme: light dark }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--card); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { color: var(--soft); margin: .25rem 0 }
h1, h2, h3, p { overflow-wrap: anywhere }
.plots { display: grid; gap: 1.5rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
figure { margin: 0; min-width: 0 }
figcaption { font-weight: 650 }
figcaption small { font-weight: 400; color: var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
.words th, .words td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top }
.words td:first-child { color: var(--soft); overflow-wrap: normal }
th { color: var(--soft); font-weight: 500 }
"""


class Panel(NamedTuple):
    """A plot of `nopad.charts.svg` with its title and a remark beside that."""

    title: str
    remark: str
    svg: str


class Table(NamedTuple):
    """A table of a page: its title, the heads of its columns, and rows of cells; of figures, or of `words`."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


def page(title: str, lead: str, panels: Sequence[Panel], tables: Sequence[Table]) -> str:
    """The text of an HTML file: a title, a sentence below it, plots side by side as the window allows, then tables."""
    figures = "".join(
        f"<figure><figcaption>{escaped(one.title)} <small>{escaped(one.remark)}</small></figcaption>{one.svg}</figure>"
        for one in panels
    )
    return plain_page(title, lead, f'<div class="plots">{figures}</div>\n{"".join(map(table_html, tables))}')


def plain_page(title: str, lead: str, content: str, style: str = "") -> str:
    """The text of an HTML file with that look: a title, a sentence below, then HTML; `style` is added to the style."""
    body = f"<main><h1>{escaped(title)}</h1>\n<p>{escaped(lead)}</p>\n{content}</main>"
    return html_document(title=title, style=f"{_COLOURS} {style_sheet()}{_PAGE}{style}", body=body)


def table_html(table: Table) -> str:
    """A table as HTML, with its title."""

    def row(cells: Sequence[str], tag: str) -> str:
        shown = (f"<{tag}>{escaped(cell)}</{tag}>" if cell else "<td></td>" for cell in cells)  # no head without a name
        return f"<tr>{''.join(shown)}</tr>"

    name, kind = escaped(table.title), "words" if table.words else "figures"
    head, rows = row(table.heads, "th"), "".join(row(cells, "td") for cells in table.rows)
    return (  # what scrolls must be reachable by keyboard, and so needs a name
        f'<h2>{name}</h2><div class="scroll" role="group" aria-label="{name}" tabindex="0">'
        f'<table class="{kind}"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


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
    sheet = f"{_COLOURS} {style_sheet()}"
    size = f'viewBox="0 0 {width:.0f} {top:.0f}" width="{width:.0f}" height="{top:.0f}"'
    ground = f'<rect width="{width:.0f}" height="{top:.0f}" fill="var(--card)"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{sheet}</style>{ground}{"".join(parts)}</svg>\n'
