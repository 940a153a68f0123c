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
    figures = json.loads(told.splitlines()[-1])
    assert figures["checkpoint"] == str(output) and figures["f1"] == record["metrics"]["f1"]
    card = (output / "README.md").read_text()
    assert "# out" in card and "Of 4 trials" in re.sub("Its settings are the best of", "Of", card)
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
    assert "no trial of 2 has finished: trial 1: pruned; trial 2: pruned" in said and not (tmp_path / "out").exists()
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
    ],
)
def test_what_cannot_be_swept_is_refused_before_data_is_read(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "rows.jsonl").unlink()
    assert run([*start, *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.sweep").exists()


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_with_the_trial_it_was_in(start: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nopad.runtime.cli", *start, "--trials", "3", "--eval-steps", "2", "--quiet"]
    command += ["--sweep", "learning-rate=1e-4..5e-3"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out.sweep/trial-1.training/checkpoint-*/SHA256SUMS")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'out.sweep' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    before = [trial.params for trial in study.trials]
    assert subprocess.run([*command, "--resume", "--sweep", "batch-size=8,16"]).returncode == 2  # another space
    assert subprocess.run([*command, "--resume"]).returncode == 0
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "3 trials: " in page
    assert all(f"{params['learning_rate']:.3g}"[:4] in page for params in before)
