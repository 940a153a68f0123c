"""Distillation: what the student follows, whom it may ask, what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr
from st_folders import library, quiet
from teacher_answers import LABELS, ask, data_of
from training_samples import logits, sentences, write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.errors import UsageError
from nopad.training.data import load_data
from nopad.training.pair_data import load_pairs, load_passages
from nopad.training.tasks.base import TEACHER, Task
from nopad.training.tasks.embeddings import SCALE, Pairs
from nopad.training.tasks.multi_label import MultiLabel
from nopad.training.tasks.regression import Regression
from nopad.training.tasks.single_label import SingleLabel
from nopad.training.teacher import teacher_digest


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
    assert record["teacher"] == {"sha256": teacher_digest(str(teacher))}
    assert f"| teacher | out (SHA-256 {record['teacher']['sha256'][:16]}) |" in (output / "README.md").read_text()
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


def test_a_reranker_reads_query_and_passage(
    checkpoint: Callable[[str], Path], bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [
        {"query": query["text"], "passage": passage["text"], "label": n % 2}
        for n, (query, passage) in enumerate(zip(sentences(30), sentences(30, seed=1), strict=True))
    ]
    data = load_passages(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    ours = ask(data, checkpoint("bert-rerank"), tmp_path / "a")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("bert-rerank"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint("bert-rerank")).eval()
    with torch.no_grad():
        theirs = [model(**tokenizer(row["query"], row["passage"], return_tensors="pt")).logits[0] for row in data.train]
    assert np.abs(ours - torch.stack(theirs).numpy()).max() <= 1e-4 < ours.std()
    assert np.abs(ask(data, bundle("bert-rerank"), tmp_path / "b") - ours).max() <= 1e-4


def test_an_embedder_answers_each_text_with_prompts_of_its_own(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, exported = tmp_path / "teacher", tmp_path / "bundle"
    with quiet():
        model = library().SentenceTransformer(
            str(checkpoint("modernbert-embed-default")), device="cpu", prompts={"query": "find:", "document": "say:"}
        )
        model.set_pooling_include_prompt(False)
        model.save_pretrained(str(folder))
    assert run(["export", str(folder), "--output", str(exported), "--task", "embeddings", "--quiet"]) == 0
    texts = [row["text"] for row in sentences(66)]
    rows = [{"anchor": a, "positive": b, "negative": c} for a, b, c in zip(*[iter(texts)] * 3, strict=True)]
    rows[3]["negative"] = [rows[3]["negative"], "and another one"]
    data = load_pairs(str(write_jsonl(tmp_path / "rows.jsonl", rows)), prompts={"query": "the student's: "})
    ours = ask(data, folder, tmp_path / "a")
    flat = [(text, ("document", "query")[n == 0]) for row in data.train["texts"] for n, text in enumerate(row)]
    theirs = np.stack([model.encode(text, prompt_name=name) for text, name in flat])
    assert len({len(row) for row in data.train["texts"]}) == 2, "the odd row is trained on"
    assert np.abs(ours - theirs).max() <= 1e-4 < ours.std()
    assert np.abs(ask(data, exported, tmp_path / "b") - ours).max() <= 1e-4


def test_neighbours_of_a_teacher_of_another_size_are_learned(
    checkpoint: Callable[[str], Path], scratch: Path, tmp_path: Path
) -> None:
    texts = [row["text"] for row in sentences(480, seed=2)]
    rows = [{"anchor": a, "positive": b} for a, b in zip(*[iter(texts)] * 2, strict=True)]  # nothing to learn
    teacher = checkpoint("bert-embed-default")
    start = ["train", "--task", "embeddings", "--train", str(write_jsonl(tmp_path / "rows.jsonl", rows))]
    start += ["--from-scratch", str(scratch), "--max-length", "64", "--threads", "1", "--learning-rate", "5e-3"]
    start += ["--epochs", "5", "--batch-size", "16", "--teacher", str(teacher), "--quiet"]
    fresh = [{"anchor": row["text"], "positive": "the end"} for row in sentences(80, seed=3)]
    data = load_pairs(str(write_jsonl(tmp_path / "fresh.jsonl", fresh)))

    def cosines(folder: Path, name: str) -> np.ndarray[Any, Any]:
        vectors = ask(data, folder, tmp_path / name)[::2]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]

    wanted, agreement = cosines(teacher, "teacher"), []
    for weight in ("0", "1"):
        output = tmp_path / weight
        assert run([*start, "--output", str(output), "--teacher-weight", weight]) == 0
        agreement.append(spearmanr(wanted, cosines(output, f"answers-{weight}")).statistic)
    assert agreement[1] >= agreement[0] + 0.2, agreement


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
    options[-1:] = [str(tmp_path / "nothing"), "--max-length", "64"]
    assert run(["train", "--train", str(tmp_path / "rows.jsonl"), *options]) in (2, 3)
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("task", [SingleLabel(), MultiLabel(), Regression()])
def test_the_loss_is_the_formula_and_zero_gradient_where_both_agree(task: Task) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(5, 3)
    student = torch.randn(5, 3, requires_grad=True)
    loss = task.imitate(student, {TEACHER: teacher}, temperature=3.0)
    soft, softened = (teacher / 3).softmax(-1), (teacher / 3).sigmoid()
    wanted = {
        SingleLabel: 9 * (soft * (soft.log() - (student / 3).log_softmax(-1))).sum(-1).mean(),
        MultiLabel: -9
        * (softened * (student / 3).sigmoid().log() + (1 - softened) * (-student / 3).sigmoid().log()).mean(),
        Regression: ((student - teacher) ** 2).mean(),
    }[type(task)]
    assert torch.allclose(loss, wanted, rtol=1e-5)
    same = teacher.clone().requires_grad_()
    task.imitate(same, {TEACHER: teacher}, temperature=3.0).backward()
    assert same.grad is not None and same.grad.abs().max() <= 1e-6


def test_the_loss_of_embeddings_is_the_divergence_of_neighbours() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(6, 8), torch.randn(6, 5, requires_grad=True)

    def neighbours(vectors: torch.Tensor, text: int) -> torch.Tensor:
        cosines = [torch.cosine_similarity(vectors[text], vectors[n], dim=0) for n in range(6) if n != text]
        return (torch.stack(cosines) * SCALE / 3).softmax(0)

    def apart(cut: int) -> torch.Tensor:
        pairs = [(neighbours(teacher, n), neighbours(student[:, :cut], n)) for n in range(6)]
        return 9 * torch.stack([(p * (p / q).log()).sum() for p, q in pairs]).mean()

    assert torch.allclose(Pairs().imitate(student, {TEACHER: teacher}, temperature=3.0), apart(5), rtol=1e-4)
    cut = Pairs(matryoshka=(2,)).imitate(student, {TEACHER: teacher}, temperature=3.0)
    assert torch.allclose(cut, apart(5) + apart(2), rtol=1e-4)
    turned = (teacher @ torch.linalg.qr(torch.randn(8, 8)).Q).requires_grad_()  # the same neighbours
    Pairs().imitate(turned, {TEACHER: teacher}, temperature=3.0).backward()
    assert turned.grad is not None and turned.grad.abs().max() <= 1e-5
