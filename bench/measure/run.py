"""One run: each workload first by every subject alone in a process of its own, then by all of them in turns.

Memory, load and first call come from the processes; times from the turns. A subject that ran out of memory alone is
not run again. Subjects that do not fit in memory together take turns in groups, each with the reference.
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
from nopad.bench.subjects.agreement import accuracy, compare, require_finite, smallest_cosine
from nopad.bench.subjects.plans import SubjectPlan
from nopad.bench.subjects.runners import RUNNERS, lacks
from nopad.bench.subjects.spec import Runner
from nopad.bench.workloads import Texts
from nopad.model.head import Head
from nopad.runtime.atomic import locked
from nopad.runtime.errors import EngineError
from nopad.runtime.types import FloatArray

Show = Callable[..., None]  # a line of progress: message, done, total
Answer = Mapping[str, Any]  # of a child process (nopad.bench.measure.child)
_CANNOT_OPEN = (("missing", "open"), ("failed", "open"))  # status and stage: the subject takes part in no workload
_PROCESS_FACTS = ("import_seconds", "load_seconds", "cold_seconds", "loaded_bytes")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run."""

    threads: int
    rounds: int
    seed: int
    head: Head
    memory_limit: int | None = None  # bytes of one process; None: 90 % of what is available
    time_limit: float | None = None  # seconds


class Run:
    """A run into `record`. `publish` is called whenever results were added."""

    def __init__(
        self,
        plans: Sequence[SubjectPlan],
        workloads: Sequence[Texts],
        record: Record,
        settings: Settings,
        *,
        publish: Callable[[], None],
        show: Show,
    ) -> None:
        self.plans = {plan.name: plan for plan in plans}
        self.workloads = workloads
        self.record = record
        self.settings = settings
        self.publish = publish
        self.show = show
        self._end: float | None = None  # of the time limit
        self._alone: dict[str, list[Answer]] = {name: [] for name in self.plans}  # answers of its own processes

    def measure(self) -> None:
        """Measure everything. Failures of a subject are results.

        Raises `UsageError` for a library that runs with another number of threads.
        """
        limit = self.settings.time_limit
        self._end = None if limit is None else time.monotonic() + limit
        for plan in self.plans.values():
            self._make_files(plan)
            self.publish()
        self.record.probe = Probe(self.settings.threads)
        self.record.probe.time()
        sizes = [float(texts.workload.padded_tokens) for texts in self.workloads]
        for index, texts in enumerate(self.workloads):
            now = time.monotonic()
            share = sizes[index] / sum(sizes[index:])
            deadline = None if self._end is None else now + (self._end - now) * share
            self._take_turns(self._measure_alone(texts), texts, deadline)
            self.publish()

    def _memory_limit(self) -> int:
        return self.settings.memory_limit or int(0.9 * machine.available_bytes())

    def _seconds_left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def _in_child(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return run_job(job, memory_limit=self._memory_limit(), timeout=self._seconds_left())

    def _leave_out(self, subject: str, answer: Answer) -> None:
        """Record that a subject takes part in no workload."""
        status = "missing" if answer["status"] == "missing" else "failed"
        self.record.subject(subject, status=status, note=answer["note"])

    # Files that a subject needs

    def _make_files(self, plan: SubjectPlan) -> None:
        """Make a subject's files unless they are in the cache, and record the build time."""
        missing = lacks(plan.spec)
        if missing is not None:
            self._leave_out(plan.name, {"status": "missing", "note": missing})
            return
        for folder, job in plan.builds:
            answer = self._build(plan, folder, job)
            if answer["status"] != "ok":
                self._leave_out(plan.name, answer)
                return
            if job["kind"] != "bert":
                self.record.subject(plan.name, build_seconds=answer["build_seconds"], file_bytes=answer["file_bytes"])
        if plan.timed_build is not None:
            self.show(f"{plan.name}: timing its export")
            with tempfile.TemporaryDirectory(prefix="nopad-bench-") as scratch:
                answer = self._in_child({**plan.timed_build, "folder": str(Path(scratch) / "bundle")})
            if answer["status"] == "ok":
                self.record.subject(plan.name, build_seconds=answer["build_seconds"])

    def _build(self, plan: SubjectPlan, folder: Path, job: Mapping[str, Any]) -> Answer:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.json"), f"making {folder}"):
            answer = builds.read_record(folder)
            if answer is None:
                self.show(f"{plan.name}: making {job['kind']}'s files")
                answer = builds.unavailable(job) or self._in_child({**job, "folder": str(folder)})
                if answer["status"] == "ok":
                    builds.write_record(folder, answer)
        return answer

    # Each subject alone

    def _measure_alone(self, texts: Texts) -> dict[str, Answer]:
        """Run each subject in a process of its own; the answers of those that can take turns."""
        ready: dict[str, Answer] = {}
        workload = texts.workload
        for name, plan in self.plans.items():
            if (name, workload.name) not in self.record.cells:
                continue
            if plan.longest is not None and workload.kind == "fixed" and workload.longest > plan.longest:
                note = f"{plan.spec.model} takes {plan.longest} tokens at most"
                self.record.cell(name, workload.name, "not run", note)
                continue
            if self._seconds_left() == 0:
                self.record.cell(name, workload.name, "not run", "the time limit had passed")
                continue
            self.show(f"{workload.name}: {name} in a process of its own")
            answer = self._in_child(measure_job(plan.spec, texts.texts, workload.batch))
            if answer["status"] == "ok":
                self._record_alone(name, workload.name, answer)
                ready[name] = answer
            elif not self._alone[name] and (answer["status"], answer.get("stage", "open")) in _CANNOT_OPEN:
                self._leave_out(name, answer)
            else:
                self.record.cell(
                    name, workload.name, answer["status"], answer["note"], peak_bytes=answer.get("peak_bytes")
                )
            self.publish()
        return ready

    def _record_alone(self, subject: str, workload: str, answer: Answer) -> None:
        require_threads({subject: answer["threads"]}, self.settings.threads)
        answers = self._alone[subject]
        answers.append(answer)
        medians = {key: statistics.median(earlier[key] for earlier in answers) for key in _PROCESS_FACTS}
        medians["loaded_bytes"] = int(medians["loaded_bytes"])
        opened = {key: answer[key] for key in ("version", "precision", "threads")}
        self.record.subject(subject, status="ok", **opened, **medians)
        self.record.cell(subject, workload, "not run", NOT_REACHED, peak_bytes=answer["peak_bytes"])

    # All subjects in turns

    def _take_turns(self, ready: Mapping[str, Answer], texts: Texts, deadline: float | None) -> None:
        """Take turns, as many subjects at once as fit in memory; `deadline` ends this workload's share of the time."""
        workload = texts.workload.name
        needs = {name: int(answer["peak_bytes"]) for name, answer in ready.items()}
        memory = self._memory_limit()
        first = self.record.reference if self.record.reference in ready else None
        groups, left_out = groups_that_fit(list(needs.items()), first, memory)
        for name in left_out:
            note = f"needs {needs[name] / 1e9:.2f} GB beside the reference; {memory / 1e9:.2f} GB are left"
            self.record.cell(name, workload, "out of memory", note)
        answers: dict[str, list[FloatArray]] = {}
        for index, names in enumerate(groups):
            now = time.monotonic()
            expected = sum(2 * float(ready[name]["seconds"]) for name in names)  # to warm up, and one round
            if self._end is not None and now + expected > self._end:
                for name in names:
                    if self.record.cells[name, workload].status == "not run":
                        self.record.cell(name, workload, "not run", "the time limit leaves no time for it")
                continue
            until = None if deadline is None else now + (deadline - now) / (len(groups) - index)
            rounds = range(index * self.settings.rounds, (index + 1) * self.settings.rounds)
            _Group(self, names, texts, answers).take_turns(rounds, until)


class _Group:
    """Subjects that are open beside each other and take turns on one workload.

    `answers`: those to this workload so far, by subject; each group adds its own.
    """

    def __init__(self, run: Run, names: Sequence[str], texts: Texts, answers: dict[str, list[FloatArray]]) -> None:
        self.run, self.texts, self.answers = run, texts, answers
        self.workload = texts.workload.name
        self.plans = [run.plans[name] for name in names]
        self.earlier = {name: run.record.cells[name, self.workload] for name in names}  # the reference's has turns
        self.runners: dict[str, Runner] = {}
        self.estimates: dict[str, float] = {}  # seconds of a pass
        self.notes: dict[str, str] = {}

    def take_turns(self, rounds: range, deadline: float | None) -> None:
        """Open, check and time every subject, then close them."""
        try:
            for plan in self.plans:
                self._open(plan)
            self._require_threads()
            for plan in self.plans:
                self._check(plan)
            take_turns(
                self.runners,
                self.texts,
                self.estimates,
                rounds=rounds,
                order=random.Random(f"{self.run.settings.seed} {self.workload}"),
                deadline=deadline,
                each_round=lambda times: self._record_times(times, rounds),
                failed=self._fail,
            )
            self._require_threads()
        finally:
            for runner in self.runners.values():
                with contextlib.suppress(Exception):
                    runner.close()
            self.runners.clear()
            gc.collect()

    def _cell(self, subject: str, status: Any, note: str, **changes: Any) -> None:
        self.run.record.cell(subject, self.workload, status, note, **changes)

    def _require_threads(self) -> None:
        threads = {name: runner.threads() for name, runner in self.runners.items()}
        require_threads(threads, self.run.settings.threads)

    def _open(self, plan: SubjectPlan) -> None:
        self.run.show(f"{self.workload}: opening {plan.name}")
        try:
            runner = self.runners[plan.name] = RUNNERS[plan.spec.runner](plan.spec)
            answers, self.estimates[plan.name] = warm_up(runner, self.texts)
            require_finite(answers)
            self.answers[plan.name] = answers
            real, computed = _tokens(runner, self.texts)
        except Exception as error:
            self._fail(plan.name, error)
            return
        own = real if plan.spec.own_tokenizer else None
        self._cell(plan.name, "not run", NOT_REACHED, computed_tokens=computed, tokens=own)

    def _check(self, plan: SubjectPlan) -> None:
        """Compare the answers of a subject with its yardstick's, and with the labels."""
        if plan.name not in self.runners:
            return
        head, answers = self.run.settings.head, self.answers[plan.name]
        scores: dict[str, Any] = {}
        if not plan.random_weights:
            scores["accuracy"] = accuracy(answers, self.texts.targets, head)
        try:
            self.notes[plan.name], yardstick = self._yardstick(plan)
            if yardstick is not None:
                scores["agreement"], scores["logit_difference"] = compare(answers, self.answers[yardstick], head)
                if head.task == "embeddings":
                    scores["cosine"] = smallest_cosine(answers, self.answers[yardstick])
        except EngineError as error:
            self._fail(plan.name, error)
            return
        self._cell(plan.name, "not run", NOT_REACHED, **scores)

    def _yardstick(self, plan: SubjectPlan) -> tuple[str, str | None]:
        """A note, and the subject to compare answers with; where the yardstick has none, another subject that has it.

        Raises `EngineError` where nothing has answers.
        """
        if plan.yardstick is None or plan.yardstick in self.answers:
            return "", plan.yardstick
        for name in self.answers:
            if name != plan.name and self.run.plans[name].yardstick == plan.yardstick:
                return f"agreement is with {name}: {plan.yardstick} has no answers here", name
        raise EngineError(f"its answers could not be checked: {plan.yardstick} has none here")

    def _fail(self, subject: str, error: Exception) -> None:
        answer = refusal(error)
        status = "out of memory" if answer["status"] == "out of memory" else "failed"
        self._cell(subject, status, answer["note"], seconds=(), rounds=())
        with contextlib.suppress(Exception):
            self.runners.pop(subject).close()

    def _record_times(self, times: Mapping[str, Times], rounds: range) -> None:
        """Record the times so far, after each round."""
        for subject, turns in times.items():
            if subject in self.runners and turns.seconds:
                before = self.earlier[subject]
                seconds, numbers = (*before.seconds, *turns.seconds), (*before.rounds, *turns.rounds)
                self._cell(subject, "ok", self.notes[subject], seconds=seconds, rounds=numbers)
        assert self.run.record.probe is not None
        self.run.record.probe.time()
        done = max((turns.rounds[-1] for turns in times.values() if turns.rounds), default=rounds.start)
        self.run.show(f"{self.workload}: taking turns", done - rounds.start + 1, len(rounds))
        self.run.publish()


def _tokens(runner: Runner, texts: Texts) -> tuple[int, int]:
    """Real and computed tokens of one pass."""
    batch, every = texts.workload.batch, texts.texts
    calls = [runner.tokens(every[at : at + batch]) for at in range(0, len(every), batch)]
    return sum(real for real, _ in calls), sum(computed for _, computed in calls)
