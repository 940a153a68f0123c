"""A process of its own for what a process can measure only once: import, load, first call, peak memory, builds.

The parent writes a job as JSON and watches the child's memory; the child answers with one line of JSON. A child that
runs out of memory is a result, not a failure of the run.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nopad.bench.measure.machine import age_seconds, peak_bytes, resident_bytes
from nopad.bench.subjects.runners import RUNNERS, import_libraries
from nopad.bench.subjects.spec import Spec
from nopad.runtime.engines.out_of_memory import is_out_of_memory
from nopad.runtime.types import Text

COLD_TEXT = "A film that I would see again, and soon."
WATCH_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1


def in_calls(run: Callable[[Sequence[Text]], list[Any]], texts: Sequence[Text], batch: int) -> list[Any]:
    """Answers to all texts, in calls of `batch`."""
    if len(texts) <= batch:
        return run(texts)
    return [answer for at in range(0, len(texts), batch) for answer in run(texts[at : at + batch])]


def measure_job(spec: Spec, texts: Sequence[Text], batch: int) -> dict[str, Any]:
    """A job that opens a subject and runs one workload once."""
    return {"job": "measure", "spec": asdict(spec), "texts": list(texts), "batch": batch, "threads": spec.threads}


def run_job(job: Mapping[str, Any], *, memory_limit: int, timeout: float | None = None) -> dict[str, Any]:
    """Run a job in a child. The answer has a `status`: ok, missing, out of memory, failed, or not run (`timeout`).

    `memory_limit` (bytes, resident) is watched from here: limits on address space would count mapped files. The child
    ends with this process, and on Ctrl-C.
    """
    environment = {**os.environ, "RAYON_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as remarks:
        question.write(json.dumps(job).encode())
        question.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "nopad.bench.measure.child"],
            stdin=question,
            stdout=answer,
            stderr=remarks,
            env=environment,
            start_new_session=True,
        )
        try:
            reason, peak = _watch(child, memory_limit, timeout)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        if reason == "memory":
            note = f"stopped at {peak / 1e9:.2f} GB of resident memory; the limit is {memory_limit / 1e9:.2f} GB"
            return {"status": "out of memory", "note": note, "peak_bytes": peak}
        if reason == "time":
            return {"status": "not run", "note": f"stopped after {timeout or 0:.0f} s: the time limit"}
        answer.seek(0)
        remarks.seek(0)
        return _read(answer.read(), remarks.read().decode(errors="replace"), child.returncode, peak)


def _watch(child: subprocess.Popen[bytes], memory_limit: int, timeout: float | None) -> tuple[str, int]:
    """Wait for the child: why it was stopped (`memory`, `time`, else empty), and its peak resident memory."""
    start, peak = time.monotonic(), 0
    while child.poll() is None:
        peak = max(peak, resident_bytes(child.pid) or 0)
        if peak > memory_limit:
            return "memory", peak
        if timeout is not None and time.monotonic() - start > timeout:
            return "time", peak
        time.sleep(WATCH_SECONDS)
    return "", peak


def _read(answer: bytes, remarks: str, code: int, peak: int) -> dict[str, Any]:
    last = next((line.strip() for line in reversed(remarks.splitlines()) if line.strip()), "no message")
    try:
        result: dict[str, Any] = json.loads(answer)
        return result
    except ValueError:
        pass
    if code == -signal.SIGKILL or is_out_of_memory(remarks):
        note = "its process was killed, as the kernel does when memory runs out" if code < 0 else last
        return {"status": "out of memory", "note": note, "peak_bytes": peak}
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {"status": "failed", "note": f"its process ended with {ending}: {last}", "stage": "unknown"}


def main() -> None:
    """The child: a job on stdin, one line of JSON on stdout."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep what libraries print out of the answer
    job = json.load(sys.stdin)
    stage = ["open"]
    try:
        answer = {"status": "ok", **(_measure(job, stage) if job["job"] == "measure" else _build(job))}
    except Exception as error:
        answer = {**refusal(error), "stage": stage[-1]}
    print(json.dumps(answer), file=out, flush=True)
    os._exit(0)  # some libraries crash at teardown


def refusal(error: Exception) -> dict[str, Any]:
    """The `status` and `note` of a subject that raised this error."""
    from nopad.runtime.errors import EnvironmentProblem, NopadError

    note = str(error) if isinstance(error, NopadError) else f"{type(error).__name__}: {error}"
    note = " ".join(note.split())
    note = note if len(note) <= 400 else f"{note[:400]} ..."
    if is_out_of_memory(error):
        return {"status": "out of memory", "note": note}
    missing = isinstance(error, EnvironmentProblem | ModuleNotFoundError)
    return {"status": "missing" if missing else "failed", "note": note}


def _measure(job: Mapping[str, Any], stage: list[str]) -> dict[str, Any]:
    spec = Spec(**job["spec"])
    import_libraries(spec)
    since_start = age_seconds()
    imported = time.perf_counter()
    runner = RUNNERS[spec.runner](spec)
    loaded = time.perf_counter()
    stage.append("run")
    gc.collect()
    resident = resident_bytes(os.getpid())
    texts: list[Text] = [text if isinstance(text, str) else tuple(text) for text in job["texts"]]
    before = time.perf_counter()
    runner.run([COLD_TEXT])
    cold = time.perf_counter()
    in_calls(runner.run, texts, job["batch"])
    done = time.perf_counter()
    return {
        "import_seconds": since_start,
        "load_seconds": loaded - imported,
        "loaded_bytes": resident,
        "cold_seconds": cold - before,
        "seconds": done - cold,
        "peak_bytes": peak_bytes(),
        "threads": runner.threads(),
        "version": runner.version,
        "precision": runner.precision,
    }


def _build(job: Mapping[str, Any]) -> dict[str, Any]:
    from nopad.bench.subjects.builds import build

    return build(job)


if __name__ == "__main__":
    main()
