"""`nopad run`: a recipe's steps, and the report at the end."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.console import common_options, emit, messages, status
from nopad.runtime.errors import UsageError

if TYPE_CHECKING:
    from nopad.pipeline.recipe import Recipe
    from nopad.pipeline.run import Outcome
    from nopad.pipeline.steps import Step


def _values(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE.")
        # A path from here, while those in the file are relative to its folder.
        values[name] = str(Path(value).absolute()) if os.path.exists(value) else value
    return values


@click.command(
    epilog="Exit codes: that of the step that failed (nopad --help has the list; 4 if a signal ended it), 0 if all are "
    "done, 2 or 3 for a recipe that cannot be run, 130 or 143 after Ctrl-C or SIGTERM."
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run: outputs, logs, run.json, report.html. [default: the recipe's name with .run]",
)
@click.option(
    "--set",
    "given",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_values,
    help="A value instead of the recipe's `set`.",
)
@click.option("--force", "forced", metavar="STEP", multiple=True, help="Run this step although nothing has changed.")
@click.option("--dry-run", is_flag=True, help="Say of each step that it is cached, or why it will run; run nothing.")
@common_options
def run(
    recipe: Path,
    output: Path | None,
    given: dict[str, str],
    forced: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a recipe: train, export, parity, analyze and others, each step only if something it depends on changed.

    \b
    nopad run recipes/imdb.yaml --set data=imdb/ --output imdb.run
    nopad run recipes/imdb.yaml --set data=imdb/ --output imdb.run --dry-run

    A step is a command with its options, as --help of that command has them. What has run is recorded with digests of
    all that went in and came out; a run that was ended early goes on at its step. A report is written at the end.
    """
    from nopad.pipeline.machine import check_machine
    from nopad.pipeline.recipe import read_recipe
    from nopad.pipeline.run import look
    from nopad.pipeline.steps import compile_steps

    read = read_recipe(recipe, given)
    folder = (output or recipe.with_suffix(".run")).absolute()
    steps = compile_steps(read, folder)
    _check_forced(forced, steps)
    ahead = functools.cache(lambda: look(steps, folder, forced))
    check_machine(steps, lambda: [one.step.name for one in ahead() if one.status == "would run"])
    if dry_run:
        _print(ahead(), as_json=as_json)
        return 0
    return _run(read, steps, folder, forced, messages(quiet), as_json=as_json)


def _check_forced(forced: Sequence[str], steps: Sequence[Step]) -> None:
    from nopad.runtime.config_file import nearest

    names = [step.name for step in steps]
    for name in forced:
        if name not in names:
            raise UsageError(f"--force {name}: the recipe has no such step; {nearest(name, names)}")


def _run(
    recipe: Recipe, steps: Sequence[Step], folder: Path, forced: Sequence[str], console: Console, *, as_json: bool
) -> int:
    from nopad.pipeline.report import write_report
    from nopad.pipeline.run import Run, run_steps, with_unfinished
    from nopad.runtime.atomic import locked

    begun = time.monotonic()
    outcomes: list[Outcome] = []
    with locked(folder, f"running {recipe.path} in {folder}") as lock, status(console) as show:
        say = _Announcer(steps, console, show)
        run = Run(
            steps=steps,
            base=recipe.path.resolve().parent,
            folder=folder,
            lock=lock,
            forced=forced,
            started=say.started,
            show=say.line,
        )
        try:
            for outcome in run_steps(run):
                outcomes.append(outcome)
                say.ended(outcome)
        except KeyboardInterrupt:
            for step in steps[len(outcomes) :][:1]:
                console.print(f"stopped at {step.name}; the same command goes on there")
            raise
        finally:
            every = with_unfinished(outcomes, steps, folder)
            report = write_report(recipe, every, folder, seconds=time.monotonic() - begun)
    _print(outcomes, as_json=as_json, report=report)
    failed = next((one for one in outcomes if one.status in ("failed", "interrupted")), None)
    return 0 if failed is None else _explain(failed, folder, console)


class _Announcer:
    """What is said of the steps while they run: a line at the beginning and the end of each, its log in between."""

    def __init__(self, steps: Sequence[Step], console: Console, show: Callable[..., None]) -> None:
        self._places = {step.name: f"{number}/{len(steps)} {step.name}" for number, step in enumerate(steps, 1)}
        self._console, self._show = console, show
        self._step = ""

    def started(self, step: Step, why: str) -> None:
        self._step = step.name
        self._console.print(f"{self._places[step.name]}: {why}", style="bold")
        if self._console.is_terminal:
            self._show(step.name)

    def line(self, text: str) -> None:
        width = max(20, self._console.width - 60) if self._console.is_terminal else None  # beside the bar
        if text:
            self._show(f"{self._step}: {text}"[:width])

    def ended(self, outcome: Outcome) -> None:
        took = f" in {_seconds(outcome.record.seconds)}" if outcome.record and outcome.status != "cached" else ""
        if outcome.status != "not run":
            self._console.print(f"{self._places[outcome.step.name]}: {outcome.status}{took}", style="bold")


def _print(outcomes: Sequence[Outcome], *, as_json: bool, report: Path | None = None) -> None:
    """Every step on stdout: a table, or a line of JSON each and one of the report."""
    if as_json:
        for outcome in outcomes:
            emit(_to_json(outcome))
        if report is not None:
            emit({"report": str(report)})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("step", "", "seconds", "why", "output"):
        table.add_column(name, justify="right" if name == "seconds" else "left", overflow="fold")
    for outcome in outcomes:
        ran = f"{outcome.record.seconds:.1f}" if outcome.record and outcome.status != "would run" else ""
        output = outcome.step.output
        table.add_row(outcome.step.name, outcome.status, ran, outcome.why or "", output.name if output else "")
    Console(highlight=False, markup=False, emoji=False).print(table)
    if report is not None:
        click.echo(f"report: {report}")


def _to_json(outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    return {
        "step": outcome.step.name,
        "command": outcome.step.command,
        "status": outcome.status,
        "why": outcome.why,
        "seconds": record.seconds if record else None,
        "exit_code": record.exit_code if record else None,
        "output": str(outcome.step.output) if outcome.step.output else None,
        "results": record.results if record and outcome.status != "would run" else (),
    }


def _explain(failed: Outcome, folder: Path, console: Console) -> int:
    """Say which step failed, with the end of its log, and how to go on. Returns the exit code of the run."""
    from nopad.pipeline.run import how_it_ended, log_of

    code = failed.record.exit_code if failed.record else None
    log = log_of(folder, failed.step)
    click.echo(f"nopad: the step {failed.step.name} {how_it_ended(failed, folder)}", err=True)
    console.print(f"its log is {log}; mend it and run the same again: what is done is kept")
    return 4 if code is None or code < 0 else code


def _seconds(value: float) -> str:
    from nopad.charts.units import seconds

    return seconds(value)
