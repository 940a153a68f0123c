"""`--resume` from states that were damaged on the disk."""

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_samples import sentences, weight_difference, weights, write_jsonl

from nopad.runtime.cli import run
from nopad.training.meter import Meter
from nopad.training.saved import fault, read_notes, seal

STEPS = 9  # of an epoch: 36 rows in batches of 4
OPTIONS = ["--epochs", "3", "--batch-size", "4", "--learning-rate", "1e-3", "--max-length", "64", "--threads", "1"]
Train = Callable[..., tuple[int, str]]


def command(folder: Path, scratch: Path, output: Path) -> list[str]:
    source = ["--train", str(folder / "rows.jsonl"), "--from-scratch", str(scratch)]
    return ["train", *source, "--output", str(output), *OPTIONS]


@pytest.fixture(scope="module")
def folder(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, `whole`, and `out.training` of a run that was stopped in its third epoch: two states are saved."""
    folder = tmp_path_factory.mktemp("saved")
    write_jsonl(folder / "rows.jsonl", sentences(40))
    assert run(command(folder, scratch, folder / "whole")) == 0
    add = Meter.add

    def stop(self: Meter, facts: Any, loss: Any, *, step: int) -> None:
        add(self, facts, loss, step=step)
        if step == 2 * STEPS + 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Meter, "add", stop)
        assert run(command(folder, scratch, folder / "out")) == 130
    return folder


@pytest.fixture
def resume(folder: Path, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    shutil.copytree(folder / "out.training", tmp_path / "out.training")

    def call(*options: str) -> tuple[int, str]:
        code = run([*command(folder, scratch, tmp_path / "out"), "--resume", *options])
        return code, capsys.readouterr().err

    return call


def states(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "out.training").iterdir(), key=lambda path: int(path.name.split("-")[1]))


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("damage", [change_a_byte, cut, Path.unlink], ids=["a-byte", "cut", "gone"])
def test_every_damage_is_seen(damage: Callable[[Path], None], name: str, folder: Path, tmp_path: Path) -> None:
    state = Path(shutil.copytree(folder / "out.training", tmp_path / "out.training")) / f"checkpoint-{2 * STEPS + 4}"
    assert fault(state) is None
    damage(state / name)
    said = fault(state)
    assert said is not None and name in said


def test_the_newest_whole_state_is_gone_on_from(resume: Train, folder: Path, tmp_path: Path) -> None:
    older, newest = states(tmp_path)
    change_a_byte(newest / "optimizer.pt")
    torn = newest.with_name("checkpoint-99999")  # power lost in the middle of saving
    torn.mkdir()
    shutil.copy(newest / "model.safetensors", torn)
    code, said = resume()
    assert code == 0 and torn.name not in said
    assert f"{newest.name} is damaged (optimizer.pt is not what was written): going on from {older.name}" in said
    assert weight_difference(tmp_path / "out", folder / "whole") == 0.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--learning-rate", "1e-7"], "learning-rate (it was 0.001)"),
        (["--batch-size", "8", "--freeze-layers", "1"], "batch-size (it was 4), freeze-layers (it was not given)"),
        (["--labels", "bad,good"], "labels"),
        (["--ordinal"], "task (it was SingleLabel)"),
        (["--train", "more.jsonl"], "training data, evaluation data"),
    ],
)
def test_other_settings_than_the_saved_ones_are_refused(
    options: list[str], told: str, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "more.jsonl", sentences(40, seed=1))
    before = states(tmp_path)
    code, said = resume(*options)
    assert code == 2 and f"is of a run with other settings: {told}. Go on with" in said
    assert states(tmp_path) == before and not (tmp_path / "out").exists()


def test_settings_that_save_memory_may_change(resume: Train, folder: Path, tmp_path: Path) -> None:
    assert resume("--gradient-checkpointing", "--eval-batch-size", "2")[0] == 0
    assert weight_difference(tmp_path / "out", folder / "whole") <= 1e-6


def test_the_model_may_be_moved_but_not_be_another(resume: Train, scratch: Path, tmp_path: Path) -> None:
    other = shutil.copytree(scratch, tmp_path / "other")
    code, said = resume("--from-scratch", str(other))
    assert code == 2 and f"other settings: model (it was {scratch.name}). Go on" in said
    (tmp_path / "moved").mkdir()
    assert resume("--from-scratch", str(other.rename(tmp_path / "moved" / scratch.name)))[0] == 0


def test_the_best_state_is_found_where_the_folder_has_been_moved(resume: Train, folder: Path, tmp_path: Path) -> None:
    best, newest = states(tmp_path)
    state = newest / "trainer_state.json"
    content = json.loads(state.read_text())
    moved = {"best_metric": 2.0, "best_model_checkpoint": f"/where/it/was/{best.name}"}  # none will be better
    state.write_text(json.dumps({**content, **moved}))
    seal(newest, read_notes(newest))
    want = weights(best)
    assert resume()[0] == 0
    kept = weights(tmp_path / "out")
    assert all(kept[name].equal(want[name]) for name in want)


def test_where_none_is_whole_it_says_so_and_keeps_them(resume: Train, tmp_path: Path) -> None:
    for state in states(tmp_path):
        (state / "SHA256SUMS").write_bytes(b"\xff")
    before = states(tmp_path)
    code, said = resume()
    assert code == 3 and "nothing to resume in" in said and said.count("is damaged") == 2
    assert states(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_best_epoch_that_is_gone_is_not_passed_off(resume: Train, tmp_path: Path) -> None:
    best, newest = states(tmp_path)
    assert json.loads((newest / "trainer_state.json").read_text())["best_model_checkpoint"].endswith(best.name)
    shutil.rmtree(best)
    code, said = resume()
    assert code == 3 and f"the best epoch so far was {best.name}, and it is gone" in said
    assert states(tmp_path) == [newest]


def test_a_disk_that_is_full_loses_nothing_that_was_saved(
    resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = states(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    add = Meter.add

    def fill(self: Meter, facts: Any, loss: Any, *, step: int) -> None:
        add(self, facts, loss, step=step)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    monkeypatch.setattr(Meter, "add", fill)
    try:
        code, said = resume()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 4 and "free some space" in said
    assert states(tmp_path) == before and all(fault(state) is None for state in before)
