"""Distillation of hidden states: the teacher reads each batch, and its last states are followed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import sentences, weight_difference, write_jsonl

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.encoder import PackedEncoder
from nopad.model.packing import pack
from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.cli import run
from nopad.training.live_teacher import LiveTeacher, hidden_states, projection, states_apart
from nopad.training.tasks.base import STREAM

LABELS = ["neg|ative", "posi_tive"]


@pytest.fixture
def student(scratch: Path, teacher: Path, tmp_path: Path) -> list[str]:
    """Options for a student that is smaller than the teacher, with the teacher's tokenizer."""
    (tmp_path / "small").mkdir()
    config = {**json.loads((scratch / "config.json").read_text()), "hidden_size": 16, "num_hidden_layers": 2}
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    rows = [{**row, "label": LABELS[row["label"]]} for row in sentences(160, seed=8)]
    options = ["train", "--train", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--labels", ",".join(LABELS)]
    options += ["--from-scratch", str(tmp_path / "small"), "--tokenizer", str(teacher), "--max-length", "64", "--quiet"]
    return [*options, "--threads", "1", "--learning-rate", "5e-3", "--batch-size", "16", "--epochs", "3"]


def batch(encoder: PackedEncoder, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    packed = pack(rows, None, multiple=encoder.encoder_config.block)
    return {name: torch.from_numpy(getattr(packed, name)) for name in STREAM if getattr(packed, name) is not None}


@pytest.mark.parametrize("name", ["modernbert-token", "bert-token"])
def test_hidden_states_are_what_the_head_reads(name: str, checkpoint: Callable[[str], Path]) -> None:
    encoder = load_checkpoint(checkpoint(name)).encoder
    stream = batch(encoder, [[2, *range(10, 10 + n), 3] for n in (5, 9, 30)])
    with torch.no_grad(), hidden_states(encoder) as states:
        logits = encoder(**stream)
    (own,) = states
    assert own.shape == (len(stream["input_ids"]), encoder.encoder_config.hidden_size)
    with torch.no_grad():
        again = encoder(**stream)
    assert len(states) == 1 and torch.equal(logits, again), "nothing is recorded afterwards"


def test_the_distance_is_a_share_of_the_teachers_length_without_filler() -> None:
    torch.manual_seed(0)
    own, theirs = torch.randn(6, 4), 5 * torch.randn(6, 4)
    real = torch.tensor([0, 0, 1, 1, 1, -1])
    wanted = [(torch.dist(own[n], theirs[n]) / theirs[n].norm()) ** 2 for n in range(5)]
    assert torch.allclose(states_apart(own, theirs, real), torch.stack(wanted).mean())
    assert states_apart(theirs, theirs, real).item() == 0


def test_a_projection_keeps_what_it_can() -> None:
    torch.manual_seed(0)
    states = torch.randn(5, 8)
    assert torch.equal(states @ projection(8, 8, 1), states)
    wide = states @ projection(8, 12, 1)
    assert torch.allclose(wide @ wide.T, states @ states.T, atol=1e-5)
    narrow = projection(8, 3, 1)
    assert torch.allclose(narrow.T @ narrow, torch.eye(3), atol=1e-6)
    assert torch.equal(projection(8, 3, 1), narrow) and not torch.equal(projection(8, 3, 2), narrow)


def test_states_come_nearer_to_the_teachers(teacher: Path, student: list[str], tmp_path: Path) -> None:
    own = load_checkpoint(teacher).encoder
    live = LiveTeacher(encoder=own, projection=projection(32, 16, 42))
    rows = open_tokenizer(teacher)([row["text"] for row in sentences(20, seed=5)])["input_ids"]
    stream, apart = batch(own, rows), []
    for weight in ("0", "4.0"):
        output = tmp_path / weight
        assert run([*student, "--output", str(output), "--teacher", str(teacher), "--teacher-states", weight]) == 0
        encoder = load_checkpoint(output).encoder
        with torch.no_grad(), hidden_states(encoder) as states:
            encoder(**stream)
        apart.append(states_apart(states[0], live.projected(live.read(stream)[1]), stream["sequence_ids"]).item())
    assert apart[1] <= 0.8 * apart[0], apart
    assert "| teacher states | 4.0 |" in (output / "README.md").read_text()


def test_a_resumed_run_learns_what_a_whole_one_does(
    teacher: Path, student: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nopad.training.packed_trainer import PackedTrainer

    student += ["--teacher", str(teacher), "--teacher-states", "1"]
    assert run([*student, "--output", str(tmp_path / "whole")]) == 0
    inner = PackedTrainer.compute_loss

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        if self.model.training and self.state.global_step == 12:
            raise KeyboardInterrupt
        return inner(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PackedTrainer, "compute_loss", interrupted)
        assert run([*student, "--output", str(tmp_path / "out")]) == 130
    assert run([*student, "--output", str(tmp_path / "out"), "--resume"]) == 0
    assert weight_difference(tmp_path / "whole", tmp_path / "out") == 0.0


def test_what_has_no_states_or_other_tokens_is_refused(
    teacher: Path, student: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student += ["--output", str(tmp_path / "out"), "--teacher-states", "1"]
    assert run(student) == 2
    assert "--teacher-states is the weight of a teacher's; name it with --teacher" in capsys.readouterr().err
    assert run([*student, "--teacher", str(DEFAULT_BUNDLE)]) == 2
    assert "is a bundle: for --teacher-states it is asked in every training step" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    for path in teacher.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    table = json.loads((other / "tokenizer.json").read_text())
    vocabulary = table["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(table))
    assert run([*student, "--teacher", str(other)]) == 2
    assert "has another tokenizer than the student: for --teacher-states it must" in capsys.readouterr().err
