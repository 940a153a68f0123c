"""Ctrl-C and SIGTERM: the step is saved, and `--resume` ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_samples import CONFIG, sentences, weight_difference, write_jsonl

from nopad.runtime.cli import run
from nopad.training.meter import Meter

STEPS = 12  # of an epoch: 90 rows to train on, batches of 4, two to a step
OPTIONS = ["--epochs", "2", "--batch-size", "4", "--gradient-accumulation", "2", "--learning-rate", "2e-3"]
OPTIONS += ["--max-length", "64", "--threads", "1", "--schedule", "cosine"]
Train = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a model with dropout (so that the random state matters), and `whole`, trained without interruption."""
    folder = tmp_path_factory.mktemp("interruption")
    write_jsonl(folder / "rows.jsonl", sentences(100))
    shutil.copytree(scratch, folder / "scratch")
    (folder / "scratch" / "config.json").write_text(
        json.dumps({**CONFIG, "mlp_dropout": 0.1, "embedding_dropout": 0.1})
    )
    assert run(command(folder, folder / "whole")) == 0
    return folder


def command(folder: Path, output: Path) -> list[str]:
    source = ["--train", str(folder / "rows.jsonl"), "--from-scratch", str(folder / "scratch")]
    return ["train", *source, "--output", str(output), *OPTIONS]


@pytest.fixture
def train(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    def call(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run([*command(folder, tmp_path / "out"), *options])
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have signals come in the middle of a step, counted from 1: while the loss of its first batch is computed."""

    def plan(when: int, *signals: signal.Signals) -> None:
        add, waiting = Meter.add, list(signals)

        def during(self: Meter, facts: Any, loss: Any, *, step: int) -> None:
            add(self, facts, loss, step=step)
            if step == when:
                while waiting:
                    signal.raise_signal(waiting.pop(0))

        monkeypatch.setattr(Meter, "add", during)

    return plan


def assert_equal(output: Path, other: Path) -> None:
    assert weight_difference(output, other) == 0.0
    ours, theirs = (json.loads((path / "config.json").read_text())["nopad_training"] for path in (output, other))
    assert all(ours[name] == theirs[name] for name in ("metrics", "epoch", "recipe", "data"))


@pytest.mark.parametrize(
    ("number", "step", "options"),
    [
        (signal.SIGINT, 5, ()),
        pytest.param(signal.SIGTERM, 17, (), marks=pytest.mark.slow),
        (signal.SIGTERM, STEPS, ()),  # an epoch's last step: its evaluation is saved with it
        pytest.param(signal.SIGINT, 2 * STEPS, (), marks=pytest.mark.slow),  # the last of all
        pytest.param(signal.SIGINT, 8, ("--eval-steps", "8"), marks=pytest.mark.slow),
    ],
    ids=["ctrl-c", "second-epoch", "end-of-epoch", "end-of-run", "evaluated-step"],
)
def test_the_step_is_saved_and_gone_on_from(
    number: signal.Signals,
    step: int,
    options: tuple[str, ...],
    send: Callable[..., None],
    train: Train,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context():
        send(step, number)
        code, said = train(*options)
    assert code == 128 + number
    assert "stopping after this step" in said and f"checkpoint-{step}: go on with --resume" in said
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (tmp_path / "out.training" / f"checkpoint-{step}").is_dir() and not (tmp_path / "out").exists()
    code, said = train("--resume", *options)
    assert code == 0 and "damaged" not in said
    if not options:
        assert_equal(tmp_path / "out", folder / "whole")
    assert not (tmp_path / "out.training").exists()


def test_what_is_hidden_does_not_depend_on_an_interruption(
    send: Callable[..., None], train: Train, tmp_path: Path
) -> None:
    options = ["--task", "fill-mask", "--epochs", "1"]
    assert train(*options, "--output", str(tmp_path / "whole"))[0] == 0
    send(5, signal.SIGINT)
    assert train(*options)[0] == 130
    assert train(*options, "--resume")[0] == 0
    assert_equal(tmp_path / "out", tmp_path / "whole")


def test_the_last_step_of_a_part_of_an_epoch_is_the_last(
    send: Callable[..., None], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--epochs", "0.25", "--schedule", "constant"]  # with which a step more would be other weights
    with monkeypatch.context():
        send(3, signal.SIGINT)
        code, said = train(*options)
    assert code == 130 and "epoch 0.2609: loss" in said and "checkpoint-3: go on with --resume" in said
    saved = tmp_path / "out.training" / "checkpoint-3" / "model.safetensors"
    before = load_file(saved)
    code, said = train("--resume", *options)
    assert code == 0 and "step 4/3" not in said
    record = json.loads((tmp_path / "out" / "config.json").read_text())["nopad_training"]
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert record["epoch"] == pytest.approx(6 / 23) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
def test_a_process_that_is_stopped_and_gone_on_with(folder: Path, train: Train, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "nopad.runtime.cli", *command(folder, tmp_path / "out"), "--log-every", "1e-6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in conftest: sums in the same order
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = next((line for line in process.stderr if line.startswith("step 2/")), "")
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 143, said + rest
    assert "Traceback" not in rest and "nopad: terminated" in rest and "go on with --resume" in rest
    (state,) = (tmp_path / "out.training").glob("checkpoint-*")
    assert 2 <= int(state.name.split("-")[1]) <= STEPS
    assert train("--resume")[0] == 0
    assert_equal(tmp_path / "out", folder / "whole")


def test_the_second_signal_ends_the_run_at_once(send: Callable[..., None], train: Train, tmp_path: Path) -> None:
    send(STEPS + 3, signal.SIGTERM, signal.SIGINT)
    code, said = train()
    assert code == 130 and f"checkpoint-{STEPS}: go on with --resume" in said
    assert [path.name for path in (tmp_path / "out.training").iterdir()] == [f"checkpoint-{STEPS}"]


def test_a_signal_that_is_ignored_stays_so(
    send: Callable[..., None], train: Train, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell's background job has it
    try:
        send(2, signal.SIGINT)
        assert train("--epochs", "0.1")[0] == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_it_trains_without_handlers(train: Train) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(train("--epochs", "0.1")[0]))
    thread.start()
    thread.join()
    assert codes == [0]
