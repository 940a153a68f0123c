"""A run that was interrupted continues where it stopped and ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from training_samples import sentences, weight_difference, write_jsonl

from nopad.model.errors import CheckpointError
from nopad.training.data import load_data
from nopad.training.recipe import Recipe
from nopad.training.trainer import TrainingResult, train

RECIPE: dict[str, Any] = {"learning_rate": 2e-3, "epochs": 5, "batch_size": 4, "max_length": 64}
SCRIPT = """
import json, sys
from pathlib import Path
from nopad.training.data import load_data
from nopad.training.recipe import Recipe
from nopad.training.trainer import train
source, scratch, output, recipe = sys.argv[1:]
recipe = Recipe(**json.loads(recipe))
train(load_data(source), Path(output), from_scratch=Path(scratch), recipe=recipe)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", sentences(200))


@pytest.fixture(scope="module")
def interrupted(source: Path, scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `out` of a process that got Ctrl-C after its first epoch; only `out.training` stands."""
    folder = tmp_path_factory.mktemp("interrupted")
    output = folder / "out"
    command = [sys.executable, "-c", SCRIPT, str(source), str(scratch), str(output), json.dumps(RECIPE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in conftest: sums in the same order
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        end = time.monotonic() + 120
        # trainer_state.json is the last file of a saved epoch.
        while not list(folder.glob("out.training/checkpoint-*/trainer_state.json")):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-2000:]
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0, "it finished before the signal: give it more epochs"
    assert "KeyboardInterrupt" in (folder / "log").read_text()
    assert not output.exists()
    return output


@pytest.fixture(scope="module")
def whole(source: Path, scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    output = tmp_path_factory.mktemp("whole") / "out"
    return train(load_data(str(source)), output, from_scratch=scratch, recipe=Recipe(**RECIPE))


def copy_of(interrupted: Path, tmp_path: Path) -> Path:
    shutil.copytree(interrupted.with_name("out.training"), tmp_path / "out.training")
    return tmp_path / "out"


def epochs_saved(output: Path) -> int:
    return len(list(output.parent.glob("out.training/checkpoint-*/trainer_state.json")))


def test_a_resumed_run_ends_with_the_same_weights(
    interrupted: Path, whole: TrainingResult, source: Path, scratch: Path, tmp_path: Path
) -> None:
    output = copy_of(interrupted, tmp_path)
    assert epochs_saved(output) >= 1
    result = train(load_data(str(source)), output, from_scratch=scratch, recipe=Recipe(**RECIPE), resume=True)
    gap = weight_difference(result.output, whole.output)
    print(f"weight difference {gap:.1e}")
    assert gap <= 1e-5
    assert result.metrics == pytest.approx(whole.metrics, abs=1e-5) and result.epoch == whole.epoch
    assert not list(tmp_path.glob("out.training"))


def test_an_epoch_that_was_being_saved_is_passed_over(
    interrupted: Path, whole: TrainingResult, source: Path, scratch: Path, tmp_path: Path
) -> None:
    # Power lost in the middle of saving: the newest folder holds weights, but no optimizer and no trainer state.
    output = copy_of(interrupted, tmp_path)
    last = max(output.parent.glob("out.training/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    torn = last.with_name("checkpoint-99999")
    torn.mkdir()
    shutil.copy(last / "model.safetensors", torn)
    result = train(load_data(str(source)), output, from_scratch=scratch, recipe=Recipe(**RECIPE), resume=True)
    assert weight_difference(result.output, whole.output) <= 1e-5


def test_a_best_epoch_that_is_gone_is_not_passed_off(
    interrupted: Path, source: Path, scratch: Path, tmp_path: Path
) -> None:
    output = copy_of(interrupted, tmp_path)
    for path in output.parent.glob("out.training/checkpoint-*/trainer_state.json"):
        state = json.loads(path.read_text())
        path.write_text(
            json.dumps({**state, "best_metric": 2.0, "best_model_checkpoint": "/none", "best_global_step": 1})
        )
    with pytest.raises(CheckpointError, match="the best epoch is gone from .*out.training"):
        train(load_data(str(source)), output, from_scratch=scratch, recipe=Recipe(**RECIPE), resume=True)
    assert not output.exists()
