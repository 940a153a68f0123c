"""The pages of what was measured, made from the result files in docs/benchmarks: a hook of mkdocs.yml.

Every result of `nopad bench` gets its report and its plot; no figure is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from nopad.bench.report.derived import tabulate
from nopad.bench.report.files import read_report
from nopad.bench.report.html import page
from nopad.bench.report.html_plots import speed
from nopad.charts.standalone import Panel, standalone

RESULTS = Path(__file__).parent.parent.parent / "docs" / "benchmarks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add benchmarks/index.md, and a report and a plot of each result."""
    lines = ["# Benchmarks\n", "Every page here is made from a result file, written by the command on it.\n"]
    for path in sorted(RESULTS.glob("*.json")):
        raw = json.loads(path.read_text("utf-8"))
        is_load = raw.get("kind") is not None  # nopad bench --serve has tables only
        lines += _entry(path.stem, raw, is_load)
        if not is_load:
            report = read_report(path)
            panels = [Panel(panel.title, panel.remark, panel.svg) for panel in speed(tabulate(report))]
            for name, content in (("-report.html", page(report)), ("-speed.svg", standalone(panels, width=640.0))):
                files.append(File.generated(config, f"benchmarks/{path.stem}{name}", content=content))
    files.append(File.generated(config, "benchmarks/index.md", content="\n".join(lines)))
    return files


def _entry(name: str, raw: dict[str, Any], is_load: bool) -> Iterator[str]:
    machine = raw["machine"]
    yield f"## {name}\n"
    yield f"{raw['created'][:10]}, {machine['cpu']}, {machine['cores']} cores ({machine['isa']}).\n"
    report = "" if is_load else f"[Report]({name}-report.html), "
    yield f"{report}[tables]({name}.md), [result file]({name}.json).\n"
    if not is_load:
        yield f"![texts per second of every subject]({name}-speed.svg)\n"
