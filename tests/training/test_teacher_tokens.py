"""Distillation of taggers: word by word, whatever the tokens of teacher and student."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from training_samples import make_scratch, sentences, write_jsonl

from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.cli import run
from nopad.runtime.errors import UsageError
from nopad.training import teacher as teaching
from nopad.training.run_folder import KEPT
from nopad.training.tagged_texts import load_tagged
from nopad.training.tasks.base import TEACHER
from nopad.training.tasks.token_labels import TokenLabels
from nopad.training.tasks.token_targets import IGNORED
from nopad.training.teacher import collate_with_teacher, taught

IOB2 = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
NAMES = ["Abra Cadabra", "Hocus Pocus", "Simsalabim"]


def answers(data: Any, teacher: Path, work: Path) -> list[np.ndarray[Any, Any]]:
    """Of each row [words, labels]."""
    rows = taught(
        data, str(teacher), kept=work / KEPT, digest="one", console=Console(quiet=True), log_every=30.0
    ).train[TEACHER]
    return [np.asarray(row, dtype=np.float32).reshape(-1, len(data.labels)) for row in rows]


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_a_word_is_answered_by_its_first_token_and_not_at_all_where_the_text_is_cut(
    architecture: str,
    checkpoint: Callable[[str], Path],
    bundle: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = checkpoint(f"{architecture}-token")
    labels = list(transformers.AutoConfig.from_pretrained(teacher).id2label.values())
    rows = [{"tokens": row["text"].split(), "tags": [labels[0]] * len(row["text"].split())} for row in sentences(30)]
    rows[7] = {"tokens": ["extraordinarily"] * 400, "tags": [labels[1]] * 400}
    data = load_tagged(str(write_jsonl(tmp_path / "rows.jsonl", rows)), labels=labels)
    ours = answers(data, teacher, tmp_path / "a")
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    model = transformers.AutoModelForTokenClassification.from_pretrained(teacher).eval()
    cut = 0
    for row, own in zip(data.train, ours, strict=True):
        read = tokenizer(row["text"], truncation=True, return_offsets_mapping=True, return_tensors="pt")
        offsets = read.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            theirs = model(**read).logits[0].numpy()
        for (start, end), answer in zip(row["words"], own, strict=True):
            token = next((i for i, (a, b) in enumerate(offsets) if a < b and a < end and b > start), None)
            cut += token is None
            assert np.isnan(answer).all() if token is None else np.abs(answer - theirs[token]).max() <= 1e-4
    assert 0 < cut < 400
    with monkeypatch.context() as patch:
        patch.setattr(teaching, "_opened", lambda *args: 1 / 0)
        kept = answers(data, teacher, tmp_path / "a")  # what a resumed run does, and each trial of a sweep
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(ours, kept, strict=True))
    again = answers(data, bundle(f"{architecture}-token"), tmp_path / "b")
    assert max(np.nanmax(np.abs(a - b)) for a, b in zip(ours, again, strict=True)) <= 1e-4
    assert [np.isnan(a).sum() for a in ours] == [np.isnan(b).sum() for b in again]


def letters(texts: list[str], **options: Any) -> dict[str, Any]:
    """A tokenizer for which every letter is a token."""
    spans = [[(i, i + 1) for i, letter in enumerate(text) if letter != " "] for text in texts]
    return {"input_ids": [[1] * len(span) for span in spans], "offset_mapping": spans}


@pytest.mark.parametrize("every", [True, False])
def test_pieces_go_on_with_the_probabilities_of_their_word(every: bool) -> None:
    labels = ("O", "B-X", "I-X", "E-X", "S-X")
    task = TokenLabels(labels=labels, label_all_tokens=every)
    said = np.log(np.array([[0.1, 0.2, 0.05, 0.25, 0.4], [0.6, 0.1, 0.1, 0.1, 0.1]], dtype=np.float32)) + 3
    rows = {"text": ["abc d"], "words": [[(0, 3), (4, 5)]], "target": [[4, 0]], TEACHER: [said.ravel().tolist()]}
    encoded = task.encode(rows, letters, 512)
    row = {name: column[0] for name, column in encoded.items()}
    batch = collate_with_teacher([row], collate=lambda rows: task.collate(rows, multiple=64))
    found = batch[TEACHER].softmax(-1).numpy()
    begins, inside, ends = [0.1, 0.6, 0.3, 0, 0], [0.1, 0, 0.9, 0, 0], [0.1, 0, 0.25, 0.65, 0]
    whole = [0.1, 0.2, 0.05, 0.25, 0.4]
    pieces = [begins, inside, ends] if every else [whole]
    assert found == pytest.approx(np.array([*pieces, [0.6, 0.1, 0.1, 0.1, 0.1]]), abs=1e-6)
    assert len(batch["chosen"]) == len(found)


def test_the_loss_is_the_divergence_of_softened_tags_over_the_tokens_with_a_target() -> None:
    torch.manual_seed(0)
    task = TokenLabels(labels=IOB2, label_all_tokens=True)
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    teacher[1, 2] = -torch.inf
    teacher[3] = torch.nan  # a word that it has not read
    loss = task.imitate(student, {TEACHER: teacher}, temperature=2.0)
    theirs = torch.distributions.Categorical(logits=teacher[:3] / 2)
    own = (student / 2).log_softmax(-1)[:3]
    wanted = 4 * (torch.xlogy(theirs.probs, theirs.probs) - theirs.probs * own).sum() / 4
    assert torch.allclose(loss, wanted, rtol=1e-5)
    loss.backward()
    assert student.grad is not None and bool(student.grad.isfinite().all()) and not student.grad[3].any()
    same = teacher[:1].clone().requires_grad_()
    task.imitate(same, {TEACHER: teacher[:1]}, temperature=2.0).backward()
    assert same.grad is not None and same.grad.abs().max() <= 1e-6
    assert task.imitate(student[:0], {TEACHER: teacher[:0]}, temperature=2.0).item() == 0


def test_a_batch_in_which_no_token_has_a_target_has_no_answers() -> None:
    task = TokenLabels(labels=IOB2, label_all_tokens=True)
    row = {"input_ids": [2, 3], "target": [IGNORED, IGNORED], TEACHER: []}
    assert TEACHER not in collate_with_teacher([row], collate=lambda rows: task.collate(rows, multiple=64))


def tagged(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences with names in them, tagged as persons."""
    draw, rows = random.Random(seed), []
    for row in sentences(count, seed=seed):
        words = row["text"].split()
        at, name = draw.randrange(len(words)), draw.choice(NAMES).split()
        tags = ["O"] * at + ["B-PER", "I-PER"][: len(name)] + ["O"] * (len(words) - at)
        rows.append({"tokens": [*words[:at], *name, *words[at:]], "tags": tags})
    return rows


def test_a_tagger_of_other_tokens_is_followed_where_tags_say_nothing(tmp_path: Path) -> None:
    rows = tagged(400, seed=1)
    spelled = write_jsonl(tmp_path / "texts.jsonl", [{"text": " ".join(row["tokens"])} for row in rows])
    plain = write_jsonl(tmp_path / "plain.jsonl", sentences(50))  # whose tokenizer spells names in many pieces
    first, other = (tmp_path / name for name in ("first", "other"))
    for folder, texts in ((first, spelled), (other, plain)):
        folder.mkdir()
        make_scratch(folder, texts, num_hidden_layers=2)
    options = ["--task", "token-classification", "--max-length", "64", "--threads", "1", "--learning-rate", "5e-3"]
    options += ["--labels", "O,B-PER,I-PER", "--batch-size", "16", "--quiet"]
    options += ["--eval", str(write_jsonl(tmp_path / "held.jsonl", tagged(60, seed=2)))]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    start = ["train", "--from-scratch", str(first), "--train", data, "--output", str(teacher), "--epochs", "2"]
    assert run([*start, *options]) == 0
    draw = random.Random(0)
    noise = [{**row, "tags": [draw.choice(["O", "B-PER", "I-PER"]) for _ in row["tags"]]} for row in rows]
    start = ["train", "--from-scratch", str(other), "--train", str(write_jsonl(tmp_path / "noise.jsonl", noise))]
    start += ["--output", str(student), "--teacher", str(teacher), "--teacher-weight", "1", "--epochs", "3"]
    assert run([*start, *options]) == 0
    lengths = [len(open_tokenizer(folder)("Simsalabim")["input_ids"]) for folder in (teacher, student)]
    assert lengths[0] < lengths[1]
    found = transformers.AutoConfig.from_pretrained(student).nopad_training["metrics"]
    assert found["f1"] >= 0.9, "names that random tags never showed"


def test_a_teacher_with_other_tags_or_another_task_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"tokens": ["Ada", "left"], "tags": ["B-PER", "O"]}, {"tokens": ["She", "stayed"], "tags": ["O", "O"]}] * 9
    data = load_tagged(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    with pytest.raises(UsageError, match=r"knows the labels class 0, .*, the training data has O, B-PER; name the"):
        answers(data, checkpoint("bert-token"), tmp_path)
    with pytest.raises(UsageError, match=r"does text-classification .*, the student is to do token-classification"):
        answers(data, DEFAULT_BUNDLE, tmp_path)
