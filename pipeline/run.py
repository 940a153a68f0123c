"""A recipe's steps in their order: skipped where nothing they depend on has changed, else run and recorded."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import glob
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nopad.pipeline.digests import digest_of
from nopad.pipeline.freshness import key_of, parts_of, why_stale
from nopad.pipeline.process import run_command
from nopad.pipeline.record import Book, Output, Record, State, read_book, write_book
from nopad.pipeline.steps import KINDS, Step
from nopad.runtime.errors import Terminated

LOGS = "logs"
Status = Literal["cached", "would run", "done", "failed", "interrupted", "not run"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a recipe."""

    steps: Sequence[Step]
    base: Path  # where relative paths start
    folder: Path  # of outputs, logs and the record
    lock: int  # descriptor of the folder's lock
    forced: Collection[str]  # names of steps
    started: Callable[[Step, str], object]  # called with a step, and why it is run
    show: Callable[[str], object]  # called with the lines of its log


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step in this run."""

    step: Step
    status: Status
    why: str | None = None  # it was run, or would be
    record: Record | None = None  # of its last run, in this run or before


def look(steps: Sequence[Step], folder: Path, forced: Collection[str]) -> list[Outcome]:
    """What a run would do, without running: for each step that it is cached, or why not."""
    book, digest = read_book(folder), functools.cache(digest_of)
    outcomes: list[Outcome] = []
    will_run: list[str] = []
    for step in steps:
        why = why_stale(step, steps, book, digest, forced=forced, will_run=will_run)
        record = book.records.get(step.name)
        if why is None:
            outcomes.append(Outcome(step=step, status="cached", record=record))
            continue
        will_run.append(step.name)
        if _resumes(step, record, parts_of(step, steps, book, digest)):
            why += "; goes on from its saved epochs"
        outcomes.append(Outcome(step=step, status="would run", why=why, record=record))
    return outcomes


def run_steps(run: Run) -> Iterator[Outcome]:
    """Run what must run, and yield each step's outcome; those below a step that failed are not run.

    An interruption is recorded, and raised again.
    """
    digest = functools.cache(digest_of)
    book = read_book(run.folder)
    (run.folder / LOGS).mkdir(parents=True, exist_ok=True)
    failed = False
    for step in run.steps:
        if failed:  # without its record: those figures are of an earlier run, perhaps of another model
            yield Outcome(step=step, status="not run")
            continue
        why = why_stale(step, run.steps, book, digest, forced=run.forced)
        if why is None:
            yield Outcome(step=step, status="cached", record=book.records.get(step.name))
            continue
        run.started(step, why)
        book = _run(run, step, book, parts_of(step, run.steps, book, digest))
        record = book.records[step.name]
        failed = record.state != "done"
        yield Outcome(step=step, status=_status(record), why=why, record=record)


def with_unfinished(outcomes: Sequence[Outcome], steps: Sequence[Step], folder: Path) -> list[Outcome]:
    """Outcomes of all steps where the run was ended early: of the one that ran, and of those below it."""
    rest = steps[len(outcomes) :]
    if not rest:
        return list(outcomes)
    record = read_book(folder).records.get(rest[0].name)
    ran = Outcome(step=rest[0], status="not run")
    if record is not None and record.state != "done":
        ran = dataclasses.replace(ran, status=_status(record), record=record)
    return [*outcomes, ran, *(Outcome(step=step, status="not run") for step in rest[1:])]


def log_of(folder: Path, step: Step) -> Path:
    """What the step wrote to stderr."""
    return folder / LOGS / f"{step.name.replace(' ', '-')}.log"


def how_it_ended(outcome: Outcome, folder: Path) -> str:
    """How a step failed, with the last line of its log."""
    code, log = (outcome.record.exit_code if outcome.record else None), log_of(folder, outcome.step)
    said = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    reason = next((line.removeprefix("nopad: ") for line in reversed(said) if line.strip()), "it said nothing")
    ended = f"was ended by signal {-code}" if code is not None and code < 0 else f"failed with exit code {code}"
    return f"{ended}: {reason}"


def _run(run: Run, step: Step, book: Book, parts: Mapping[str, Any]) -> Book:
    """Run the step; returns the book with its record, which is on the disk, too, whatever happens."""
    arguments = step.arguments({one.name: str(one.output) for one in run.steps if one.output is not None})
    if step.name not in run.forced and _resumes(step, book.records.get(step.name), parts):
        arguments.append("--resume")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = Record(parts=parts, state="running", started=now, arguments=tuple(arguments))
    write_book(run.folder, _with(book, step, record))
    log = log_of(run.folder, step)
    results = log.with_suffix(".json")
    results.unlink(missing_ok=True)
    command = [arguments[0], "--json", *arguments[1:]]
    begun, code = time.monotonic(), 4
    try:
        code = run_command(command, folder=run.base, log=log, results=results, lock=run.lock, show=run.show)
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        raise
    finally:
        record = dataclasses.replace(
            record,
            state=_state(code),
            seconds=round(time.monotonic() - begun, 3),
            exit_code=code,
            results=_results(results),
        )
        book = _with(_touched(book, step, run.steps, record), step, record)
        write_book(run.folder, book)
    return book


def _state(code: int) -> State:
    return "done" if code == 0 else "interrupted" if code in (130, 143) else "failed"


def _status(record: Record) -> Status:
    """The status of a step that was begun in this run."""
    return "not run" if record.state == "running" else record.state


def _with(book: Book, step: Step, record: Record) -> Book:
    return dataclasses.replace(book, records={**book.records, step.name: record})


def _touched(book: Book, step: Step, steps: Sequence[Step], record: Record) -> Book:
    """The book with the outputs as the step has left them."""
    outputs = dict(book.outputs)
    if step.output is not None:
        now = digest_of(step.output)
        outputs[step.name] = Output(made=now, now=now)
    if step.changes is not None:
        before = book.outputs[step.changes]
        (place,) = (one.output for one in steps if one.name == step.changes)
        now = digest_of(place) if place is not None else None
        changed_by = dict(before.changed_by)
        if record.state == "done" or now != before.now:
            changed_by[step.name] = key_of(record.parts)
        outputs[step.changes] = Output(made=before.made, now=now, changed_by=changed_by)
    return dataclasses.replace(book, outputs=outputs)


def _resumes(step: Step, record: Record | None, parts: Mapping[str, Any]) -> bool:
    """Whether an earlier run of the very same step was ended early, and has left epochs to go on from."""
    saved = KINDS[step.command].saved
    if not saved or step.output is None or record is None or record.state == "done" or record.parts != parts:
        return False
    return any(glob.glob(pattern.format(glob.escape(str(step.output)))) for pattern in saved)


def _results(path: Path) -> tuple[Any, ...]:
    """The JSON lines of a command's stdout; what is no JSON is in the file alone."""
    found: list[Any] = []
    if not path.exists():
        return ()
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return tuple(found)
