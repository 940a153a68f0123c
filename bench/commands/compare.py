"""`nopad bench compare OLD NEW`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.console import emit, messages

if TYPE_CHECKING:
    from nopad.bench.report.compare import Comparison

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("old", type=_FOLDER)
@click.argument("new", type=_FOLDER)
@click.option(
    "--threshold",
    type=float,
    default=0.05,
    envvar="NOPAD_BENCH_COMPARE_THRESHOLD",
    help="A change below this share is none.",
)
@click.option(
    "--allow-different-machine",
    is_flag=True,
    envvar="NOPAD_BENCH_COMPARE_ALLOW_DIFFERENT_MACHINE",
    help="Compare reports of two machines all the same.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No remarks on stderr.")
def compare(old: Path, new: Path, threshold: float, allow_different_machine: bool, as_json: bool, quiet: bool) -> int:
    """Tell regressions in NEW from noise, against OLD: files or folders of nopad bench.

    Exit code 1 if some subject became slower by more than the threshold, and surely so.
    """
    from nopad.bench.report.compare import compare as judge
    from nopad.bench.report.compare import machine_drift, worst
    from nopad.bench.report.files import read_report

    before, after = read_report(old), read_report(new)
    comparisons = judge(before, after, threshold=threshold, allow_different_machine=allow_different_machine)
    regression = worst(comparisons)
    if as_json:
        for comparison in comparisons:
            emit(dataclasses.asdict(comparison))
    else:
        _print_comparison(comparisons, threshold)
    console = messages(quiet)
    console.print(
        f"the fixed matrix product took {machine_drift(before, after):.3f} times as long in the new run", style="dim"
    )
    for name, report in (("old", before), ("new", after)):
        if not report.complete:
            console.print(f"the {name} report is of an interrupted run", style="yellow")
        if not report.noise.conclusive:
            console.print(f"the {name} report: {report.noise.verdict}", style="yellow")
    return 1 if regression is not None else 0


def _print_comparison(comparisons: Sequence[Comparison], threshold: float) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("workload", "subject", "time, new/old", "95 %", "verdict", ""):
        table.add_column(name, justify="right" if name in ("time, new/old", "95 %") else "left", overflow="fold")
    styles = {"regression": "red", "improvement": "green", "too noisy": "yellow"}
    for comparison in comparisons:
        middle, interval = "-", "-"
        if comparison.ratio is not None:
            low, value, high = comparison.ratio
            middle, interval = f"{value:.3f}", f"{low:.3f} to {high:.3f}"
        table.add_row(
            comparison.workload,
            comparison.subject,
            middle,
            interval,
            comparison.verdict,
            comparison.note,
            style=styles.get(comparison.verdict),
        )
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    counts = [
        f"{sum(comparison.verdict == name for comparison in comparisons)} {name}"
        for name in dict.fromkeys(c.verdict for c in comparisons)
    ]
    console.print(f"\n{', '.join(counts) or 'nothing to compare'} (threshold {threshold:.1%})")
