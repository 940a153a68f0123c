"""Two processes under torchrun train what one process trains."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import make_scratch, sentences, weight_difference, write_jsonl

RUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TRAIN = (
    "nopad.runtime.cli",
    "train",
    "--train",
    "rows.jsonl",
    "--eval",
    "held.jsonl",
    "--from-scratch",
    "scratch",
    "--json",
)
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


def pairs(count: int) -> list[dict[str, Any]]:
    """A text's two halves, and none to three texts that are none of its; some texts occur several times."""
    texts = [row["text"] for row in sentences(count, seed=1)]
    return [
        {
            "anchor": text[: len(text) // 2],
            "positive": texts[i % 40][len(texts[i % 40]) // 2 :],
            "negatives": [texts[(7 * i + k) % count] for k in range(i % 4)],
        }
        for i, text in enumerate(texts)
    ]


def scored(count: int) -> list[dict[str, Any]]:
    rows = pairs(count)
    return [{"sentence1": row["anchor"], "sentence2": row["positive"], "score": i % 5} for i, row in enumerate(rows)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (sentences, ()),
        (pairs, ("--task", "embeddings", "--matryoshka", "16", "--gradient-accumulation", "2")),
        (scored, ("--task", "embeddings")),
    ],
    ids=["classes", "pairs", "scored"],
)
def test_two_processes_train_what_one_does(
    rows: Callable[[int], list[dict[str, Any]]], options: tuple[str, ...], tmp_path: Path
) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    write_jsonl(tmp_path / "rows.jsonl", rows(135))  # the last step is short
    write_jsonl(tmp_path / "held.jsonl", rows(64))  # a whole batch for each process
    (tmp_path / "scratch").mkdir()
    make_scratch(tmp_path / "scratch", write_jsonl(tmp_path / "texts.jsonl", sentences(150)))
    one = train(tmp_path, "--batch-size", "32", "--output", "one", *options)
    two = train(tmp_path, "--batch-size", "16", "--output", "two", *options, launcher=RUN)
    assert weight_difference(tmp_path / "one", tmp_path / "two") <= 1e-5
    figures = one.keys() - {"seconds", "checkpoint"}
    assert len(figures) > 2 and {name: two[name] for name in figures} == pytest.approx(
        {name: one[name] for name in figures}, rel=1e-5
    )
    curves = [losses(tmp_path / name) for name in ("one", "two")]
    assert len(curves[0]) > 4 and curves[0] == pytest.approx(curves[1], rel=2e-3)
    assert not (tmp_path / "two.training").exists()


def losses(output: Path) -> list[float]:
    """Of the training steps, with the 4 digits that the curves show."""
    return [
        float(value) for value in re.findall(r"<title>step \d+: loss ([\d.]+)", (output / "curves.svg").read_text())
    ]
