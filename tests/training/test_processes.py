"""Two processes under torchrun train what one process trains."""

import json
import os
import re
import shutil
import signal
import socket
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
    "--json",
)
SCRATCH = ("--from-scratch", "scratch")
# Of a trained model, so that no two of its answers are nearly the same; it teaches its own updates.
TAUGHT = ("--model", "base", "--lora", "4", "--teacher", "base")
QUICK = ("--epochs", "2", "--max-length", "64", "--learning-rate", "1e-3", "--threads", "1")


def train(folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> dict[str, float]:
    """The command in a process of its own, or in those of `launcher`; what it prints to stdout, once."""
    command = [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), *TRAIN, *QUICK, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
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
@pytest.mark.timeout(1800)  # two commands, one after the other
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (sentences, SCRATCH),
        (pairs, (*SCRATCH, "--task", "embeddings", "--matryoshka", "16", "--gradient-accumulation", "2")),
        (scored, (*SCRATCH, "--task", "embeddings")),
        (sentences, (*TAUGHT, "--labels", "neg|ative,posi_tive")),
        (pairs, (*TAUGHT, "--task", "embeddings")),
    ],
    ids=["classes", "pairs", "scored", "classes-lora-teacher", "pairs-lora-teacher"],
)
def test_two_processes_train_what_one_does(
    rows: Callable[[int], list[dict[str, Any]]],
    options: tuple[str, ...],
    command_run: Any,
    tmp_path: Path,
) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    write_jsonl(tmp_path / "rows.jsonl", rows(135))  # the last step is short
    # Losses of pairs depend on which share a batch: a whole one for each process. Of classes the second process repeats
    # a row, which must not count twice.
    write_jsonl(tmp_path / "held.jsonl", rows(64 if "--task" in options else 63))
    if "scratch" in options:
        (tmp_path / "scratch").mkdir()
        make_scratch(tmp_path / "scratch", write_jsonl(tmp_path / "texts.jsonl", sentences(150)))
    else:
        shutil.copytree(command_run.output, tmp_path / "base")
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


@pytest.mark.slow
def test_two_processes_learn_from_a_tagger_what_one_does(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    rows = [
        {
            "tokens": row["text"].split(),
            "tags": ["B-X" if word in ("good", "bad") else "O" for word in row["text"].split()],
        }
        for row in sentences(135)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "held.jsonl", rows[:63])
    (tmp_path / "scratch").mkdir()
    make_scratch(tmp_path / "scratch", write_jsonl(tmp_path / "texts.jsonl", sentences(150)))
    options = [*SCRATCH, "--task", "token-classification"]
    train(tmp_path, "--output", "teacher", *options)
    options += ["--teacher", "teacher", "--teacher-weight", "0.7", "--seed", "3"]
    train(tmp_path, "--batch-size", "32", "--output", "one", *options)
    train(tmp_path, "--batch-size", "16", "--output", "two", *options, launcher=RUN)
    assert (
        weight_difference(tmp_path / "one", tmp_path / "two")
        <= 1e-5
        < weight_difference(*map(tmp_path.joinpath, ("teacher", "two")))
    )


@pytest.mark.slow
def test_a_signal_ends_all_processes_at_one_step_and_resume_goes_on(tmp_path: Path) -> None:
    """First a signal to one of two workers alone, then to torchrun, which passes it on."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    rows = write_jsonl(tmp_path / "rows.jsonl", sentences(200))
    (tmp_path / "held.jsonl").write_bytes(rows.read_bytes())
    (tmp_path / "scratch").mkdir()
    make_scratch(tmp_path / "scratch", rows, mlp_dropout=0.1, embedding_dropout=0.1)
    train(tmp_path, *SCRATCH, "--batch-size", "4", "--output", "whole", launcher=RUN)
    options = [*TRAIN, *SCRATCH, *QUICK, "--batch-size", "4", "--output", "out", "--log-every", "1e-6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", *options],
            cwd=tmp_path,
            env={**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        wait_for_step(workers[0], 3)
        workers[1].send_signal(signal.SIGTERM)
        said = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [143, 143], said
    first = saved(tmp_path)
    assert 3 <= first < 25 and f"checkpoint-{first}: go on with --resume" in said[0]

    launched = [sys.executable, "-m", *RUN, "-m", *options, "--resume"]
    with subprocess.Popen(launched, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as run:
        wait_for_step(run, first + 5)
        run.send_signal(signal.SIGTERM)
        rest = run.communicate(timeout=120)[1]
    assert run.returncode == 1 and "nopad: terminated" in rest  # torchrun's own exit code
    assert saved(tmp_path) > first and "damaged" not in rest
    train(tmp_path, *SCRATCH, "--batch-size", "4", "--output", "out", "--resume", launcher=RUN)
    assert weight_difference(tmp_path / "whole", tmp_path / "out") == 0.0


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
            return
    raise AssertionError("".join(said))


def saved(folder: Path) -> int:
    """The newest step that has been saved."""
    return max(int(path.name.split("-")[1]) for path in (folder / "out.training").glob("checkpoint-*"))


def losses(output: Path) -> list[float]:
    """Of the training steps, with the 4 digits that the curves show."""
    return [
        float(value) for value in re.findall(r"<title>step \d+: loss ([\d.]+)", (output / "curves.svg").read_text())
    ]
