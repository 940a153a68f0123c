"""Sweeps by the command: the best of real trials, failures among them, interruptions, and what is left on the disk."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from training_samples import logits, sentences, write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.errors import EnvironmentProblem
from nopad.training import trainer
from nopad.training.errors import DivergedError

QUICK = ["--max-length", "64", "--threads", "1", "--batch-size", "16", "--epochs", "2"]


@pytest.fixture
def start(scratch: Path, tmp_path: Path) -> list[str]:
    """A command that lacks its trials."""
    data = write_jsonl(tmp_path / "rows.jsonl", sentences(120))
    held = write_jsonl(tmp_path / "held.jsonl", sentences(40, seed=4))
    options = ["--from-scratch", str(scratch), "--train", str(data), "--eval", str(held), *QUICK]
    return ["train", "--output", str(tmp_path / "out"), *options]


def test_the_best_trial_becomes_the_output_with_a_page_of_all(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["--trials", "4", "--sweep", "learning-rate=1e-5,5e-3", "--sweep", "batch-size=8,16", "--json"]
    seen = []
    inner = trainer.train

    def failing(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["recipe"])
        if len(seen) == 2:
            raise DivergedError("training diverged (loss nan at step 1)")
        return inner(*args, **kwargs)

    monkeypatch.setattr(trainer, "train", failing)
    assert run([*start, *sweep]) == 0
    told, said = capsys.readouterr()
    assert "trial 2 failed: training diverged" in said and "trial 4 of 4" in said
    output = tmp_path / "out"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))) == ["out"]
    record = json.loads((output / "config.json").read_text())["nopad_training"]
    kept = record["recipe"]["learning_rate"], record["recipe"]["batch_size"]
    assert kept in {(recipe.learning_rate, recipe.batch_size) for recipe in seen}
    *trials, figures = map(json.loads, told.splitlines())
    assert [one["trial"] for one in trials] == [1, 2, 3, 4] and {one["metric"] for one in trials} == {"f1"}
    assert [one["state"] for one in trials if one["trial"] in (1, 2)] == ["finished", "failed"]
    assert max(one["value"] for one in trials if one["state"] == "finished") == figures["f1"]
    assert figures["checkpoint"] == str(output) and figures["f1"] == record["metrics"]["f1"]
    card = (output / "README.md").read_text()
    assert "# out" in card and "Of 4 trials" in re.sub("Its settings are the best of", "Of", card)
    assert record["trials"] == 4
    page = (output / "sweep.html").read_text()
    assert "4 trials: " in page and "1 failed" in page and "learning-rate" in page and "training diverged" in page
    assert not re.search(r"(src|href)=[\"']?http", page)
    logits(output, ["a good film"])  # an ordinary checkpoint
    assert run([*start, "--trials", "1"]) == 0  # which another sweep may replace
    capsys.readouterr()


def test_a_trial_that_is_behind_is_pruned_and_sweeps_without_a_result_say_why(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def pruned(self: Any) -> bool:
        ended.append(self.number)
        return True

    monkeypatch.setattr(optuna.trial.Trial, "should_prune", pruned)
    assert run([*start, "--trials", "2"]) == 3
    said = capsys.readouterr().err
    assert ended == [0, 1]  # at their first evaluation
    assert "trial 1 is behind the others: ended" in said
    assert "no trial of 2 has finished: trial 1: pruned; trial 2: pruned. Mend what they name" in said
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.sweep").glob("trial-*"))
    monkeypatch.undo()
    assert run([*start, "--trials", "3", "--resume"]) == 0  # one more
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "batch-size=8,16"], "say how many: --trials 20"),
        (["--trials", "2", "--sweep", "speed=1..2"], "expected SETTING=LOW..HIGH"),
        (["--trials", "2", "--resume"], "nothing to resume"),
        (["--trials", "2", "--sweep", "learning-rate=0..1e-3"], "--learning-rate must be a positive number"),
        (["--trials", "2", "--sweep", "batch-size=32..8"], "the first number of a range must be the smaller"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_data_is_read(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "rows.jsonl").unlink()
    assert run([*start, *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.sweep").exists()


class Killed(BaseException):
    """As SIGKILL ends a process: nothing catches it."""


def ending(monkeypatch: pytest.MonkeyPatch, ends: dict[int, BaseException]) -> list[Any]:
    """Makes the n-th run (from 1) of a sweep end so before it begins; returns the recipes of all."""
    seen: list[Any] = []
    inner = trainer.train

    def train(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["recipe"])
        if error := ends.get(len(seen)):
            raise error
        return inner(*args, **kwargs)

    monkeypatch.setattr(trainer, "train", train)
    return seen


def test_a_sweep_that_has_ended_takes_more_trials(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, options = tmp_path / "out", ["--sweep", "learning-rate=1e-4,5e-3", "--json"]
    seen = ending(monkeypatch, {2: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")})
    assert run([*start, *options, "--trials", "1"]) == 0
    assert "trials by that evaluation" not in (output / "README.md").read_text()
    assert run([*start, *options, "--trials", "2", "--resume"]) == 0
    assert "failed: [enforce fail] DefaultCPUAllocator: can't allocate memory" in capsys.readouterr().err
    assert run([*start, *options, "--trials", "3", "--resume"]) == 0
    trials = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    assert [one["state"] for one in trials] == ["finished", "failed", "finished"] and len(seen) == 3
    card = (output / "README.md").read_text()
    assert card.count("the best of 3 trials") == 1 and "the best of 2 trials" not in card
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{output / 'study.db'}")
    assert study.best_value == max(one["value"] or 0 for one in trials)
    record = json.loads((output / "config.json").read_text())["nopad_training"]
    assert record["recipe"]["learning_rate"] == study.best_params["learning_rate"]
    assert not (tmp_path / "out.sweep").exists()


def test_what_is_not_the_settings_fault_ends_the_sweep_and_loses_nothing(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, command = tmp_path / "out.sweep", [*start, "--sweep", "learning-rate=1e-4..5e-3", "--trials", "4"]
    full, stop = EnvironmentProblem("cannot write (disk full)"), KeyboardInterrupt()
    ends = {2: full, 3: stop, 4: Killed(), 5: Killed(), 6: Killed()}
    seen = ending(monkeypatch, ends)
    assert run(command) == 4
    assert f"1 of 4 trials have ended, and are in {work}: go on with --resume" in capsys.readouterr().err
    assert run(command) == 3  # forgot --resume
    assert "holds a sweep that has not ended" in capsys.readouterr().err and len(seen) == 2
    assert (work / "best" / "model.safetensors").is_file()
    assert run([*command, "--resume", "--epochs", "3"]) == 2
    assert "a sweep with other settings (epochs)" in capsys.readouterr().err
    assert run([*command, "--resume"]) == 130
    for _ in range(2):
        with pytest.raises(Killed):
            run([*command, "--resume"])
    assert len({recipe.learning_rate for recipe in seen[1:]}) == 1 and len(seen) == 5  # the same trial every time
    capsys.readouterr()
    with pytest.raises(Killed):
        run([*command, "--resume"])
    assert "trial 2 failed: the process was killed 2 times at the same place (start)" in capsys.readouterr().err
    assert run([*command, "--resume", "--json"]) == 0
    trials = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    assert [one["state"] for one in trials] == ["finished", "failed", "finished", "finished"]


def test_a_folder_of_trials_with_something_else_in_it_is_left_alone(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "out.sweep" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert run([*start, "--trials", "2"]) == 3
    assert "out.sweep, where trials are kept, holds notes.txt" in capsys.readouterr().err
    assert notes.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three commands, one after the other
def test_a_sweep_that_was_killed_goes_on_with_the_trial_it_was_in(start: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nopad.runtime.cli", *start, "--trials", "3", "--eval-steps", "2", "--quiet"]
    command += ["--sweep", "learning-rate=1e-4..5e-3"]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 400
        while not list(tmp_path.glob("out.sweep/trial-1.training/checkpoint-*/SHA256SUMS")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'out.sweep' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    before = [trial.params for trial in study.trials]
    assert subprocess.run([*command, "--resume", "--sweep", "batch-size=8,16"]).returncode == 2  # another space
    assert subprocess.run([*command, "--resume"]).returncode == 0
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "3 trials: 3 finished" in page
    assert all(f"{params['learning_rate']:.3g}"[:4] in page for params in before)
