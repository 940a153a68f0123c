"""What a teacher has answered is kept: through errors, interruptions and kills, for all processes and trials."""

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from teacher_answers import LABELS, ask, data_of
from training_samples import sentences, write_jsonl

from nopad.runtime.cli import run
from nopad.training import teacher as teaching
from nopad.training import trainer
from nopad.training.run_folder import KEPT
from nopad.training.teacher import taught


def test_answers_are_kept_for_the_same_teacher_and_rows_alone(
    teacher: Path, teacher_bundle: Path, tmp_path: Path
) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(40)], tmp_path)
    first = ask(data, teacher, tmp_path)
    kept = tmp_path / KEPT
    intact = kept.read_bytes()
    key = json.loads(intact[8 : 8 + int.from_bytes(intact[:8], "little")])["__metadata__"]
    save_file({"answers": load_file(kept)["answers"] + 1}, kept, metadata=key)
    assert np.array_equal(ask(data, teacher, tmp_path), first + 1)  # not asked again
    assert np.abs(ask(data, teacher_bundle, tmp_path) - first).max() <= 1e-4  # another teacher is
    kept.write_bytes(intact[: len(intact) // 2])
    assert np.array_equal(ask(data, teacher, tmp_path), first)
    assert kept.read_bytes() == intact


def test_answers_are_not_kept_for_labels_in_another_order(
    teacher: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_make_trainer", interrupted)
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(20)))  # whose labels are 0 and 1
    start = ["train", "--train", data, "--from-scratch", str(scratch), "--teacher", str(teacher), "--max-length", "64"]
    answers = []
    for labels in (LABELS, LABELS[::-1]):
        assert run([*start, "--labels", ",".join(labels), "--output", str(tmp_path / "out"), "--quiet"]) == 130
        answers.append(load_file(tmp_path / "out.training" / KEPT)["answers"])
    assert np.array_equal(answers[0], answers[1][:, ::-1]) and np.ptp(answers[0], axis=1).max() > 0


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each question to a teacher that is a checkpoint; -1 where one is opened."""
    inner = teaching._open_checkpoint
    seen: list[int] = []

    def counted(*args: Any) -> Any:
        seen.append(-1)
        own = inner(*args)

        def ask(rows: Any) -> Any:
            seen.append(len(next(iter(rows.values()))))
            return own.ask(rows)

        return replace(own, ask=ask)

    monkeypatch.setattr(teaching, "_open_checkpoint", counted)
    monkeypatch.setattr(teaching, "_ASKED", 16)
    return seen


def test_a_log_says_how_far_the_teacher_is(teacher: Path, tmp_path: Path, opened: list[int]) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(60)], tmp_path)
    log = Console(file=io.StringIO(), width=200)
    taught(data, str(teacher), kept=tmp_path / KEPT, digest="one", console=log, log_every=0.0)
    lines = log.file.getvalue().splitlines()  # type: ignore[attr-defined]
    told = [line for line in lines if "rows answered" in line]
    assert len(told) == len(opened) - 1 and told[0].startswith("teacher: 16 of ") and told[-1].endswith(" 0 s left")


def test_what_a_teacher_has_answered_before_an_interruption_is_not_asked_again(
    teacher: Path, tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(60)], tmp_path)
    whole = ask(data, teacher, tmp_path / "whole")
    opened.clear()
    counted = teaching._open_checkpoint

    def interrupted(*args: Any) -> Any:
        own = counted(*args)

        def ask(rows: Any) -> Any:
            if len(opened) == 3:
                raise KeyboardInterrupt
            return own.ask(rows)

        return replace(own, ask=ask)

    with monkeypatch.context() as patch:
        patch.setattr(teaching, "_open_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(data, teacher, tmp_path / "kept")
    assert np.array_equal(ask(data, teacher, tmp_path / "kept"), whole)
    assert opened == [-1, 16, 16, -1, 16, len(whole) - 48]


_KILLED = """
import sys, threading
from nopad.runtime.cli import run
from nopad.training import teacher

teacher._ASKED, teacher._KEEP_SECONDS, teacher._KEEP_SHARE = 16, 0.0, 1e9  # kept after each of its batches
inner, asked = teacher._open_checkpoint, []

def slow(*args):
    own = inner(*args)

    def ask(rows):
        asked.append(rows)
        if len(asked) == 3:
            threading.Event().wait()  # for the end
        return own.ask(rows)

    return teacher.dataclasses.replace(own, ask=ask)

teacher._open_checkpoint = slow
run(sys.argv[1:])
"""


def test_a_process_that_was_killed_while_it_asked_goes_on_where_it_was(
    teacher: Path, scratch: Path, tmp_path: Path, opened: list[int]
) -> None:
    rows = [{**row, "label": LABELS[row["label"]]} for row in sentences(80)]
    start = ["train", "--train", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--from-scratch", str(scratch)]
    start += ["--max-length", "32", "--threads", "1", "--epochs", "1", "--labels", ",".join(LABELS), "--quiet"]
    start += ["--teacher", str(teacher), "--output", str(tmp_path / "out")]
    kept = tmp_path / "out.training" / KEPT

    def count() -> int:
        return len(load_file(kept)["answers"]) if kept.exists() else 0

    process = subprocess.Popen([sys.executable, "-c", _KILLED, *start])
    try:
        while count() < 32:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL and count() == 32
    (kept.parent / f".{KEPT}.abc.partial").write_bytes(b"cut short")  # as if it had been killed while it wrote
    assert run(start) == 0
    assert opened[:2] == [-1, 16] and sum(opened[1:]) + 32 == 72, "the others were not asked again"
    assert not kept.parent.exists()


def test_answers_are_written_seldom_enough_to_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []

    def keep(found: np.ndarray[Any, Any]) -> None:
        clock[0] += len(found) / 10  # seconds: all are written each time
        written.append((clock[0], len(found)))

    def parts() -> Any:
        for n in range(1000):
            clock[0] += 30.0
            yield np.full((1, 2), n, dtype=np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr(teaching, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with pytest.raises(KeyboardInterrupt):
        teaching._collected(parts(), keep)
    assert written[0][0] <= 60.2 and written[-1][1] == 1000
    spent = sum(count / 10 for _, count in written[:-1])
    assert 50 < spent <= 0.03 * clock[0] and len(written) >= 20


def test_of_several_processes_the_first_asks_and_the_others_wait_for_its_answers(
    teacher: Path, tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(40)], tmp_path)
    whole = ask(data, teacher, tmp_path / "first")
    opened.clear()
    kept, other = tmp_path / "first" / KEPT, tmp_path / "other" / KEPT
    other.parent.mkdir()
    answers = load_file(kept)["answers"]
    with safe_open(kept, framework="numpy") as file:
        key = file.metadata()
    save_file({"answers": answers[:16]}, other, metadata=key)  # of an interrupted run
    monkeypatch.setenv("RANK", "1")
    later = threading.Timer(1.5, lambda: shutil.copy(kept, other.with_name("whole")).rename(other))
    begun = time.monotonic()
    later.start()
    try:
        assert np.array_equal(ask(data, teacher, tmp_path / "other"), whole)
    finally:
        later.cancel()
    assert time.monotonic() - begun >= 1.5 and opened == []


def test_a_run_that_failed_before_it_saved_and_all_trials_of_a_sweep_ask_once(
    teacher: Path,
    scratch: Path,
    tmp_path: Path,
    opened: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("optuna", reason="sweeps need Optuna")
    rows = [{**row, "label": LABELS[row["label"]]} for row in sentences(40)]
    start = ["train", "--train", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--from-scratch", str(scratch)]
    start += ["--max-length", "32", "--threads", "1", "--epochs", "1", "--labels", ",".join(LABELS)]
    start += ["--teacher", str(teacher)]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_make_trainer", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run([*start, "--output", str(tmp_path / "a")])
    assert "teacher: out, reads up to 64 tokens of a text" in capsys.readouterr().err
    assert run([*start, "--output", str(tmp_path / "a"), "--quiet"]) == 0
    assert opened.count(-1) == 1 and not (tmp_path / "a.training").exists()
    sweep = ["--trials", "2", "--sweep", "temperature=1,4", "--quiet"]
    assert run([*start, "--output", str(tmp_path / "b"), *sweep]) == 0
    assert opened.count(-1) == 2 and not (tmp_path / "b.sweep").exists()
