"""Distillation of masked language models: the teacher reads each training batch beside the student."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from training_samples import sentences, write_jsonl

from nopad.model.checkpoint.load import load_checkpoint
from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.cli import run
from nopad.training.tasks.base import TEACHER
from nopad.training.tasks.masked_lm import MaskedLM

STUDENT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "local_attention": 32}


def test_the_loss_is_the_divergence_over_the_tokenizers_own_entries() -> None:
    torch.manual_seed(0)
    task = MaskedLM(mask_probability=0.3, whole_word=False, vocabulary=6)
    student, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 7)
    loss = task.imitate(student, {TEACHER: teacher}, temperature=2.0)
    theirs = (teacher[:, :6] / 2).softmax(-1)
    wanted = 4 * (theirs * (theirs.log() - (student[:, :6] / 2).log_softmax(-1))).sum(-1).mean()
    assert torch.allclose(loss, wanted, rtol=1e-5)
    assert task.imitate(student[:0], {TEACHER: teacher[:0]}, temperature=2.0).item() == 0


@pytest.fixture
def student(checkpoint: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """Options that train a smaller model with the tokenizer of the teacher, whose window is another."""
    teacher = checkpoint("modernbert-mlm")
    config = json.loads((teacher / "config.json").read_text()) | STUDENT
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in sentences(150)])
    options = ["train", "--task", "fill-mask", "--from-scratch", str(tmp_path / "small"), "--tokenizer", str(teacher)]
    options += ["--train", str(rows), "--max-length", "64", "--threads", "1", "--learning-rate", "5e-3", "--quiet"]
    return [*options, "--batch-size", "16", "--epochs", "4", "--temperature", "1", "--output", str(tmp_path / "out")]


def answers(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    """transformers' own, of every token."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=rows).logits)


def test_a_student_follows_a_teacher_whose_answers_no_text_shows(
    checkpoint: Callable[[str], Path], student: list[str], tmp_path: Path
) -> None:
    teacher = checkpoint("modernbert-mlm")  # random weights: what it says of a text is not what the text says
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    texts = [row["text"] for row in sentences(40, seed=7)]
    rows = [ids[:12] for ids in tokenizer(texts)["input_ids"] if len(ids) >= 12]
    batch = torch.tensor(rows)
    batch[:, 5] = tokenizer.mask_token_id
    theirs = answers(teacher, batch)[:, 5].log_softmax(-1)
    apart = []
    for weight in ("0", "1"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert run([*student, "--teacher", str(teacher), "--teacher-weight", weight]) == 0
        own = answers(tmp_path / "out", batch)[:, 5].log_softmax(-1)
        apart.append(torch.nn.functional.kl_div(own, theirs, reduction="batchmean", log_target=True).item())
    assert apart[1] <= 0.5 * apart[0], apart
    record = json.loads((tmp_path / "out" / "config.json").read_text())["nopad_training"]
    assert len(record["teacher"]["sha256"]) == 64
    assert load_checkpoint(tmp_path / "out").config.num_layers == 2, "nothing of the teacher is in the checkpoint"


def test_what_cannot_be_asked_in_a_step_is_refused(
    checkpoint: Callable[[str], Path], student: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for teacher, said in (
        (DEFAULT_BUNDLE, "is a bundle: for --task fill-mask it is asked in every training step"),
        (checkpoint("bert-mlm"), "has another tokenizer than the student"),
    ):
        assert run([*student, "--teacher", str(teacher)]) == 2
        assert said in capsys.readouterr().err
    short = tmp_path / "short"
    shutil.copytree(checkpoint("modernbert-mlm"), short)
    config: dict[str, Any] = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 32}
    (short / "config.json").write_text(json.dumps(config))
    assert run([*student, "--teacher", str(short)]) == 2
    assert "--max-length 64: the teacher" in capsys.readouterr().err
