"""The report of a run as one HTML file that asks the network for nothing: the steps, what each shows, the recipe."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from nopad.bench.report.html_page import Section, document, heads, table, verdict
from nopad.bench.report.html_tables import pairs
from nopad.charts.svg import escaped
from nopad.charts.units import seconds as duration
from nopad.model.errors import NopadError
from nopad.model.packages import version_of
from nopad.pipeline.figures import link, show, tiles
from nopad.pipeline.recipe import Recipe
from nopad.pipeline.run import Outcome, how_it_ended, log_of
from nopad.runtime.atomic import write_file

FILE = "report.html"
TROUBLES = ("failed", "interrupted")


def write_report(recipe: Recipe, outcomes: Sequence[Outcome], folder: Path, *, seconds: float) -> Path:
    """Write the report of a run that took so long; returns its path."""
    path = folder / FILE
    write_file(path, page(recipe, outcomes, folder, seconds=seconds).encode("utf-8", "surrogateescape"))
    return path


def page(recipe: Recipe, outcomes: Sequence[Outcome], folder: Path, *, seconds: float) -> str:
    """The page."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    header = [f'<p class="result">{escaped(_sentence(recipe, outcomes, seconds))}</p>', *_troubles(outcomes, folder)]
    return document(
        title=f"nopad run: {recipe.path.name}",
        command="nopad run",
        heading=f"{recipe.path.name} · {now} · nopad {version_of('nopad')}",
        header="\n".join([*header, _tiles(outcomes)]),
        sections=_sections(recipe, outcomes, folder),
        footer=f"Written by nopad run on {platform.platform()}. It asks the network for nothing.",
    )


def _sentence(recipe: Recipe, outcomes: Sequence[Outcome], seconds: float) -> str:
    """The result of the run, in one sentence."""
    total = len(outcomes)
    ran, cached = (sum(one.status == status for one in outcomes) for status in ("done", "cached"))
    if ran + cached < total:
        ended = next((one for one in outcomes if one.status in TROUBLES), None)
        how = (
            f"{ended.step.name} {'failed' if ended.status == 'failed' else 'was interrupted'}"
            if ended
            else "ended early"
        )
        return f"{recipe.path.stem}: {how}; {ran + cached} of {total} steps are done."
    parts = [f"{ran} run in {duration(seconds)}"] if ran else []
    parts += [f"{cached} as before"] if cached else []
    return f"{recipe.path.stem}: all {total} steps are done, {', '.join(parts)}."


def _troubles(outcomes: Sequence[Outcome], folder: Path) -> Iterator[str]:
    for one in outcomes:
        if one.status == "failed":
            yield verdict(f"{one.step.name} {how_it_ended(one, folder)}", loud="Failed.")
        if one.status == "interrupted":
            yield verdict(f"The same command goes on with {one.step.name}.", loud="Interrupted.")


def _tiles(outcomes: Sequence[Outcome]) -> str:
    found = [tile for one in outcomes if one.record is not None for tile in tiles(one.step, one.record.results)]
    items = "".join(
        f'<li><div class="of">{escaped(name)}</div><div class="times">{escaped(value)}</div>'
        f'<div class="by">{escaped(remark)}</div></li>'
        for name, value, remark in found
    )
    return f'<ul class="tiles" aria-label="Results">{items}</ul>' if items else ""


def _sections(recipe: Recipe, outcomes: Sequence[Outcome], folder: Path) -> list[Section]:
    sections = [("steps", "Steps", _steps(outcomes, folder))]
    for one in outcomes:
        if content := _shown(one, folder):
            sections.append((f"step-{one.step.name.replace(' ', '-')}", escaped(one.step.name), content))
    values = pairs("The values in force", recipe.values) if recipe.values else ""
    sections.append(("recipe", "Recipe", f"{values}<pre><code>{escaped(recipe.text)}</code></pre>"))
    text = escaped("\n".join(_typed(one.record.arguments) for one in outcomes if one.record is not None))
    about = f'<p class="about">As they were run, in {escaped(str(recipe.path.resolve().parent))}.</p>'
    sections.append(("commands", "Commands", f"{about}<pre><code>{text}</code></pre>"))
    return sections


def _typed(arguments: Sequence[str]) -> str:
    """A command as one types it, an argument a line: paths are long."""
    return "nopad " + " \\\n    ".join(map(shlex.quote, arguments))


def _shown(outcome: Outcome, folder: Path) -> str:
    """What the step has to show. Results that cannot be read cost the page one section, not the run its end."""
    if outcome.record is None or outcome.status not in ("done", "cached", "failed"):
        return ""
    try:
        return show(outcome.step, outcome.record.results, folder)
    except (NopadError, OSError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        return f'<p class="about">{escaped(f"Nothing to show of what it left ({why}).")}</p>'


def _steps(outcomes: Sequence[Outcome], folder: Path) -> str:
    rows = "".join(_row(one, folder) for one in outcomes)
    caption = "Time: of the step's last run. Cached: nothing that the step depends on has changed since."
    return table(
        caption, heads(("step", "outcome, and why it ran", "time", "started (UTC)", "output", "log"), text=True), [rows]
    )


def _row(outcome: Outcome, folder: Path) -> str:
    record, step = outcome.record, outcome.step
    place = step.output if step.output is not None and step.output.exists() else None
    log = log_of(folder, step)
    status = f"<b>{escaped(outcome.status)}</b>" if outcome.status in TROUBLES else escaped(outcome.status)
    cells = (
        f"{status}<small>{escaped(outcome.why or '')}</small>",
        duration(record.seconds) if record is not None else "",
        escaped(record.started[:16].replace("T", " ")) if record is not None else "",
        link(place, folder) if place is not None else "",
        link(log, folder) if log.exists() else "",
    )
    name = f"{escaped(step.name)}<small>nopad {escaped(step.command)}</small>"
    return f'<tr><th scope="row">{name}</th>{"".join(f"""<td class="text">{cell}</td>""" for cell in cells)}</tr>'
