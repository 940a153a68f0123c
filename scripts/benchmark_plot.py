"""The speed of every subject as one SVG file, made from a result file of `nopad bench`: the plot of docs/cpu.md.

python scripts/benchmark_plot.py docs/benchmarks/FILE.json docs/benchmarks/FILE.svg
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from nopad.bench.report.derived import tabulate
from nopad.bench.report.files import read_report
from nopad.bench.report.html_plots import speed
from nopad.charts.svg import escaped, style_sheet
from nopad.runtime.atomic import write_file

# The page's colours, which the style sheet of plots takes from around it.
_LIGHT = "--ink: #1b1f24; --soft: #59636e; --grid: #d9dee3; --card: #ffffff"
_DARK = "--ink: #e6edf3; --soft: #9aa4af; --grid: #333b44; --card: #0d1117"
_WIDTH, _GAP, _TITLE = 640.0, 18.0, 24.0


def plot(results: Path) -> str:
    """All workloads of a report, one below the other. Raises `InputFileError`."""
    parts: list[str] = []
    top, width = 8.0, _WIDTH
    for panel in speed(tabulate(read_report(results))):
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


if __name__ == "__main__":
    write_file(Path(sys.argv[2]), plot(Path(sys.argv[1])).encode("utf-8"))
