"""The speed of every subject as one SVG file, made from a result file of `nopad bench`: the plot of docs/cpu.md.

python scripts/benchmark_plot.py docs/benchmarks/FILE.json docs/benchmarks/FILE.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

from nopad.bench.report.derived import tabulate
from nopad.bench.report.files import read_report
from nopad.bench.report.html_plots import speed
from nopad.charts.standalone import Panel, standalone
from nopad.runtime.atomic import write_file


def plot(results: Path) -> str:
    """All workloads of a report, one below the other. Raises `InputFileError`."""
    panels = [Panel(panel.title, panel.remark, panel.svg) for panel in speed(tabulate(read_report(results)))]
    return standalone(panels, width=640.0)


if __name__ == "__main__":
    write_file(Path(sys.argv[2]), plot(Path(sys.argv[1])).encode("utf-8"))
