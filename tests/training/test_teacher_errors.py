"""Teachers that do not fit, by the command: another task, other labels, a tokenizer that reads less."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file
from teacher_answers import LABELS
from training_samples import logits, sentences, write_jsonl

from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.cli import run
from nopad.training import trainer
from nopad.training.run_folder import KEPT

ROWS: dict[str, list[dict[str, Any]]] = {
    "text-classification": sentences(40),
    "embeddings": [{"anchor": row["text"], "positive": "a film", "negative": "the end"} for row in sentences(40)],
    "rerank": [{"query": f"which {n // 4}", "passage": r["text"], "label": n % 2} for n, r in enumerate(sentences(40))],
    "token-classification": [{"tokens": row["text"].split(), "tags": ["O"] * 40} for row in sentences(40)],
}
for row in ROWS["token-classification"]:
    row["tags"] = ["O"] * (len(row["tokens"]) - 1) + ["B-X"]


@pytest.fixture
def start(scratch: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """A command for a student of some task that lacks its teacher."""

    def command(task: str) -> list[str]:
        data = write_jsonl(tmp_path / "rows.jsonl", ROWS[task])
        options = ["train", "--task", task, "--from-scratch", str(scratch), "--train", str(data), "--threads", "1"]
        return [*options, "--max-length", "64", "--epochs", "1", "--output", str(tmp_path / "out"), "--teacher"]

    return command


@pytest.mark.parametrize("task", ["embeddings", "rerank", "token-classification"])
def test_a_bundle_of_another_task_is_refused_before_it_is_asked(
    task: str, start: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*start(task), str(DEFAULT_BUNDLE)]) == 2
    said = capsys.readouterr().err
    assert f"{DEFAULT_BUNDLE} does text-classification single_label_classification, the student is to do {task}" in said
    assert "reads up to" not in said and not (tmp_path / "out.training").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["bert-embed-default", "bert-rerank", "bert-token"])
def test_a_classifier_learns_from_classifiers_alone(
    name: str, start: Callable[[str], list[str]], bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*start("text-classification"), str(bundle(name))]) == 2
    assert "the student is to do text-classification single_label_classification; name another" in (
        capsys.readouterr().err
    )


def test_a_bundle_with_other_labels_is_refused_and_told_how_to_name_them(
    start: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = json.loads((DEFAULT_BUNDLE / "manifest.json").read_text())["labels"]
    command = [*start("text-classification"), str(DEFAULT_BUNDLE)]
    assert run([*command, "--labels", "no,yes"]) == 2
    said = capsys.readouterr().err
    assert (
        f"knows the labels {', '.join(labels)}, the training data has no, yes; name the teacher's with --labels" in said
    )
    assert run([*command, "--labels", ",".join(labels), "--quiet"]) == 0


def test_a_teacher_that_reads_less_than_the_student_says_so_and_answers_what_it_reads(
    start: Callable[[str], list[str]],
    command_run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = {"text": "the film was long and " * 60 + "good", "label": 1}  # whose last word the student alone reads
    monkeypatch.setitem(ROWS, "text-classification", [long, *sentences(39)])
    command = [*start("text-classification"), str(command_run.output), "--labels", ",".join(LABELS)]
    command[command.index("--max-length") + 1] = "256"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_make_trainer", lambda *args: 1 / 0)  # what was asked is kept
        with pytest.raises(ZeroDivisionError):
            run([*command, "--eval", str(write_jsonl(tmp_path / "held.jsonl", sentences(10, seed=1)))])
    assert "teacher: out, reads up to 64 tokens of a text" in capsys.readouterr().err
    kept = load_file(tmp_path / "out.training" / KEPT)["answers"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(command_run.output)
    assert len(tokenizer(long["text"])["input_ids"]) > 200
    read, _ = logits(Path(command_run.output), [long["text"]])
    assert np.abs(kept - read.numpy()).max(axis=1).min() <= 1e-4, "cut where its own limit is"
