"""One run: each workload first by every subject alone in a process of its own, then by all of them in turns.

Memory, load and first call come from the processes; times from the turns. A subject that ran out of memory alone is
not asked again. Those that do not fit beside each other take turns in groups, each with the reference.
"""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.bench.measure import machine
from nopad.bench.measure.child import measure_job, refusal, run_job
from nopad.bench.measure.probe import Probe
from nopad.bench.measure.record import NOT_REACHED, Record
from nopad.bench.measure.turns import Times, groups_that_fit, require_threads, take_turns, warm_up
from nopad.bench.subjects import builds
from nopad.bench.subjects.agreement import accuracy, compare, require_finite
from nopad.bench.subjects.contenders import Contender
from nopad.bench.subjects.runners import RUNNERS, Runner, lacks
from nopad.bench.workloads import Texts
from nopad.model.head import Head
from nopad.runtime.atomic import locked
from nopad.runtime.errors import EngineError
from nopad.runtime.types import FloatArray

Show = Callable[..., None]  # a line of progress: message, done, total
_CANNOT_OPEN = (("missing", "open"), ("failed", "open"))  # in no workload
_PROCESS_FACTS = ("import_seconds", "load_seconds", "cold_seconds", "loaded_bytes")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is made."""

    threads: int
    rounds: int
    seed: int
    head: Head
    memory_limit: int | None = None  # bytes of one process; None: 90 % of what is available
    time_limit: float | None = None  # seconds


def run(
    contenders: Sequence[Contender],
    workloads: Sequence[Texts],
    record: Record,
    settings: Settings,
    *,
    publish: Callable[[], None],
    show: Show,
) -> None:
    """Measure everything into `record`; `publish` is called whenever there is more to see.

    Raises `UsageError` for a library that does not take the number of threads. Failures of a subject are results.
    """
    end = None if settings.time_limit is None else time.monotonic() + settings.time_limit
    facts: dict[str, list[Mapping[str, Any]]] = {one.name: [] for one in contenders}
    for one in contenders:
        _make(one, record, settings, end, show)
        publish()
    record.probe = Probe(settings.threads)
    record.probe.time()
    shares = [float(texts.workload.padded_tokens) for texts in workloads]
    for index, texts in enumerate(workloads):
        now = time.monotonic()
        mine = None if end is None else now + (end - now) * shares[index] / sum(shares[index:])
        ready = _alone(contenders, texts, record, settings, facts, end, publish, show)
        _together(ready, texts, record, settings, (mine, end), publish, show)
        publish()


def _limit(settings: Settings) -> int:
    return settings.memory_limit or int(0.9 * machine.available_bytes())


def _make(one: Contender, record: Record, settings: Settings, end: float | None, show: Show) -> None:
    """The files that a subject needs, from the cache or made now; and the time of making them."""
    missing = lacks(one.spec)
    if missing is not None:
        record.subject(one.name, status="missing", note=missing)
        return
    for folder, job in one.builds:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.json"), f"making {folder}"):
            answer = builds.built(folder)
            if answer is None:
                show(f"{one.name}: making {job['kind']}'s files")
                answer = builds.unavailable(job) or run_job(
                    {**job, "folder": str(folder)}, memory_limit=_limit(settings), timeout=_left(end)
                )
                if answer["status"] == "ok":
                    builds.record(folder, answer)
        if answer["status"] != "ok":
            record.subject(one.name, status=_subject_status(answer["status"]), note=answer["note"])
            return
        if job["kind"] != "bert":
            record.subject(one.name, build_seconds=answer["build_seconds"], file_bytes=answer["file_bytes"])
    if one.timed_build is not None:
        show(f"{one.name}: timing its export")
        with tempfile.TemporaryDirectory(prefix="nopad-bench-") as scratch:
            job = {**one.timed_build, "folder": str(Path(scratch) / "bundle")}
            answer = run_job(job, memory_limit=_limit(settings), timeout=_left(end))
        if answer["status"] == "ok":
            record.subject(one.name, build_seconds=answer["build_seconds"])


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _subject_status(status: str) -> Any:
    return "missing" if status == "missing" else "failed"


def _alone(
    contenders: Sequence[Contender],
    texts: Texts,
    record: Record,
    settings: Settings,
    facts: dict[str, list[Mapping[str, Any]]],
    end: float | None,
    publish: Callable[[], None],
    show: Show,
) -> list[tuple[Contender, Mapping[str, Any]]]:
    """Each subject in a process of its own; those that can go on, with what was found."""
    ready: list[tuple[Contender, Mapping[str, Any]]] = []
    name = texts.workload.name
    for one in contenders:
        if (one.name, name) not in record.cells:
            continue
        if one.longest is not None and texts.workload.kind == "fixed" and texts.workload.longest > one.longest:
            record.cell(one.name, name, "not run", f"{one.spec.model} takes {one.longest} tokens at most")
            continue
        left = _left(end)
        if left == 0:
            record.cell(one.name, name, "not run", "the time limit had passed")
            continue
        show(f"{name}: {one.name} in a process of its own")
        job = measure_job(one.spec, texts.texts, texts.workload.batch)
        answer = run_job(job, memory_limit=_limit(settings), timeout=left)
        status = answer["status"]
        if status == "ok":
            require_threads({one.name: answer["threads"]}, settings.threads)
            facts[one.name].append(answer)
            medians = {key: statistics.median(fact[key] for fact in facts[one.name]) for key in _PROCESS_FACTS}
            medians["loaded_bytes"] = int(medians["loaded_bytes"])
            told = {key: answer[key] for key in ("version", "precision", "threads")}
            record.subject(one.name, status="ok", **told, **medians)
            record.cell(one.name, name, "not run", NOT_REACHED, peak_bytes=answer["peak_bytes"])
            ready.append((one, answer))
        elif not facts[one.name] and (status, answer.get("stage", "open")) in _CANNOT_OPEN:
            record.subject(one.name, status=_subject_status(status), note=answer["note"])
        else:
            record.cell(one.name, name, status, answer["note"], peak_bytes=answer.get("peak_bytes"))
        publish()
    return ready


def _together(
    ready: Sequence[tuple[Contender, Mapping[str, Any]]],
    texts: Texts,
    record: Record,
    settings: Settings,
    ends: tuple[float | None, float | None],
    publish: Callable[[], None],
    show: Show,
) -> None:
    """All subjects in turns, as many at once as fit in memory; `ends`: of this workload's share, and of the run."""
    name = texts.workload.name
    specs = {one.name: one for one, _ in ready}
    first = record.reference if record.reference in specs else None
    needs = [(one.name, int(answer["peak_bytes"])) for one, answer in ready]
    room = _limit(settings)
    groups, left_out = groups_that_fit(needs, first, room)
    for subject in left_out:
        note = f"needs {dict(needs)[subject] / 1e9:.2f} GB beside the reference; {room / 1e9:.2f} GB are left"
        record.cell(subject, name, "out of memory", note)
    answers: dict[str, list[FloatArray]] = {}
    expected = {one.name: 2 * float(answer["seconds"]) for one, answer in ready}  # to warm up, and one round
    deadline, end = ends
    for index, group in enumerate(groups):
        now = time.monotonic()
        if end is not None and now + sum(expected[one] for one in group) > end:
            for one in group:
                if record.cells[one, name].status == "not run":
                    record.cell(one, name, "not run", "the time limit leaves no time for it")
            continue
        until = None if deadline is None else now + (deadline - now) / (len(groups) - index)
        rounds = range(index * settings.rounds, (index + 1) * settings.rounds)
        _group([specs[one] for one in group], texts, record, settings, rounds, until, answers, publish, show)


def _group(
    group: Sequence[Contender],
    texts: Texts,
    record: Record,
    settings: Settings,
    rounds: range,
    deadline: float | None,
    answers: dict[str, list[FloatArray]],
    publish: Callable[[], None],
    show: Show,
) -> None:
    name = texts.workload.name
    runners: dict[str, Runner] = {}
    estimates: dict[str, float] = {}
    notes: dict[str, str] = {}
    models = {subject.name: (subject.model, subject.name.startswith("bert-")) for subject in record.subjects.values()}
    earlier = {one.name: record.cells[one.name, name] for one in group}

    def fail(subject: str, error: Exception) -> None:
        found = refusal(error)
        record.cell(subject, name, "out of memory" if found["status"] == "out of memory" else "failed", found["note"],
                    seconds=(), rounds=())  # fmt: skip
        with contextlib.suppress(Exception):
            runners.pop(subject).close()

    def keep(times: Mapping[str, Times]) -> None:
        for subject, found in times.items():
            if subject in runners and found.seconds:
                was = earlier[subject]
                record.cell(subject, name, "ok", notes[subject], seconds=(*was.seconds, *found.seconds),
                            rounds=(*was.rounds, *found.rounds))  # fmt: skip
        assert record.probe is not None
        record.probe.time()
        done = max((one.rounds[-1] for one in times.values() if one.rounds), default=rounds.start)
        show(f"{name}: taking turns", done - rounds.start + 1, len(rounds))
        publish()

    try:
        for one in group:
            show(f"{name}: opening {one.name}")
            try:
                runners[one.name] = RUNNERS[one.spec.runner](one.spec)
                found, estimates[one.name] = warm_up(runners[one.name], texts)
                require_finite(found)
                answers[one.name] = found
                tokens = _tokens(runners[one.name], texts)
            except Exception as error:
                fail(one.name, error)
                continue
            own = tokens[0] if one.spec.own_tokenizer else None
            record.cell(one.name, name, "not run", NOT_REACHED, computed_tokens=tokens[1], tokens=own)
        require_threads({name: one.threads() for name, one in runners.items()}, settings.threads)
        for one in group:
            if one.name in runners:
                try:
                    notes[one.name], scores = _checked(one, texts, settings.head, answers, models)
                    record.cell(one.name, name, "not run", NOT_REACHED, **scores)
                except EngineError as error:
                    fail(one.name, error)
        take_turns(
            runners,
            texts,
            estimates,
            rounds=rounds,
            order=random.Random(f"{settings.seed} {name}"),
            deadline=deadline,
            each_round=keep,
            failed=fail,
        )
        require_threads({name: one.threads() for name, one in runners.items()}, settings.threads)
    finally:
        for runner in runners.values():
            with contextlib.suppress(Exception):
                runner.close()
        runners.clear()
        gc.collect()


def _tokens(runner: Runner, texts: Texts) -> tuple[int, int]:
    """Real and computed tokens of one pass."""
    batch, every = texts.workload.batch, texts.texts
    calls = [runner.tokens(every[at : at + batch]) for at in range(0, len(every), batch)]
    return sum(real for real, _ in calls), sum(computed for _, computed in calls)


def _checked(
    one: Contender,
    texts: Texts,
    head: Head,
    answers: Mapping[str, list[FloatArray]],
    models: Mapping[str, tuple[str, bool]],
) -> tuple[str, dict[str, Any]]:
    """A note, and the cell's `agreement`, `logit_difference` and `accuracy`; `models` says whose answers are like.

    Raises `EngineError` where the answers cannot be compared.
    """
    mine = answers[one.name]
    right = None if one.random_weights else accuracy(mine, texts.targets, head)
    if one.yardstick is None:
        return "", {"accuracy": right}
    other, note = one.yardstick, ""
    if other not in answers:
        like = [name for name in answers if name != one.name and models[name] == models[one.name]]
        if not like:
            raise EngineError(f"its answers could not be checked: {other} has none here")
        other, note = like[0], f"agreement is with {like[0]}: {other} has no answers here"
    agreement, difference = compare(mine, answers[other], head)
    return note, {"agreement": agreement, "logit_difference": difference, "accuracy": right}
