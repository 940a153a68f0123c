"""`--report-to`: nothing leaves unasked, a missing package is told first, and the files of those that are asked for."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from training_samples import sentences, write_jsonl

from nopad.model.packages import importable
from nopad.runtime.cli import run
from nopad.training import reporting

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", sentences(60))

    def call(*options: str) -> tuple[int, str]:
        fixed = ["--train", "rows.jsonl", "--from-scratch", str(scratch), "--output", "out", "--max-length", "64"]
        code = run(["train", *fixed, "--batch-size", "8", "--epochs", "2", "--threads", "1", *options])
        return code, capsys.readouterr().err

    return call


def left() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"rows.jsonl"}


@pytest.mark.parametrize("name", reporting.REPORTERS)
def test_a_missing_package_is_told_before_anything_is_read(
    name: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "missing", list)
    Path("rows.jsonl").unlink()
    code, said = train("--report-to", name)
    assert code == 4 and f"--report-to {name} needs the package {name}: pip install 'nopad[{name}]'" in said
    assert not left()


def test_nothing_is_reported_unasked(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    kinds: set[str] = set()
    plain = Trainer.train

    def note(self: Trainer, **options: object) -> object:
        kinds.update(type(callback).__name__ for callback in self.callback_handler.callbacks)
        return plain(self, **options)

    monkeypatch.setattr(Trainer, "train", note)
    assert train("--epochs", "0.1")[0] == 0
    assert kinds == {"DefaultFlowCallback", "BestBesideIt", "ProgressReport", "SaveAndStop"}
    assert left() == {"out"}


def records(path: Path) -> Iterator[bytes]:
    """Of a TFRecord file: length, its checksum, the data, its checksum."""
    content = path.read_bytes()
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + size]
        content = content[16 + size :]


def test_tensorboard(train: Train) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'nopad[tensorboard]'")
    from tensorboard.compat.proto.event_pb2 import Event

    assert train("--report-to", "tensorboard")[0] == 0
    assert left() == {"out", "out.runs"}, "and the checkpoint may be replaced as ever"
    (file,) = Path("out.runs").glob("*/events.out.tfevents.*")
    scalars: dict[str, dict[int, float]] = {}
    for record in records(file):
        event = Event.FromString(record)
        for value in event.summary.value:
            kept = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
            scalars.setdefault(value.tag, {})[event.step] = kept
    assert set(scalars["train/loss"]) == set(range(1, 15)) == set(scalars["train/learning_rate"])
    assert set(scalars["eval/f1"]) == set(scalars["eval/accuracy"]) == {7, 14}
    assert train("--report-to", "tensorboard")[0] == 0


def test_one_that_does_not_start_is_named(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'nopad[tensorboard]'")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "rows.jsonl")
    code, said = train("--report-to", "tensorboard")
    assert code == 4 and "nopad: --report-to tensorboard does not start: " in said and "Traceback" not in said
    assert not left()


@pytest.mark.slow
def test_wandb_offline(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    if not importable("wandb"):
        pytest.skip("pip install 'nopad[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_X_SERVICE_WAIT", "300")  # seconds that its process has to start, on a busy machine
    code, said = train("--report-to", "wandb", "--report-to", "wandb")
    assert code == 0, said
    import wandb

    # `finish` returns while W&B's own process is still writing; this waits until that has ended.
    wandb.teardown()
    (file,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert [name for name in (b"train/loss", b"eval/f1", b"train/learning_rate") if name not in content] == []
