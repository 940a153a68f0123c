"""The child process: what it measures, and how it ends."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from runners import spec

from nopad.bench.measure import child as isolated
from nopad.bench.measure.child import in_calls, measure_job, refusal, run_job
from nopad.runtime.engines.out_of_memory import is_out_of_memory
from nopad.runtime.errors import EngineError, EnvironmentProblem

GB = 10**9


def test_a_subject_is_measured_from_nothing() -> None:
    answer = run_job(measure_job(spec(), ["a dull film", "splendid"], 1), memory_limit=4 * GB)
    assert answer["status"] == "ok", answer
    assert answer["threads"] == 1 and answer["precision"] == "fp32"
    assert 0 < answer["cold_seconds"] < answer["import_seconds"] < 60
    assert 30e6 < answer["loaded_bytes"] <= answer["peak_bytes"] < 1 * GB


def test_too_little_memory_is_a_result() -> None:
    answer = run_job(measure_job(spec(), ["a film"], 1), memory_limit=20_000_000)
    assert answer["status"] == "out of memory"
    assert "the limit is 0.02 GB" in answer["note"] and answer["peak_bytes"] > 20_000_000


def test_a_time_limit_ends_it() -> None:
    start = time.monotonic()
    answer = run_job(measure_job(spec(), ["a film"], 1), memory_limit=4 * GB, timeout=0.05)
    assert answer["status"] == "not run" and "time limit" in answer["note"]
    assert time.monotonic() - start < 10


def test_a_process_that_the_kernel_kills_ran_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[int] = []

    def kill() -> None:
        while not children:
            time.sleep(0.005)
        os.kill(children[0], signal.SIGKILL)

    watched = isolated._watch

    def watch(child: Any, *limits: Any) -> Any:
        children.append(child.pid)
        return watched(child, *limits)

    monkeypatch.setattr(isolated, "_watch", watch)
    killer = threading.Thread(target=kill)
    killer.start()
    answer = run_job(measure_job(spec(), ["a film"], 1), memory_limit=4 * GB)
    killer.join()
    assert answer["status"] == "out of memory" and "killed" in answer["note"]


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    answer = run_job(measure_job(spec(path=str(tmp_path / "no")), ["a film"], 1), memory_limit=4 * GB)
    assert answer["status"] == "failed" and answer["stage"] == "open" and "no bundle at" in answer["note"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (EngineError("ONNX Runtime failed on 9 tokens: std::bad_alloc"), "out of memory"),
        (RuntimeError("Failed to allocate memory for requested buffer of size 12884901888"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), "out of memory"),
        (EnvironmentProblem("openvino is not installed"), "missing"),
        (ModuleNotFoundError("No module named 'optimum'"), "missing"),
        (ValueError("another"), "failed"),
    ],
)
def test_errors_are_told_apart(error: Exception, status: str) -> None:
    assert refusal(error)["status"] == status
    assert is_out_of_memory(error) == (status == "out of memory")


def test_calls_keep_the_order() -> None:
    asked: list[int] = []

    def run(texts: Any) -> list[str]:
        asked.append(len(texts))
        return [text.upper() for text in texts]

    assert in_calls(run, list("abcde"), 2) == list("ABCDE") and asked == [2, 2, 1]
