"""What a step's results show, as HTML: tables and plots for the commands that have some, names and values for all.

Texts come from elsewhere: all are escaped. Knows results (what commands print with --json), not how a step is run.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nopad.bench.report.html_page import heads, table, verdict
from nopad.bench.report.html_tables import NONE, pairs
from nopad.charts.svg import escaped
from nopad.charts.units import number, share
from nopad.pipeline.steps import Step

MOST_IMAGES = 12
_QUIET = ("checkpoint", "bundle", "output", "path")  # names of places, which the table of steps links to


def link(path: Path, folder: Path) -> str:
    """A link from a page in `folder`, which still works where the whole folder is moved."""
    target = Path(os.path.relpath(path, folder)).as_posix()
    return f'<a href="{quote(target)}">{escaped(target)}</a>'


def show(step: Step, results: Sequence[Any], folder: Path) -> str:
    """All that there is to show of a step, on a page in `folder`."""
    last: Mapping[str, Any] = results[-1] if results and isinstance(results[-1], dict) else {}
    special = SHOWN.get(step.command)
    parts = [*(special(last, step, folder) if special else ()), *_images(step)]
    return "".join(parts) if parts else _pairs("Results", last)


def tiles(step: Step, results: Sequence[Any]) -> list[tuple[str, str, str]]:
    """The few figures of a step that a reader looks for first: name, value, remark."""
    last = results[-1] if results and isinstance(results[-1], dict) else {}
    if step.command == "train":
        names = [name for name in _metrics(last) if name not in ("loss", "seconds", "epoch")]
        return [(f"{step.name}: {name}", _value(last[name]), "of the epoch kept") for name in names[:2]]
    if step.command == "calibrate" and isinstance(last.get("after"), dict):
        before, after = last["before"]["ece"], last["after"]["ece"]
        return [(f"{step.name}: calibration error", number(after), f"{number(before)} before")]
    if step.command == "analyze":
        return list(_analyzed(step, last.get("results", ())))
    if step.command in ("export", "parity") and _reports(last):
        passed = all(report["passed"] for report in _reports(last).values())
        checks = sum(len(report["rows"]) for report in _reports(last).values())
        name = step.name if step.command == "parity" else f"{step.name}: parity"
        return [(name, "passed" if passed else "FAILED", f"{checks:,} comparisons with transformers")]
    return []


def _analyzed(step: Step, models: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Of each model that was analyzed its first figure, with its interval."""
    for model, letter in zip(models, ("",) if len(models) == 1 else (" of A", " of B"), strict=False):
        classes, tags, numbers = (model[kind] or {} for kind in ("classes", "tags", "numbers"))
        figures = (
            ("accuracy", classes.get("accuracy"), share),
            ("F1 of entities", tags.get("f1"), share),
            ("texts with every entity right", tags.get("texts"), share),
            ("mean absolute error", numbers.get("figures", {}).get("absolute"), number),
        )
        for name, one, write in figures:
            if one:
                ends = f"{write(one['low'])} to {write(one['high'])}, 95 % interval"
                yield f"{step.name}: {name}{letter}", write(one["value"]), ends
                break


def _train(result: Mapping[str, Any], step: Step, folder: Path) -> Iterator[str]:
    yield _pairs("The epoch that was kept, judged on the evaluation data.", _metrics(result))


def _plan(result: Mapping[str, Any], step: Step, folder: Path) -> Iterator[str]:
    rows = ""
    for place, forecast in enumerate(result.get("forecasts", ()), 1):
        sizes = (f"{least:,} / {best:,} / {most:,}" for least, best, most in forecast["profile"].values())
        cells = (*sizes, *(share(forecast[name]) for name in ("texts", "tokens", "waste")))
        rows += f'<tr><th scope="row">{place}</th>{"".join(f"<td>{escaped(cell)}</td>" for cell in cells)}</tr>'
    head = heads(("profile", "tokens", "sequences", "longest", "texts", "volume", "waste"))
    if rows:
        yield table("Sizes are least / best / most. Forecasts of a model of costs, not measurements.", head, [rows])


def _gate(result: Mapping[str, Any], step: Step, folder: Path) -> Iterator[str]:
    if "export_seconds" in result:
        about = {name: result[name] for name in ("verdict", "export_seconds", "parity_seconds")}
        yield _pairs("The bundle", {**about, "size_bytes": result["bytes"]})
    reports = _reports(result)
    if reports:
        head = heads(("check", *reports))
        yield table(_parity_words(reports), head, [_checks(reports)])
    for name, report in reports.items():
        if evaluation := {name: value for name, value in (report.get("evaluation") or {}).items() if value is not None}:
            yield _pairs(f"{name}: on the texts of the step's data, beside transformers (reference)", evaluation)
    notes = [*result.get("remarks", ()), *result.get("skipped", ())]
    yield "".join(f'<p class="about">{escaped(str(note))}</p>' for note in notes)


def _reports(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Reports of the gate by the file that they judge: of an export several, of a check one."""
    if "rows" in result:
        return {f"{result['file']} on {result['engine']}": result}
    return dict(result.get("reports") or {})


def _parity_words(reports: Mapping[str, Mapping[str, Any]]) -> str:
    failed = [name for name, report in reports.items() if not report["passed"]]
    versions = next(iter(reports.values()))["versions"]
    peers = ", ".join(f"{package} {version}" for package, version in versions.items())
    result = f"Parity FAILED: {', '.join(failed)}." if failed else "Parity passed."
    return f"{result} Of each check the case nearest to its bound; against {peers}."


def _checks(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each check, a column for each file of the bundle."""
    from nopad.export.parity.bounds import SHARES, worst_rows

    columns = [worst_rows(report["rows"]) for report in reports.values()]
    lines = []
    for check in dict.fromkeys(check for column in columns for check in column):
        cells = "".join(
            f"<td>{_check(check in SHARES, *column[check]) if check in column else NONE}</td>" for column in columns
        )
        lines.append(f'<tr><th scope="row">{escaped(check)}</th>{cells}</tr>')
    return "".join(lines)


def _check(share: bool, cases: int, worst: Mapping[str, Any], passed: bool) -> str:
    value, bound = ("none" if worst[name] is None else f"{worst[name]:.3g}" for name in ("value", "bound"))
    sign = ("≥" if share else "≤") if passed else ("<" if share else ">")
    text = f"{value} {sign} {bound}"
    cell = escaped(text) if passed else f"<b>FAILED: {escaped(text)}</b>"
    return f"{cell}<small>{escaped(worst['case'])}{f'; the worst of {cases:,} cases' if cases > 1 else ''}</small>"


def _calibrate(result: Mapping[str, Any], step: Step, folder: Path) -> Iterator[str]:
    names = {
        "nll": "negative log-likelihood",
        "ece": "expected calibration error",
        "brier": "Brier score",
        "accuracy": "accuracy",
        "f1": "F1, mean of the labels",
    }
    before, after = result["before"], result["after"]
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{before[key]:.4f}</td><td>{after[key]:.4f}</td></tr>'
        for key, name in names.items()
        if isinstance(before.get(key), float) and isinstance(after.get(key), float)
    )
    caption = (
        f"On {result['held_out_rows']:,} held-out rows. Learned from all: temperature {result['temperature']:.4f}."
    )
    yield table(caption, heads(("", "before", "after")), [rows])


def _bench(result: Mapping[str, Any], step: Step, folder: Path) -> Iterator[str]:
    from nopad.bench.report.derived import tabulate
    from nopad.bench.report.files import HTML, read_report
    from nopad.bench.report.html import result as sentence
    from nopad.bench.report.html_tables import summary

    if step.output is None:
        return
    measured = tabulate(read_report(step.output))
    yield f"<p>{escaped(sentence(measured))}</p>"
    noise = measured.report.noise
    if noise.verdict:
        yield verdict(noise.verdict, loud="" if noise.conclusive else "Inconclusive.")
    yield summary(measured) if measured.report.cells else ""
    yield f"<p>The whole report, with its plots: {link(step.output / HTML, folder)}</p>"


def _analyze(result: Mapping[str, Any], step: Step, folder: Path) -> Iterator[str]:
    yield "".join(f"<p>{escaped(line)}</p>" for line in result.get("summary", ()))
    if step.output is not None and step.output.exists():
        yield f"<p>Where it errs, with texts and plots: {link(step.output, folder)}</p>"


SHOWN: Mapping[str, Callable[[Mapping[str, Any], Step, Path], Iterator[str]]] = {
    "train": _train,
    "plan": _plan,
    "export": _gate,
    "parity": _gate,
    "calibrate": _calibrate,
    "bench": _bench,
    "analyze": _analyze,
}


def _images(step: Step) -> Iterator[str]:
    """The SVG files that a step has written, as images: their styles stay their own."""
    if step.output is None or step.command == "bench":
        return
    files = [step.output] if step.output.suffix == ".svg" else sorted(step.output.rglob("*.svg"))
    shown = [file for file in files if file.is_file()][:MOST_IMAGES]
    panels = ""
    for file in shown:
        name = escaped(file.stem.replace("-", " ").replace("_", " "))
        data = b64encode(file.read_bytes()).decode()
        panels += f'<figure><img alt="{name}" src="data:image/svg+xml;base64,{data}"></figure>'
    if panels:
        yield f'<div class="panels">{panels}</div>'


def _pairs(caption: str, values: Mapping[str, Any]) -> str:
    plain = {
        name: value for name, value in values.items() if isinstance(value, str | int | float) and name not in _QUIET
    }
    return pairs(caption, plain) if plain else ""


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, int | float)}


def _value(value: float) -> str:
    return f"{value:.4f}" if abs(value) <= 1 else number(value)
