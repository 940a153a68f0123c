"""The page of an analysis: one HTML file that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nopad.analysis import plots, tables
from nopad.analysis.analysis import Analysis, Result
from nopad.analysis.words import letters, summary, unknown_labels
from nopad.charts.standalone import Panel, Table, plain_page, table_html
from nopad.charts.svg import escaped
from nopad.runtime.explain.page import STYLE as MARKS

_STYLE = """
.plots { align-items: start; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)) }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem }
ul.said { margin: .75rem 0 0; padding: 0 0 0 1.1rem; max-width: 60rem }
ul.said li { margin: .3rem 0 }
.warn { border-left: 4px solid var(--s1); padding: .25rem .75rem; margin: .75rem 0; color: var(--ink); max-width: 60rem;
  overflow-wrap: anywhere }
article { border: 1px solid var(--grid); border-radius: 6px; padding: .5rem .75rem; margin: .6rem 0; max-width: 62rem }
article p { margin: .1rem 0 }
article b { color: var(--ink); font-weight: 650 }
.excerpt { max-height: 15em; overflow-y: auto }
.plain { line-height: 1.5 }
.twins { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)) }
.twins > * { min-width: 0 }
table.matrix { margin-bottom: 1rem }
table.matrix td, table.matrix th { text-align: right }
table.matrix th[scope="row"] { text-align: left; padding-left: 0 }
table.matrix td { min-width: 4.5rem; color: var(--ink) }
table.matrix td small { display: block }
""" + "".join(
    f".{side}{shade} {{ background: color-mix(in srgb, var({colour}) {5 * shade}%, var(--card)) }}\n"
    for side, colour in (("right", "--s0"), ("wrong", "--s1"))
    for shade in range(1, tables.SHADES + 1)
)


def page(found: Analysis, origin: Mapping[str, Any]) -> str:
    """The text of the file; `origin` says what was read, when and by which nopad."""
    names = [
        f"{letter}{one.bundle} ({one.precision})" for letter, one in zip(letters(found), found.results, strict=True)
    ]
    sections = "".join(
        f'<section aria-label="{escaped(title)}"><h2>{escaped(title)}</h2>{content}</section>'
        for title, content in _sections(found)
        if content
    )
    said = "".join(f"<li>{escaped(line)}</li>" for line in summary(found))
    warnings = "".join(f'<p class="warn" role="note">{escaped(line)}</p>' for line in _warnings(found))
    title = f"{' and '.join(names)} on {origin['data']}"
    content = f'<ul class="said">{said}</ul>{warnings}{sections}{_colophon(found, origin)}'
    return plain_page(f"nopad analyze · {origin['data']}", title, content, MARKS + _STYLE)


def _warnings(found: Analysis) -> Iterator[str]:
    yield from unknown_labels(found)
    if found.bad:
        yield f"{len(found.bad):,} rows could not be used; they are listed below, and no figure counts them."
    if found.train_bad:
        yield f"{found.train_bad:,} rows of the training data could not be used: they have no readable text or label."
    if found.rows < 100:
        yield f"{found.rows:,} rows show little: look at the intervals."


def _sections(found: Analysis) -> Iterator[tuple[str, str]]:
    if found.comparison is not None:
        yield "What changed", tables.changes(found.comparison, found.labels)
    if found.results[0].classes is not None:
        yield "Which labels", _each(found, tables.labels)
        yield "Can the scores be believed?", _plots(plots.calibration(found))
    if found.results[0].tags is not None:
        yield "Which entities", _each(found, tables.entities)
    if found.results[0].numbers is not None:
        yield "Answers and truth", _plots(plots.scattered(found)) + _each(found, tables.numbers)
    yield "Where it is hard", _plots(plots.groups(found))
    title = "The largest errors" if found.results[0].numbers else "The most confident mistakes"
    yield title, _each(found, tables.mistakes)
    if found.train is not None:
        yield "In the training data, too", tables.overlap(found.train, "training row")
    yield "Repeated in the data", tables.overlap(found.repeats, "earlier row")
    yield "Labels that look wrong", _each(found, tables.noise)
    yield "Rows that could not be used", tables.bad_rows(found)


def _each(found: Analysis, write: Any) -> str:
    """Of one result its HTML; of two, both below their names."""
    parts = [write(result) for result in found.results]
    if len(parts) == 1 or not any(parts):
        return "".join(parts)
    columns = "".join(
        f"<div><h3>{escaped(letter)}{escaped(result.bundle)} ({escaped(result.precision)})</h3>{part}</div>"
        for letter, result, part in zip(letters(found), found.results, parts, strict=True)
    )
    return f'<div class="twins">{columns}</div>'


def _plots(panels: list[Panel]) -> str:
    figures = "".join(
        f"<figure><figcaption>{escaped(one.title)} <small>{escaped(one.remark)}</small></figcaption>{one.svg}</figure>"
        for one in panels
    )
    return f'<div class="plots">{figures}</div>' if panels else ""


def _colophon(found: Analysis, origin: Mapping[str, Any]) -> str:
    rows = [
        [f"{letter}{name}".strip(), str(value)]
        for letter, result in zip(letters(found), found.results, strict=True)
        for name, value in _about(result)
    ]
    rows += [["data", f"{origin['data']} (SHA-256 {origin['data_sha256'] or 'unknown: stdin'})"]]
    if origin["train"]:
        rows.append(["training data", str(origin["train"])])
    rows.append(["made", f"{origin['date']}, nopad {origin['nopad']}"])
    return table_html(Table("How this was made", ("", ""), rows, words=True))


def _about(result: Result) -> list[tuple[str, str]]:
    return [
        ("bundle", result.bundle),
        ("answered by", f"{result.engine}, {result.precision} ({result.file}), up to {result.max_length:,} tokens"),
    ]
