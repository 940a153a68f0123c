"""Two processes under torchrun train what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_samples import make_scratch, sentences, weight_difference, write_jsonl

RUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TRAIN = ("nopad.runtime.cli", "train", "--train", "rows.jsonl", "--from-scratch", "scratch", "--json")
QUICK = ("--epochs", "2", "--max-length", "64", "--learning-rate", "1e-3", "--threads", "1")


def train(folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> dict[str, float]:
    """The command in a process of its own, or in those of `launcher`; what it prints to stdout, once."""
    command = [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), *TRAIN, *QUICK, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("texts to train on") == 1
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    rows = write_jsonl(tmp_path / "rows.jsonl", sentences(150))  # 135 to train: the last step is short
    (tmp_path / "scratch").mkdir()
    make_scratch(tmp_path / "scratch", rows)
    one = train(tmp_path, "--batch-size", "16", "--output", "one")
    # 15 rows to evaluate in four batches of 4: the second process repeats a row, which must not count twice.
    two = train(tmp_path, "--batch-size", "8", "--eval-batch-size", "4", "--output", "two", launcher=RUN)
    assert weight_difference(tmp_path / "one", tmp_path / "two") <= 1e-5
    assert {name: two[name] for name in ("accuracy", "f1")} == {name: one[name] for name in ("accuracy", "f1")}
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert not (tmp_path / "two.training").exists()
