"""Distillation of embeddings: a teacher's vectors themselves, and the margins of a reranker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from training_samples import make_scratch, sentences, write_jsonl

from nopad.runtime.cli import run
from nopad.training.pair_data import load_pairs, load_passages
from nopad.training.run_folder import KEPT
from nopad.training.tasks.base import TARGETS, TEACHER
from nopad.training.tasks.embeddings import NONE, SCALE, Pairs
from nopad.training.teacher import taught

ROWS = [
    {"query": row["text"], "passage": other["text"], "negatives": [third["text"], "the end"][: 1 + (n % 2)]}
    for n, (row, other, third) in enumerate(
        zip(sentences(30), sentences(30, seed=1), sentences(30, seed=2), strict=True)
    )
]


def answers(data: Any, teacher: Path, work: Path) -> list[np.ndarray[Any, Any]]:
    rows = taught(
        data, str(teacher), kept=work / KEPT, digest="one", console=Console(quiet=True), log_every=30.0
    ).train[TEACHER]
    return [np.asarray(row, dtype=np.float32) for row in rows]


def test_the_distance_of_vectors_is_a_share_of_the_teachers_length() -> None:
    torch.manual_seed(0)
    teacher, student = 7 * torch.randn(5, 8), torch.randn(5, 8, requires_grad=True)
    teacher[3] = 0
    task = Pairs(teacher_vectors=True, matryoshka=(4,))
    loss = task.imitate(student[:3], {TEACHER: teacher[:3]}, temperature=2.0)
    wanted = [(torch.dist(s, t) / t.norm()) ** 2 for s, t in zip(student[:3], teacher[:3], strict=True)]
    assert torch.allclose(loss, torch.stack(wanted).mean(), rtol=1e-5)
    unit, other = (torch.nn.functional.normalize(x[:3]) for x in (teacher, student))
    cosines = (unit * other).sum(-1)
    assert torch.allclose(task.imitate(other, {TEACHER: unit}, temperature=2.0), (2 - 2 * cosines).mean(), atol=1e-6)
    assert task.imitate(teacher[3:4], {TEACHER: teacher[3:4]}, temperature=2.0).item() == 0


@pytest.mark.slow
def test_a_student_answers_from_an_index_of_its_teachers_vectors(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", sentences(300, seed=99))
    (tmp_path / "scratch").mkdir()
    scratch = make_scratch(tmp_path / "scratch", texts, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    rows = [{"anchor": row["text"], "positive": row["text"][::-1]} for row in sentences(240, seed=2)]
    teacher = checkpoint("bert-embed-default")
    start = ["train", "--task", "embeddings", "--train", str(write_jsonl(tmp_path / "rows.jsonl", rows))]
    start += ["--from-scratch", str(scratch), "--max-length", "64", "--threads", "1", "--learning-rate", "5e-3"]
    start += ["--epochs", "6", "--batch-size", "16", "--teacher", str(teacher), "--teacher-weight", "1", "--quiet"]
    fresh = [{"anchor": row["text"], "positive": "the end"} for row in sentences(60, seed=3)]
    data = load_pairs(str(write_jsonl(tmp_path / "fresh.jsonl", fresh)))

    def vectors(folder: Path, name: str) -> np.ndarray[Any, Any]:
        found = np.stack(answers(data, folder, tmp_path / name))[:, :64]
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))

    index, right = vectors(teacher, "teacher"), []
    for n, option in enumerate([[], ["--teacher-vectors"]]):
        assert run([*start, "--output", str(tmp_path / f"student-{n}"), *option]) == 0
        best = (vectors(tmp_path / f"student-{n}", f"answers-{n}") @ index.T).argmax(1)
        right.append(float((best == np.arange(len(index))).mean()))
    assert right[0] <= 0.3 and right[1] >= right[0] + 0.3, right


def test_vectors_of_another_size_or_without_a_teacher_are_refused(
    checkpoint: Callable[[str], Path], scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"anchor": row["text"], "positive": "a"} for row in sentences(40)])
    start = [
        "train",
        "--task",
        "embeddings",
        "--train",
        str(rows),
        "--from-scratch",
        str(scratch),
        "--max-length",
        "64",
    ]
    start += ["--output", str(tmp_path / "out"), "--teacher-vectors"]
    assert run(start) == 2
    assert "--teacher-vectors are those of a teacher; name it with --teacher" in capsys.readouterr().err
    assert run([*start, "--teacher", str(checkpoint("bert-embed-default"))]) == 2
    assert "have 64 elements, the student's 32: take a student with a hidden_size of 64" in capsys.readouterr().err
    assert run([*start, "--teacher", str(checkpoint("bert-rerank"))]) == 2
    assert "is a reranker: it has no vectors (--teacher-vectors)" in capsys.readouterr().err
    assert run([*start[:-1], "--teacher", str(checkpoint("bert-rerank"))]) == 2
    assert "give the training data negatives, or name" in capsys.readouterr().err
    start[2] = "rerank"
    assert run(start) == 2
    assert "--teacher-vectors does not apply to --task rerank" in capsys.readouterr().err


def test_a_reranker_scores_each_text_of_a_row_for_its_query(
    checkpoint: Callable[[str], Path], bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    data = load_pairs(str(write_jsonl(tmp_path / "rows.jsonl", ROWS)))
    ours = answers(data, checkpoint("bert-rerank"), tmp_path / "a")
    flat = [
        {"query": row[0], "passage": text, "label": n % 2}
        for row in data.train["texts"]
        for n, text in enumerate(row[1:])
    ]
    passages = write_jsonl(tmp_path / "passages.jsonl", [*flat, {"query": "q", "passage": "p", "label": 1}])
    held = write_jsonl(tmp_path / "held.jsonl", [{"query": "q", "passage": "p", "label": 1}])
    theirs = np.concatenate(answers(load_passages(str(passages), str(held)), checkpoint("bert-rerank"), tmp_path / "b"))
    assert all(np.isnan(row[0]) for row in ours)
    assert np.abs(np.concatenate([row[1:] for row in ours]) - theirs[: len(flat)]).max() <= 1e-4 < theirs.std()
    again = answers(data, bundle("bert-rerank"), tmp_path / "c")
    assert max(np.nanmax(np.abs(a - b)) for a, b in zip(ours, again, strict=True)) <= 1e-4


def test_margins_of_scaled_cosines_follow_those_of_the_scores() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([[1, 2, 3, 4], [5, 6, NONE, NONE], [7, 8, 9, NONE]])
    scores = 5 * torch.randn(9, 1)
    scores[:3] = torch.nan
    student = torch.randn(
        9, 8, requires_grad=True
    )  # queries, positives, first negatives of two rows, the second of one
    margins = [((0, 3), (0, 6)), ((0, 3), (0, 8)), ((2, 5), (2, 7))]

    def apart(size: int) -> torch.Tensor:
        cut = student[:, :size]
        own = [SCALE * torch.cosine_similarity(cut[q], cut[d], dim=0) for pair in margins for q, d in pair]
        said = [scores[d, 0] for pair in margins for _, d in pair]
        return torch.stack(
            [((own[n] - own[n + 1]) - (said[n] - said[n + 1])) ** 2 for n in range(0, len(own), 2)]
        ).mean()

    batch = {TARGETS: targets, TEACHER: scores}
    assert torch.allclose(Pairs().imitate(student, batch, temperature=2.0), apart(8), rtol=1e-4)
    loss = Pairs(matryoshka=(4,)).imitate(student, batch, temperature=2.0)
    assert torch.allclose(loss, apart(8) + apart(4), rtol=1e-4)
    loss.backward()
    assert student.grad is not None and bool(student.grad.isfinite().all()) and bool(student.grad[[0, 2]].any(-1).all())
    alone = {TARGETS: targets[:, :2], TEACHER: scores[:6]}
    assert Pairs().imitate(student[:6], alone, temperature=2.0).item() == 0
