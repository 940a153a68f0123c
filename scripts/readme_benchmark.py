"""The README's benchmark table, made from a result file of `nopad bench`: no figure in it is typed by hand.

    python scripts/readme_benchmark.py docs/benchmarks/FILE.json README.md
    python scripts/readme_benchmark.py docs/benchmarks/FILE.json README.md --check   # exit code 1 if they differ

Replaces what stands between `<!-- benchmark:begin -->` and `<!-- benchmark:end -->`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path

from nopad.bench.report.best import duel, fastest_peer, peers, precisions_of
from nopad.bench.report.derived import Table, tabulate
from nopad.bench.report.files import read_report
from nopad.bench.report.intervals import wide
from nopad.bench.schema import Report, Subject
from nopad.charts.units import number, ratio, share
from nopad.runtime.atomic import write_file
from nopad.runtime.errors import InputFileError, NopadError

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="bench.json of a run")
    parser.add_argument("readme", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is another")
    arguments = parser.parse_args()
    try:
        same = update(arguments.results, arguments.readme, check=arguments.check)
    except NopadError as error:
        print(f"readme_benchmark: {error}", file=sys.stderr)
        sys.exit(3)
    if arguments.check and not same:
        print(f"{arguments.readme} does not say what {arguments.results} gives: run without --check", file=sys.stderr)
        sys.exit(1)


def update(results: Path, readme: Path, *, check: bool) -> bool:
    """Put the results' table into the README; with `check`, only compare. Returns whether it was there.

    Raises `InputFileError` for an unreadable file, or a README without exactly one place for the table.
    """
    return put(block(read_report(results)), readme, "benchmark", check=check)


def put(table: str, page: Path, name: str, *, check: bool = False) -> bool:
    """Put a table between the marks `NAME:begin` and `NAME:end` of a page. As `update`."""
    begin, end = (f"<!-- {name}:{edge} -->" for edge in ("begin", "end"))
    try:
        old = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"cannot read {page}: {error}") from None
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise InputFileError(f"{page} must have one line {begin} and, below it, one line {end}")
    new = f"{old[: old.index(begin)]}{begin}\n{table}{old[old.index(end) :]}"
    if not check and new != old:
        write_file(page, new.encode("utf-8"))
    return new == old


def block(report: Report) -> str:
    """The table and what a reader must know with it, as Markdown that ends with a newline."""
    table = tabulate(report)
    only_fp32 = all(peer.precision == "fp32" for peer in peers(table))
    own = precisions_of(table)
    columns: list[tuple[str, Callable[[str], str]]] = [
        (f"nopad {precision}", partial(_own, table, precision)) for precision in own
    ]
    if "fp32" in own and not only_fp32:
        columns.insert(1, ("best fp32 peer", partial(_peer, table, "fp32")))
    if peers(table):
        columns.append(("best peer" if only_fp32 else "best peer, any precision", partial(_peer, table, None)))
    lines = [
        *_warnings(report),
        _row(["real tokens/s", *(head for head, _ in columns)]),
        "|---|" + "---:|" * len(columns),
    ]
    for workload in report.workloads:
        lines.append(_row([_plain(workload.name), *(write(workload.name) for _, write in columns)]))
    return "\n".join([*lines, "", *_below(table, only_fp32)]) + "\n"


def _warnings(report: Report) -> Iterator[str]:
    if not report.complete:
        yield from ("**The run was interrupted: what is here is all there is.**", "")
    if not report.noise.conclusive:
        verdict = report.noise.verdict.rstrip(".") or "too noisy to conclude"
        yield from (f"**{_plain(verdict[:1].upper() + verdict[1:])}.**", "")


def _own(table: Table, precision: str, workload: str) -> str:
    """The fastest of nopad in a precision, and how many times as fast that is as the peer that it is held to."""
    found = duel(table, workload, precision)
    if found is None:
        statuses = {
            cell.status
            for subject in table.compared()
            if subject.precision == precision and (cell := table.at(subject.name, workload)[0]) is not None
        }
        return ", ".join(sorted(statuses)) or "not run"
    lines = []
    if found.times is not None:
        low, middle, high = found.times
        lines.append(f"{ratio(middle)} ({low:.2f} to {high:.2f}{', too wide' if wide(found.times) else ''})")
    same = [subject for subject in table.compared() if subject.precision == precision]
    lines += [_plain(found.subject.name)] if len(same) > 1 else []
    return _cell(table, found.subject, workload, lines)


def _peer(table: Table, precision: str | None, workload: str) -> str:
    peer = fastest_peer(table, workload, precision)
    return "none" if peer is None else _cell(table, peer, workload, [_plain(peer.name)])


def _cell(table: Table, subject: Subject, workload: str, lines: list[str]) -> str:
    cell, figures = table.at(subject.name, workload)
    assert cell is not None and figures is not None
    unequal = cell.agreement is not None and cell.agreement < 1
    parts = [f"**{number(figures.tokens_per_second[1])}**", *lines]
    parts += [f"{share(cell.agreement)} equal labels"] if unequal and cell.agreement is not None else []
    return "<br>".join(parts)


def _below(table: Table, only_fp32: bool) -> Iterator[str]:
    report, machine = table.report, table.report.machine
    where = ", ".join(_plain(str(machine[name])) for name in ("cpu", "isa", "gpu") if machine.get(name))
    threads = f"{report.threads} thread{'' if report.threads == 1 else 's'}"
    about = [f"{where or 'machine unknown'}, {threads}, {_plain(report.created[:10])}."]
    if report.reference:
        held = (
            "the row's best peer"
            if only_fp32
            else "the row's best peer: of fp32 for fp32, of any precision for the others"
        )
        about.append(
            f"× is times {held}, with its 95 % interval; labels equal {_plain(report.reference)}'s unless it says so."
        )
        about.append(f"Peers: {_plain(', '.join(peer.name for peer in peers(table)))}.")
    absent = [f"{subject.name} ({subject.status})" for subject in report.subjects if subject.status != "ok"]
    if absent:
        about.append(f"Not measured: {_plain(', '.join(absent))}.")
    if report.noise.conclusive and report.noise.verdict:
        about.append(f"Noise: {_plain(report.noise.verdict.rstrip('.'))}.")
    yield " ".join(about)
    fence = "```"
    yield from ("", fence, " ".join(report.command.replace(fence, "'''").split()), fence)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text from a report, so that Markdown shows it as it is."""
    text = escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in "\\|`*[]" else character for character in text)


if __name__ == "__main__":
    main()
