"""`nopad run` with a sweep as its step: stopped in the middle of a trial, the same command goes on with that trial."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_samples import make_scratch, sentences, write_jsonl

optuna = pytest.importorskip("optuna", reason="sweeps need: pip install 'nopad[sweep]'")

RECIPE = """
train:
  from-scratch: scratch
  train: rows.jsonl
  eval: held.jsonl
  trials: 3
  sweep: learning-rate=1e-4..5e-3
  eval-steps: 2
  epochs: 2
  batch-size: 16
  max-length: 64
  threads: 1
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four commands, one after the other
def test_a_sweep_that_was_stopped_goes_on_in_the_middle_of_its_trial(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", sentences(120))
    write_jsonl(tmp_path / "held.jsonl", sentences(40, seed=4))
    (tmp_path / "scratch").mkdir()
    make_scratch(tmp_path / "scratch", rows)
    (tmp_path / "tuned.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "nopad.runtime.cli", "run", "tuned.yaml", "--json"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "NOPAD_TRAIN_LOG_EVERY": "1e-6"}
    folder, log = tmp_path / "tuned.run", tmp_path / "tuned.run" / "logs" / "train.log"
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 400
        while not list(folder.glob("train.sweep/trial-1.training/checkpoint-*/trainer_state.json")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, log.read_text()
    assert "train was interrupted; 0 of 1 steps are done" in (folder / "report.html").read_text()
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'train.sweep' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    before = [trial.params for trial in study.trials]
    saved = max(int(path.name.split("-")[1]) for path in folder.glob("train.sweep/trial-1.training/checkpoint-*"))

    looked = subprocess.run([*command, "--dry-run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert json.loads(looked.stdout)["why"] == "was interrupted; goes on from its saved epochs"
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, log.read_text()
    (step,) = [line for line in map(json.loads, done.stdout.splitlines()) if "step" in line]
    assert (step["status"], step["why"]) == ("done", "was interrupted")
    first = re.search(r"^step (\d+)/", log.read_text(), flags=re.MULTILINE)
    assert first is not None and int(first[1]) == saved + 1  # of the trial that was stopped
    assert [trial["state"] for trial in step["results"] if "trial" in trial] == ["finished"] * 3
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'train' / 'study.db'}")
    assert [trial.params for trial in study.trials][:2] == before
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert json.loads(again.stdout.splitlines()[0])["status"] == "cached"
