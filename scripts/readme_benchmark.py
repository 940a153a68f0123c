"""The README's benchmark table, made from a result file of `nopad bench`: no figure in it is typed by hand.

    python scripts/readme_benchmark.py docs/benchmarks/FILE.json README.md
    python scripts/readme_benchmark.py docs/benchmarks/FILE.json README.md --check   # exit code 1 if they differ

Replaces what stands between `<!-- benchmark:begin -->` and `<!-- benchmark:end -->`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

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
    table = block(read_report(results))
    try:
        old = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"cannot read {readme}: {error}") from None
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise InputFileError(f"{readme} must have one line {BEGIN} and, below it, one line {END}")
    new = f"{old[: old.index(BEGIN)]}{BEGIN}\n{table}{old[old.index(END) :]}"
    if not check and new != old:
        write_file(readme, new.encode("utf-8"))
    return new == old


def block(report: Report) -> str:
    """The table and what a reader must know with it, as Markdown that ends with a newline."""
    table = tabulate(report)
    measured = {name for name, _ in table.figures}
    # Only the reference's model: tokens per second of another model do not compare with these.
    models = {subject.model for subject in report.subjects if subject.name == report.reference} or {
        subject.model for subject in report.subjects
    }
    columns = [subject for subject in report.subjects if subject.name in measured and subject.model in models]
    columns.sort(key=lambda subject: (subject.family != "nopad", subject.name != report.reference))
    lines = [*_warnings(report), _row(["real tokens/s", *(_head(subject, report) for subject in columns)])]
    lines.append("|---|" + "---:|" * len(columns))
    for workload in report.workloads:
        lines.append(_row([_plain(workload.name), *(_cell(table, subject, workload.name) for subject in columns)]))
    return "\n".join([*lines, "", *_below(table)]) + "\n"


def _warnings(report: Report) -> Iterator[str]:
    if not report.complete:
        yield from ("**The run was interrupted: what is here is all there is.**", "")
    if not report.noise.conclusive:
        verdict = report.noise.verdict.rstrip(".") or "too noisy to conclude"
        yield from (f"**{_plain(verdict[:1].upper() + verdict[1:])}.**", "")


def _head(subject: Subject, report: Report) -> str:
    return _plain(subject.name) + (" (reference)" if subject.name == report.reference else "")


def _cell(table: Table, subject: Subject, workload: str) -> str:
    cell, figures = table.at(subject.name, workload)
    if cell is None or figures is None:
        return _plain(cell.status if cell else "not run")
    parts = [f"**{number(figures.tokens_per_second[1])}**"]
    if figures.ratio is not None:
        low, middle, high = figures.ratio
        parts.append(f"{ratio(middle)} ({low:.2f} to {high:.2f}{', too wide' if wide(figures.ratio) else ''})")
    if cell.agreement is not None and cell.agreement < 1:
        parts.append(f"{share(cell.agreement)} equal labels")
    return "<br>".join(parts)


def _below(table: Table) -> Iterator[str]:
    report, machine = table.report, table.report.machine
    where = ", ".join(_plain(str(machine[name])) for name in ("cpu", "isa", "gpu") if machine.get(name))
    threads = f"{report.threads} thread{'' if report.threads == 1 else 's'}"
    about = [f"{where or 'machine unknown'}, {threads}, {_plain(report.created[:10])}."]
    if report.reference:
        about.append(f"× is times {_plain(report.reference)}, with its 95 % interval; labels equal unless it says so.")
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
