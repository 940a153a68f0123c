"""`nopad run`: what runs again and what does not, and how it ends when something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.atomic import locked
from nopad.runtime.bundle import DEFAULT_CHECKPOINT
from nopad.runtime.cli import run
from nopad.runtime.errors import OutputError

Capture = pytest.CaptureFixture[str]
PROGRAM = [sys.executable, "-m", "nopad.runtime.cli", "run"]
RECIPE = """
set:
  labelled: held_out.jsonl
plan:
  data: texts.txt
export:
  checkpoint: {checkpoint}
calibrate:
  data: $labelled
plan wide:
  data: texts.txt
  model: $export
  most: 1
"""


class Runs:
    """A folder with a recipe and its data; `nopad run` in it."""

    def __init__(self, folder: Path, capsys: Capture | None) -> None:
        self.folder, self._capsys = folder, capsys
        self.path = folder / "tiny.yaml"
        self.said = ""

    def __call__(self, *arguments: str, code: int = 0) -> dict[str, dict[str, Any]]:
        """Run; returns the steps' outcomes by name."""
        got = run(["run", str(self.path), "--json", *arguments])
        assert self._capsys is not None
        out, self.said = self._capsys.readouterr()
        assert got == code, self.said
        return {line["step"]: line for line in map(json.loads, out.splitlines()) if "step" in line}

    def edit(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))


def statuses(outcomes: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["status"] for name, one in outcomes.items()}


def whys(outcomes: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["why"] for name, one in outcomes.items() if one["why"] is not None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, imdb: Path) -> Path:
    """The recipe for the embedded checkpoint, run once as a process of its own."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "tiny.yaml").write_text(RECIPE.format(checkpoint=DEFAULT_CHECKPOINT))
    with (imdb / "test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, 80)]
    short = [{"text": row["text"][:300], "label": row["label"]} for row in rows]
    (folder / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in short))
    (folder / "texts.txt").write_text("\n".join(" ".join(row["text"].split()) for row in short))
    done = subprocess.run([*PROGRAM, str(folder / "tiny.yaml")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "plan: counting tokens of texts.txt" in done.stderr and "3/4 calibrate: done in" in done.stderr
    assert "report: " in done.stdout and "calibrate.svg" in done.stdout
    return folder


@pytest.fixture
def runs(finished: Path, tmp_path: Path, capsys: Capture) -> Runs:
    """A copy of it, in a folder of another name."""
    return Runs(shutil.copytree(finished, tmp_path / "copy"), capsys)


@pytest.fixture
def empty(tmp_path: Path, capsys: Capture) -> Runs:
    """A recipe of one step that has not run: it plans for 20 texts, in a tenth of a second."""
    (tmp_path / "texts.txt").write_text("a dull film\nsplendid\n" * 10)
    (tmp_path / "tiny.yaml").write_text("plan:\n  data: texts.txt\n")
    return Runs(tmp_path, capsys)


def test_a_second_run_runs_nothing_and_writes_the_report_again(runs: Runs) -> None:
    record, report = runs.folder / "tiny.run" / "run.json", runs.folder / "tiny.run" / "report.html"
    before = record.read_bytes()
    report.unlink()
    begun = time.monotonic()
    outcomes = runs()
    assert time.monotonic() - begun < 5
    assert set(statuses(outcomes).values()) == {"cached"} and record.read_bytes() == before
    page = report.read_text()
    assert "all 4 steps are done, 4 as before" in page and "data:image/svg+xml;base64," in page
    assert "http://" not in page and "https://" not in page
    assert outcomes["calibrate"]["results"][0]["written"] is True


def test_a_changed_option_runs_what_depends_on_it(runs: Runs) -> None:
    runs.edit("data: $labelled", "data: $labelled\n  abstain-below: 0.5")
    outcomes = runs()
    assert statuses(outcomes) == {"plan": "cached", "export": "cached", "calibrate": "done", "plan wide": "done"}
    assert whys(outcomes) == {
        "calibrate": "option abstain-below: 0.5, was not given",
        "plan wide": "calibrate has changed",  # it reads the bundle that calibrate changes
    }
    manifest = json.loads((runs.folder / "tiny.run" / "export" / "manifest.json").read_bytes())
    assert manifest["calibration"]["abstain_below"] == 0.5
    assert set(statuses(runs()).values()) == {"cached"}


def test_a_dry_run_says_why_and_does_nothing(runs: Runs) -> None:
    with (runs.folder / "texts.txt").open("a") as file:
        file.write("\nanother")
    before = {path: path.read_bytes() for path in runs.folder.rglob("*") if path.is_file()}
    outcomes = runs("--dry-run", "--force", "calibrate")
    assert whys(outcomes) == {"plan": "texts.txt has changed", "calibrate": "forced", "plan wide": "follows calibrate"}
    assert statuses(outcomes)["export"] == "cached"
    assert before == {path: path.read_bytes() for path in runs.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("damage", {"export": "export was changed by others", "calibrate": "follows export"}),
        ("remove", {"plan": "plan.json was removed"}),
        ("set", {"calibrate": "option data: other.jsonl, was held_out.jsonl"}),
        ("drop", {"export": "export was changed by calibrate, which the recipe no longer has"}),
        ("environment", {"plan": "variable for limit: 7, was not given"}),
        ("version", {"plan": "nopad 0.0.1 became ", "export": "nopad 0.0.1 became ", "calibrate": "follows export"}),
    ],
)
def test_everything_that_a_step_depends_on_counts(
    change: str, expected: dict[str, str], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, arguments = runs.folder / "tiny.run", list[str]()
    if change == "damage":
        with (made / "export" / "manifest.json").open("a") as file:
            file.write(" ")
    elif change == "remove":
        (made / "plan.json").unlink()
    elif change == "set":
        shutil.copy(runs.folder / "held_out.jsonl", runs.folder / "other.jsonl")
        arguments = ["--set", "labelled=other.jsonl"]
    elif change == "drop":
        runs.edit("calibrate:\n  data: $labelled\n", "")
    elif change == "environment":
        monkeypatch.setenv("NOPAD_PLAN_LIMIT", "7")
    else:
        record = made / "run.json"
        record.write_text(record.read_text().replace('"nopad": "', '"nopad": "0.0.1", "was": "'))
    found = whys(runs("--dry-run", *arguments))
    for name, why in expected.items():
        assert found[name].startswith(why), found


def test_what_is_made_anew_alike_is_not_followed(runs: Runs) -> None:
    (runs.folder / "tiny.run" / "plan.json").unlink()
    assert statuses(runs()) == {"plan": "done", "export": "cached", "calibrate": "cached", "plan wide": "cached"}


def test_a_step_that_fails_ends_the_run_with_its_code_and_keeps_what_is_done(runs: Runs) -> None:
    rows = (runs.folder / "held_out.jsonl").read_text()
    (runs.folder / "held_out.jsonl").write_text('{"text": "no label here"}\n')
    outcomes = runs(code=3)
    assert statuses(outcomes) == {"plan": "cached", "export": "cached", "calibrate": "failed", "plan wide": "not run"}
    assert "nopad: the step calibrate failed with exit code 3: " in runs.said and "calibrate.log" in runs.said
    page = (runs.folder / "tiny.run" / "report.html").read_text()
    assert "calibrate failed; 2 of 4 steps are done" in page
    assert "calibrate failed with exit code 3: " in page and "has no labels" in page
    assert outcomes["plan wide"]["results"] == [] and "--most=1" not in page  # nothing of its run before
    (runs.folder / "held_out.jsonl").write_text(rows)
    assert whys(runs()) == {"calibrate": "failed (exit code 3)"}


def test_a_dry_run_of_nothing_yet_creates_nothing(empty: Runs) -> None:
    assert whys(empty("--dry-run", "--output", str(empty.folder / "other"))) == {"plan": "has not run yet"}
    assert {path.name for path in empty.folder.iterdir()} == {"texts.txt", "tiny.yaml"}


def test_files_behind_links_count(empty: Runs) -> None:
    words = empty.folder / "elsewhere" / "1.txt"
    words.parent.mkdir()
    words.write_text("splendid")
    (empty.folder / "train").mkdir()
    for name in ("pos", "neg"):
        (empty.folder / "train" / name).symlink_to(words.parent)
    empty.edit("texts.txt", "train")
    assert statuses(empty()) == {"plan": "done"} and statuses(empty()) == {"plan": "cached"}
    words.write_text("splendid, if long")
    assert whys(empty("--dry-run")) == {"plan": "train has changed"}


def test_a_name_that_is_not_utf8_is_recorded(empty: Runs) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (empty.folder / "texts.txt").rename(empty.folder / name)
    empty.path.write_text("set:\n  data: texts.txt\nplan:\n  data: $data\n")
    values = ("--set", f"data={empty.folder / name}")
    assert statuses(empty(*values)) == {"plan": "done"} and statuses(empty(*values)) == {"plan": "cached"}


def test_packages_are_not_looked_for_beside_the_recipe(empty: Runs) -> None:
    (empty.folder / "rich.py").write_text("raise RuntimeError")
    assert statuses(empty()) == {"plan": "done"}


@pytest.fixture
def waiting(empty: Runs) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts runs whose step waits until somebody writes to the pipe that it reads."""
    (empty.folder / "texts.txt").unlink()
    os.mkfifo(empty.folder / "texts.txt")
    started = []

    def start() -> subprocess.Popen[str]:
        # The log is read to its end by the test: no other pipe.
        process = subprocess.Popen(
            [*PROGRAM, str(empty.path)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        started.append(process)
        assert process.stderr is not None
        assert any("counting tokens" in line for line in process.stderr)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("stop", "code", "why"),
    [
        (signal.SIGINT, 130, "was interrupted"),
        (signal.SIGTERM, 143, "was interrupted"),
        (signal.SIGKILL, -9, "was cut short"),
    ],
)
def test_a_run_that_was_ended_goes_on_at_its_step(
    stop: signal.Signals, code: int, why: str, waiting: Callable[[], subprocess.Popen[str]], empty: Runs
) -> None:
    process = waiting()
    process.send_signal(stop)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(30) == code and "Traceback" not in said
    if stop != signal.SIGKILL:
        assert "stopped at plan; the same command goes on there" in said
        assert "plan was interrupted; 0 of 1 steps are done" in (empty.folder / "tiny.run" / "report.html").read_text()
    (empty.folder / "texts.txt").unlink()
    (empty.folder / "texts.txt").write_text("splendid\n")
    _wait_for_the_lock(empty.folder / "tiny.run")  # the step's process, which ends when the run does, holds it, too
    assert whys(empty()) == {"plan": why} and whys(empty()) == {}


def _wait_for_the_lock(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OutputError), locked(folder, "running"):
            return
        time.sleep(0.02)
    raise AssertionError("the process of the step did not end")


def test_one_run_at_a_time(waiting: Callable[[], subprocess.Popen[str]], empty: Runs) -> None:
    waiting()
    empty(code=3)
    assert "another process is running" in empty.said
