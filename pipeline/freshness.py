"""Which steps must run, and why: a step's parts (all that it depends on) against those of its record.

A step that changes an output in its place (a calibration goes into the bundle's manifest) leaves its key there: those
who read the output after it depend on that key, and whoever makes the output anew takes all keys away.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nopad.model.packages import version_of
from nopad.pipeline.digests import digest_of
from nopad.pipeline.record import Book, Output
from nopad.pipeline.steps import KINDS, Step

Digest = Callable[[Path], str | None]
_WORDS = {"running": "was cut short", "interrupted": "was interrupted"}


def parts_of(step: Step, steps: Sequence[Step], book: Book, digest: Digest) -> dict[str, Any]:
    """All that the step depends on: options, files by content, outputs of earlier steps as they were made and changed.

    `digest` is `digest_of`, or remembers what it gave. What the Hub holds counts by its name alone.
    """
    upstream: dict[str, str | None] = {}
    for name in step.reads:
        output = book.outputs.get(name, Output(made=None, now=None))
        upstream[name] = output.made
        upstream |= {changer: output.changed_by.get(changer) for changer in _changers(name, before(step, steps))}
    return {
        "nopad": version_of("nopad"),
        "command": step.command,
        "options": {name: list(texts) for name, texts in step.options().items()},
        "environment": dict(step.environment),
        "files": {name: digest(path) for name, path in step.files.items()},
        "steps": upstream,
    }


def key_of(parts: Mapping[str, Any]) -> str:
    """One digest for all parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def before(step: Step, steps: Sequence[Step]) -> list[Step]:
    """The steps above this one."""
    return list(steps[: [one.name for one in steps].index(step.name)])


def why_stale(
    step: Step,
    steps: Sequence[Step],
    book: Book,
    digest: Digest,
    *,
    forced: Collection[str] = (),
    will_run: Collection[str] = (),
) -> str | None:
    """Why the step must run; None where its record and its output hold. `will_run`: of a dry run, the steps above."""
    record = book.records.get(step.name)
    if step.name in forced:
        return "forced"
    if record is None:
        return "has not run yet"
    if record.state != "done":
        return _WORDS.get(record.state, f"failed (exit code {record.exit_code})")
    for name in (*step.reads, *(one for read in step.reads for one in _changers(read, before(step, steps)))):
        if name in will_run:
            return f"follows {name}"
    parts = parts_of(step, steps, book, digest)
    if parts != record.parts:
        return _difference(record.parts, parts)
    if step.changes is not None and book.outputs[step.changes].changed_by.get(step.name) != key_of(parts):
        return f"{step.changes} was made anew"
    if step.output is None:
        return None
    stale = functools.partial(why_stale, steps=steps, book=book, digest=digest, forced=forced, will_run=will_run)
    return _why_output(step, steps, book) or _why_read_early(step, steps, book, stale)


def _changers(name: str, steps: Sequence[Step]) -> list[str]:
    return [step.name for step in steps if step.changes == name]


def _why_output(step: Step, steps: Sequence[Step], book: Book) -> str | None:
    assert step.output is not None
    output = book.outputs[step.name]
    now = digest_of(step.output)
    if now != output.now:
        return f"{step.output.name} was {'removed' if now is None else 'changed by others'}"
    gone = [name for name in output.changed_by if name not in _changers(step.name, steps)]
    return f"{step.output.name} was changed by {gone[0]}, which the recipe no longer has" if gone else None


def _why_read_early(step: Step, steps: Sequence[Step], book: Book, stale: Callable[[Step], str | None]) -> str | None:
    """Why the output must be made anew for a step that reads it before another changes it, which it has already."""
    changed_by = book.outputs[step.name].changed_by
    below = steps[len(before(step, steps)) + 1 :]
    for reader in below:
        if step.name not in reader.reads or reader.changes is not None:
            continue  # what changes it in its place finds the same, whatever was changed before
        above = before(reader, steps)
        late = [
            one.name for one in below if one.name in changed_by and one not in above and not KINDS[one.command].judges
        ]
        if late and any(stale(one) for one in below if one == reader or (one in above and one.name in reader.reads)):
            return f"{reader.name} reads it as it was before {late[0]}"
    return None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first difference, in words."""
    if old.get("nopad") != new["nopad"]:
        return f"nopad {old.get('nopad')} became {new['nopad']}"
    for part, what in (("options", "option {}"), ("environment", "variable for {}")):
        before, after = old.get(part) or {}, new[part]
        for name in (*after, *(name for name in before if name not in after)):
            if before.get(name) != after.get(name):
                was, now = (_words(one.get(name)) for one in (before, after))
                return f"{what.format(name)}: {now}, was {was}"
    for part, what in (("files", "{} has changed"), ("steps", "{} has changed")):
        before, after = old.get(part) or {}, new[part]
        for name in (*after, *before):
            if before.get(name) != after.get(name):
                return what.format(name)
    return "the recipe has changed"


def _words(value: Any) -> str:
    return "not given" if value is None else value if isinstance(value, str) else ", ".join(map(str, value))
