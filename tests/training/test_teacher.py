"""Distillation: what the student follows, whom it may ask, what is kept, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file
from training_samples import logits, sentences, write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData, load_data
from nopad.training.run_folder import KEPT
from nopad.training.tasks.base import Distilled
from nopad.training.tasks.multi_label import MultiLabel
from nopad.training.tasks.regression import Regression
from nopad.training.tasks.single_label import SingleLabel
from nopad.training.teacher import TEACHER, taught

LABELS = ["neg|ative", "posi_tive"]


@pytest.fixture(scope="module")
def teacher(command_run: Any) -> Path:
    return Path(command_run.output)


@pytest.fixture(scope="module")
def teacher_bundle(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "bundle"
    assert run(["export", str(teacher), "--output", str(folder), "--quiet"]) == 0
    return folder


def data_of(rows: list[dict[str, Any]], folder: Path, labels: list[str] | None = None) -> TrainingData:
    return load_data(str(write_jsonl(folder / "rows.jsonl", rows)), labels=labels or LABELS)


def ask(data: TrainingData, teacher: Path, work: Path) -> np.ndarray[Any, Any]:
    answers = taught(data, str(teacher), work=work, digest="rows", console=Console(quiet=True))
    assert answers.train["text"] == data.train["text"]
    return np.asarray(answers.train[TEACHER], dtype=np.float32)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_student_follows_its_teacher_where_labels_say_nothing(
    teacher: Path, scratch: Path, tmp_path: Path, weight: float
) -> None:
    rows = [{**row, "label": LABELS[n % 2]} for n, row in enumerate(sentences(400, seed=8))]  # whatever the text says
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    truths = [{**row, "label": LABELS[row["label"]]} for row in sentences(100, seed=6)]
    options = ["--eval", str(write_jsonl(tmp_path / "truths.jsonl", truths)), "--labels", ",".join(LABELS)]
    options += ["--from-scratch", str(scratch), "--max-length", "64", "--threads", "1", "--learning-rate", "5e-3"]
    options += [
        "--batch-size",
        "16",
        "--epochs",
        "6",
        "--temperature",
        "1",
        "--teacher",
        str(teacher),
        "--teacher-weight",
        str(weight),
    ]
    output = tmp_path / "student"
    assert run(["train", "--train", str(data), "--output", str(output), "--quiet", *options]) == 0
    fresh = sentences(200, seed=5)
    ours, _ = logits(output, [row["text"] for row in fresh])
    right = (ours.argmax(-1) == torch.tensor([row["label"] for row in fresh])).float().mean().item()
    assert right >= 0.8 if weight else right <= 0.7
    record = json.loads((output / "config.json").read_text())["nopad_training"]
    assert record["recipe"]["teacher"] == str(teacher) and record["recipe"]["teacher_weight"] == weight
    assert not list(tmp_path.glob("student.training*"))  # the teacher's answers are gone with the saved states


def test_a_bundle_teaches_what_its_checkpoint_does_in_the_order_of_the_labels(
    teacher: Path, teacher_bundle: Path, tmp_path: Path
) -> None:
    rows = [{**row, "label": LABELS[row["label"]]} for row in sentences(60)]
    data = data_of(rows, tmp_path)
    ours = ask(data, teacher, tmp_path / "a")
    theirs, _ = logits(teacher, data.train["text"])
    assert np.abs(ours - theirs.numpy()).max() <= 1e-4 < ours.std()
    assert np.abs(ask(data, teacher_bundle, tmp_path / "b") - ours).max() <= 1e-4
    swapped = data_of(rows, tmp_path, LABELS[::-1])
    assert np.array_equal(ask(swapped, teacher, tmp_path / "c"), ours[:, ::-1])


def test_answers_are_kept_for_the_same_teacher_and_rows_alone(
    teacher: Path, teacher_bundle: Path, tmp_path: Path
) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(40)], tmp_path)
    first = ask(data, teacher, tmp_path)
    kept = tmp_path / KEPT
    intact = kept.read_bytes()
    key = json.loads(intact[8 : 8 + int.from_bytes(intact[:8], "little")])["__metadata__"]
    save_file({"logits": load_file(kept)["logits"] + 1}, kept, metadata=key)
    assert np.array_equal(ask(data, teacher, tmp_path), first + 1)  # not asked again
    assert np.abs(ask(data, teacher_bundle, tmp_path) - first).max() <= 1e-4  # another teacher is
    kept.write_bytes(intact[: len(intact) // 2])
    assert np.array_equal(ask(data, teacher, tmp_path), first)
    assert kept.read_bytes() == intact


def test_a_teacher_that_answers_another_question_is_refused(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "label": ("bad", "good")[row["label"]]} for row in sentences(40)]
    data = load_data(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    with pytest.raises(UsageError, match=r"knows the labels neg\|ative, posi_tive, the training data has bad, good"):
        ask(data, teacher, tmp_path)
    numbers = replace(data, task=Regression(), labels=("LABEL_0",), problem_type="regression")
    with pytest.raises(UsageError, match=r"does text-classification single_label_classification, the student .*regres"):
        ask(numbers, teacher, tmp_path)
    options = ["--model", str(teacher), "--output", str(tmp_path / "o"), "--teacher", str(teacher)]
    assert run(["train", "--train", str(tmp_path / "rows.jsonl"), "--task", "fill-mask", *options]) == 2
    assert "--teacher does not apply to --task fill-mask" in capsys.readouterr().err
    options[-1:] = [str(tmp_path / "nothing"), "--max-length", "64"]
    assert run(["train", "--train", str(tmp_path / "rows.jsonl"), *options]) in (2, 3)
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("task", [SingleLabel(), MultiLabel(), Regression()])
def test_the_loss_is_the_formula_and_zero_gradient_where_both_agree(task: Distilled) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(5, 3)
    student = torch.randn(5, 3, requires_grad=True)
    loss = task.imitate(student, teacher, temperature=3.0)
    soft, softened = (teacher / 3).softmax(-1), (teacher / 3).sigmoid()
    wanted = {
        SingleLabel: 9 * (soft * (soft.log() - (student / 3).log_softmax(-1))).sum(-1).mean(),
        MultiLabel: -9
        * (softened * (student / 3).sigmoid().log() + (1 - softened) * (-student / 3).sigmoid().log()).mean(),
        Regression: ((student - teacher) ** 2).mean(),
    }[type(task)]
    assert torch.allclose(loss, wanted, rtol=1e-5)
    same = teacher.clone().requires_grad_()
    task.imitate(same, teacher, temperature=3.0).backward()
    assert same.grad is not None and same.grad.abs().max() <= 1e-6
