"""The output file of `nopad predict`: complete or absent, the same bytes after a resume, never of another job."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from predict_command import NOPAD, command

from nopad.runtime.batching import WINDOW
from nopad.runtime.predictor import Model

NAME = "modernbert-single-mean"
Bundles = Callable[[str], Path]
Predict = Callable[..., tuple[int, list[dict[str, Any]], str]]

FULL_DISK = (  # a file may not grow beyond 64 KiB
    "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)); "
    "from nopad.runtime.cli import run; sys.exit(run(sys.argv[1:]))"
)


def write_texts(path: Path, count: int) -> Path:
    """Texts of many lengths; every 100th line is bad."""
    rows = [{"text": f"film {i} " + "and more " * (i % 9)} if i % 100 else {"x": i} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_old_output_stands_until_the_new_one_is_whole(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.txt").write_text("a film\nsplendid\n")
    output, partial = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.partial"
    output.write_text("old")
    seen: list[tuple[str, bool]] = []
    real = Model.results

    def watched(self: Model, *arguments: Any, **options: Any) -> Iterator[Any]:
        for answer in real(self, *arguments, **options):
            seen.append((output.read_text(), partial.exists()))
            yield answer

    monkeypatch.setattr(Model, "results", watched)
    code, rows, _ = predict("--input", tmp_path / "t.txt", "--output", output)
    assert (code, rows) == (0, []) and seen == [("old", True)] * 2
    assert [json.loads(line)["line"] for line in output.read_text().splitlines()] == [1, 2] and not partial.exists()


@pytest.fixture
def interrupted(predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """620 texts to `o`, interrupted after the first windows of them; returns the input."""

    def begin(whole_windows: int) -> Path:
        calls, real = [0], Model.results

        def results(self: Model, *arguments: Any, **options: Any) -> Iterator[Any]:
            calls[0] += 1
            if calls[0] > whole_windows:
                raise KeyboardInterrupt
            return real(self, *arguments, **options)

        source = write_texts(tmp_path / "t.jsonl", 620)
        with monkeypatch.context() as patch:
            patch.setattr(Model, "results", results)
            assert predict("--input", source, "--output", tmp_path / "o")[0] == 130
        return source

    return begin


@pytest.mark.parametrize("torn", [b'{"line": 61', b"\0\0\0\n", b'{"line": 999}', b'{"line": 999}\n'])
def test_a_torn_partial_is_cut_and_its_failures_still_count(
    torn: bytes, predict: Predict, interrupted: Callable[[int], Path], tmp_path: Path
) -> None:
    source, whole, output = interrupted(1), tmp_path / "whole", tmp_path / "o"
    assert predict("--input", source, "--output", whole)[0] == 3
    wanted = whole.read_bytes()
    (tmp_path / "o.partial").write_bytes(b"".join(wanted.splitlines(keepends=True)[:600]) + torn)
    code, _, err = predict("--input", source, "--output", output, "--resume")
    assert code == 3 and "7 of 620 lines failed" in err
    assert f"resuming after line {WINDOW} of" in err  # texts share the same batches again
    assert output.read_bytes() == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"t.jsonl", "whole", "o"}


def test_another_job_is_not_resumed(predict: Predict, interrupted: Callable[[int], Path], tmp_path: Path) -> None:
    source, output, partial = interrupted(1), tmp_path / "o", tmp_path / "o.partial"
    begun = partial.read_bytes()
    assert begun.count(b"\n") == WINDOW
    resume = ["--input", source, "--output", output, "--resume"]
    options = {"top_k": ["--top-k", "1"], "truncation": ["--truncation", "error"], "fields": ["--field", "x"]}
    for name, other in options.items():
        code, _, err = predict(*resume, *other)
        assert code == 2 and f"started with another {name}:" in err
    assert predict(*resume, name="modernbert-multi-cls")[0] == 2
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    code, _, err = predict(*resume)
    assert code == 2 and "started with another input" in err and "without --resume" in err
    (tmp_path / "o.partial.job").unlink()
    assert predict(*resume)[0] == 2
    assert partial.read_bytes() == begun and not output.exists()
    assert predict(*resume[:-1])[0] == 3 and output.read_bytes().count(b"\n") == 621


def test_an_interruption_before_the_first_answer_leaves_nothing(interrupted: Callable[[int], Path]) -> None:
    source = interrupted(0)
    assert list(source.parent.iterdir()) == [source]


def test_two_processes_do_not_write_one_output(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a film\n")
    with (tmp_path / "o.partial").open("ab") as other:
        other.write(b"theirs")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = predict("--input", tmp_path / "t.txt", "--output", tmp_path / "o")
    assert code == 3 and f"another process is writing {tmp_path}/o" in err
    assert (tmp_path / "o.partial").read_bytes() == b"theirs" and not (tmp_path / "o").exists()


def test_a_linked_output_stays_a_link_and_the_input_is_never_overwritten(predict: Predict, tmp_path: Path) -> None:
    source = tmp_path / "t.txt"
    source.write_text("a film\n")
    (tmp_path / "link").symlink_to("target")
    assert predict("--input", source, "--output", tmp_path / "link")[0] == 0
    assert os.readlink(tmp_path / "link") == "target" and b'"line": 1' in (tmp_path / "target").read_bytes()
    (tmp_path / "o.partial").write_text("a film\n")
    (tmp_path / "same").symlink_to(source)
    for given, output in ((source, "same"), (tmp_path / "same", "t.txt"), (tmp_path / "o.partial", "o")):
        code, _, err = predict("--input", given, "--output", tmp_path / output)
        assert code == 2 and "would overwrite the --input file" in err
    assert source.read_text() == (tmp_path / "o.partial").read_text() == "a film\n"
    for device in ("/dev/null", "/dev/stdout", "/dev/not-there"):
        assert predict("--input", source, "--output", device)[0] == 2


def test_a_dash_is_stdout(predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("a film\n")
    code, rows, _ = predict("--input", "t.txt", "--output", "-")
    assert code == 0 and rows[0]["line"] == 1 and not (tmp_path / "-").exists()


def test_a_bar_is_shown_when_the_answers_go_elsewhere(bundle: Bundles, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "t.jsonl", 20)
    terminal = {**os.environ, "FORCE_COLOR": "1"}
    for output in ([], ["--output", tmp_path / "o"]):
        arguments = command(bundle(NAME), "--input", source, *output)
        done = subprocess.run(arguments, capture_output=True, text=True, env=terminal, timeout=120)
        assert done.returncode == 3 and "20/?" in done.stderr, done.stderr


def test_an_interrupted_run_is_resumed_to_the_same_bytes(bundle: Bundles, predict: Predict, tmp_path: Path) -> None:
    source, output, whole = write_texts(tmp_path / "t.jsonl", 10_000), tmp_path / "o", tmp_path / "whole"
    partial = tmp_path / "o.partial"
    with subprocess.Popen(command(bundle(NAME), "-i", source, "-o", output), stderr=subprocess.PIPE) as running:
        while running.poll() is None and not (partial.exists() and b"\n" in partial.read_bytes()):
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and b"--resume" in err and b"Traceback" not in err and not output.exists(), err
    assert 0 < partial.read_bytes().count(b"\n") < 10_000
    assert predict("-i", source, "-o", output, "--resume")[0] == predict("-i", source, "-o", whole)[0] == 3
    assert output.read_bytes() == whole.read_bytes() and not partial.exists()


def test_a_full_disk_names_the_file_and_can_be_resumed(bundle: Bundles, predict: Predict, tmp_path: Path) -> None:
    source, output, whole = write_texts(tmp_path / "t.jsonl", 1500), tmp_path / "o", tmp_path / "whole"
    arguments = command(bundle(NAME), "-i", source, "-o", output)[len(NOPAD) :]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert "disk is full; free some space, or name another --output" in done.stderr and "Traceback" not in done.stderr
    assert f"{output}.partial holds the answers so far: go on with --resume" in done.stderr and not output.exists()
    assert predict("-i", source, "-o", output, "--resume")[0] == predict("-i", source, "-o", whole)[0] == 3
    assert output.read_bytes() == whole.read_bytes()
