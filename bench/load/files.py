"""Load reports as files: `load.json`, with derived figures beside those of the steps, `load.md` and `load.html`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from nopad.bench.load.figures import goodput, times_as_much
from nopad.bench.load.html import page
from nopad.bench.load.markdown import to_markdown
from nopad.bench.load.schema import LoadReport
from nopad.runtime.atomic import write_file
from nopad.runtime.errors import OutputError

JSON, MARKDOWN, HTML = "load.json", "load.md", "load.html"


def to_json(report: LoadReport) -> dict[str, Any]:
    """The report as JSON values, with every server's goodput and its ratios to the others'."""
    raw = dataclasses.asdict(report)
    for step, values in zip(report.steps, raw["steps"], strict=True):
        values.update(offered=step.offered, good=step.good)
    for endpoint in raw["endpoints"]:
        name = endpoint["name"]
        others = {at.name: times_as_much(report, name, at.name) for at in report.endpoints if at.name != name}
        endpoint["derived"] = {
            "goodput": _finite(goodput(report, name)),
            "times": {other: _finite(times) for other, times in others.items()},
        }
    return raw


def _finite(interval: tuple[float, ...] | None) -> list[float | None] | None:
    return None if interval is None else [end if math.isfinite(end) else None for end in interval]


def check_folder(folder: Path) -> None:
    """Refuse, before the work, an output whose `load.json` is not ours. Raises `OutputError`."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    if (folder / JSON).exists():
        try:
            ours = json.loads((folder / JSON).read_bytes()).get("kind") == "load"
        except (ValueError, AttributeError, OSError):
            ours = False
        if not ours:
            raise OutputError(
                f"{folder / JSON} is left alone: it is no report of nopad bench --serve; name another output"
            )
    folder.mkdir(parents=True, exist_ok=True)


def write_json(report: LoadReport, folder: Path) -> None:
    """Write `load.json`, whole or not at all."""
    data = json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False)
    write_file(folder / JSON, data.encode() + b"\n")


def write_all(report: LoadReport, folder: Path) -> None:
    """Write all files."""
    write_json(report, folder)
    write_file(folder / MARKDOWN, to_markdown(report).encode())
    write_file(folder / HTML, page(report).encode())
