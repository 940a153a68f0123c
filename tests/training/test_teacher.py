"""Distillation: what the student follows, whom it may ask, what is kept, what is refused."""

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr
from st_folders import library, quiet
from training_samples import logits, sentences, write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.errors import UsageError
from nopad.training import teacher as teaching
from nopad.training import trainer
from nopad.training.data import TrainingData, load_data
from nopad.training.pair_data import load_pairs, load_passages
from nopad.training.run_folder import KEPT
from nopad.training.tasks.base import TEACHER, Task
from nopad.training.tasks.embeddings import SCALE, Pairs
from nopad.training.tasks.multi_label import MultiLabel
from nopad.training.tasks.regression import Regression
from nopad.training.tasks.single_label import SingleLabel
from nopad.training.teacher import taught, teacher_digest

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
    digest = f"rows {teacher_digest(str(teacher))}"
    answers = taught(data, str(teacher), kept=work / KEPT, digest=digest, console=Console(quiet=True), log_every=30.0)
    assert [row for row in answers.train.remove_columns(TEACHER)] == list(data.train)
    return np.concatenate([np.asarray(row, dtype=np.float32) for row in answers.train[TEACHER]]).reshape(
        -1, len(data.labels) or len(answers.train[TEACHER][0]) // len(data.train[0].get("texts", [0]))
    )


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


def test_answers_are_kept_for_the_same_teacher_and_rows_alone(
    teacher: Path, teacher_bundle: Path, tmp_path: Path
) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(40)], tmp_path)
    first = ask(data, teacher, tmp_path)
    kept = tmp_path / KEPT
    intact = kept.read_bytes()
    key = json.loads(intact[8 : 8 + int.from_bytes(intact[:8], "little")])["__metadata__"]
    save_file({"answers": load_file(kept)["answers"] + 1}, kept, metadata=key)
    assert np.array_equal(ask(data, teacher, tmp_path), first + 1)  # not asked again
    assert np.abs(ask(data, teacher_bundle, tmp_path) - first).max() <= 1e-4  # another teacher is
    kept.write_bytes(intact[: len(intact) // 2])
    assert np.array_equal(ask(data, teacher, tmp_path), first)
    assert kept.read_bytes() == intact


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each question to a teacher that is a checkpoint; -1 where one is opened."""
    inner = teaching._open_checkpoint
    seen: list[int] = []

    def counted(*args: Any) -> Any:
        seen.append(-1)
        own = inner(*args)

        def ask(rows: Any) -> Any:
            seen.append(len(next(iter(rows.values()))))
            return own.ask(rows)

        return replace(own, ask=ask)

    monkeypatch.setattr(teaching, "_open_checkpoint", counted)
    monkeypatch.setattr(teaching, "_ASKED", 16)
    return seen


def test_a_log_says_how_far_the_teacher_is(teacher: Path, tmp_path: Path, opened: list[int]) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(60)], tmp_path)
    log = Console(file=io.StringIO(), width=200)
    taught(data, str(teacher), kept=tmp_path / KEPT, digest="one", console=log, log_every=0.0)
    lines = log.file.getvalue().splitlines()  # type: ignore[attr-defined]
    told = [line for line in lines if "rows answered" in line]
    assert len(told) == len(opened) - 1 and told[0].startswith("teacher: 16 of ") and told[-1].endswith(" 0 s left")


def test_what_a_teacher_has_answered_before_an_interruption_is_not_asked_again(
    teacher: Path, tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(60)], tmp_path)
    whole = ask(data, teacher, tmp_path / "whole")
    opened.clear()
    counted = teaching._open_checkpoint

    def interrupted(*args: Any) -> Any:
        own = counted(*args)

        def ask(rows: Any) -> Any:
            if len(opened) == 3:
                raise KeyboardInterrupt
            return own.ask(rows)

        return replace(own, ask=ask)

    with monkeypatch.context() as patch:
        patch.setattr(teaching, "_open_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(data, teacher, tmp_path / "kept")
    assert np.array_equal(ask(data, teacher, tmp_path / "kept"), whole)
    assert opened == [-1, 16, 16, -1, 16, len(whole) - 48]


_KILLED = """
import sys, threading
from nopad.runtime.cli import run
from nopad.training import teacher

teacher._ASKED, teacher._KEEP_SECONDS, teacher._KEEP_SHARE = 16, 0.0, 1e9  # kept after each of its batches
inner, asked = teacher._open_checkpoint, []

def slow(*args):
    own = inner(*args)

    def ask(rows):
        asked.append(rows)
        if len(asked) == 3:
            threading.Event().wait()  # for the end
        return own.ask(rows)

    return teacher.dataclasses.replace(own, ask=ask)

teacher._open_checkpoint = slow
run(sys.argv[1:])
"""


def test_a_process_that_was_killed_while_it_asked_goes_on_where_it_was(
    teacher: Path, scratch: Path, tmp_path: Path, opened: list[int]
) -> None:
    rows = [{**row, "label": LABELS[row["label"]]} for row in sentences(80)]
    start = ["train", "--train", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--from-scratch", str(scratch)]
    start += ["--max-length", "32", "--threads", "1", "--epochs", "1", "--labels", ",".join(LABELS), "--quiet"]
    start += ["--teacher", str(teacher), "--output", str(tmp_path / "out")]
    kept = tmp_path / "out.training" / KEPT

    def count() -> int:
        return len(load_file(kept)["answers"]) if kept.exists() else 0

    process = subprocess.Popen([sys.executable, "-c", _KILLED, *start])
    try:
        while count() < 32:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL and count() == 32
    (kept.parent / f".{KEPT}.abc.partial").write_bytes(b"cut short")  # as if it had been killed while it wrote
    assert run(start) == 0
    assert opened[:2] == [-1, 16] and sum(opened[1:]) + 32 == 72, "the others were not asked again"
    assert not kept.parent.exists()


def test_answers_are_written_seldom_enough_to_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []

    def keep(found: np.ndarray[Any, Any]) -> None:
        clock[0] += len(found) / 10  # seconds: all are written each time
        written.append((clock[0], len(found)))

    def parts() -> Any:
        for n in range(1000):
            clock[0] += 30.0
            yield np.full((1, 2), n, dtype=np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr(teaching, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with pytest.raises(KeyboardInterrupt):
        teaching._collected(parts(), keep)
    assert written[0][0] <= 60.2 and written[-1][1] == 1000
    spent = sum(count / 10 for _, count in written[:-1])
    assert 50 < spent <= 0.03 * clock[0] and len(written) >= 20


def test_of_several_processes_the_first_asks_and_the_others_wait_for_its_answers(
    teacher: Path, tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of([{**row, "label": LABELS[row["label"]]} for row in sentences(40)], tmp_path)
    whole = ask(data, teacher, tmp_path / "first")
    opened.clear()
    kept, other = tmp_path / "first" / KEPT, tmp_path / "other" / KEPT
    other.parent.mkdir()
    answers = load_file(kept)["answers"]
    with safe_open(kept, framework="numpy") as file:
        key = file.metadata()
    save_file({"answers": answers[:16]}, other, metadata=key)  # of an interrupted run
    monkeypatch.setenv("RANK", "1")
    later = threading.Timer(1.5, lambda: shutil.copy(kept, other.with_name("whole")).rename(other))
    begun = time.monotonic()
    later.start()
    try:
        assert np.array_equal(ask(data, teacher, tmp_path / "other"), whole)
    finally:
        later.cancel()
    assert time.monotonic() - begun >= 1.5 and opened == []


def test_a_run_that_failed_before_it_saved_and_all_trials_of_a_sweep_ask_once(
    teacher: Path,
    scratch: Path,
    tmp_path: Path,
    opened: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("optuna", reason="sweeps need Optuna")
    rows = [{**row, "label": LABELS[row["label"]]} for row in sentences(40)]
    start = ["train", "--train", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--from-scratch", str(scratch)]
    start += ["--max-length", "32", "--threads", "1", "--epochs", "1", "--labels", ",".join(LABELS)]
    start += ["--teacher", str(teacher)]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_make_trainer", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run([*start, "--output", str(tmp_path / "a")])
    assert "teacher: out, reads up to 64 tokens of a text" in capsys.readouterr().err
    assert run([*start, "--output", str(tmp_path / "a"), "--quiet"]) == 0
    assert opened.count(-1) == 1 and not (tmp_path / "a.training").exists()
    sweep = ["--trials", "2", "--sweep", "temperature=1,4", "--quiet"]
    assert run([*start, "--output", str(tmp_path / "b"), *sweep]) == 0
    assert opened.count(-1) == 2 and not (tmp_path / "b.sweep").exists()


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
