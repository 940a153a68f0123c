"""Sweeps of other tasks than classification, and with a teacher that reads each batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from training_samples import sentences, write_jsonl

from nopad.runtime.cli import run

pytest.importorskip("optuna", reason="sweeps need Optuna")
QUICK = ["--max-length", "32", "--threads", "1", "--batch-size", "16", "--epochs", "1", "--json", "--quiet"]


def tagged(count: int, seed: int) -> list[dict[str, Any]]:
    rows = [row["text"].split() for row in sentences(count, seed=seed)]
    return [{"tokens": row, "tags": ["B-X" if word in ("good", "bad") else "O" for word in row]} for row in rows]


def passages(count: int, seed: int) -> list[dict[str, Any]]:
    rows = sentences(count, seed=seed)
    return [{"query": f"which {n // 4}", "passage": row["text"], "label": row["label"]} for n, row in enumerate(rows)]


def swept(command: list[str], output: Path, metric: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Two trials, then a third; returns the settings and values of all, whose best must be the output."""
    assert run([*command, "--trials", "2"]) == 0
    assert run([*command, "--trials", "3", "--resume"]) == 0
    *trials, figures = map(json.loads, capsys.readouterr().out.splitlines()[3:])
    assert [one["state"] for one in trials] == ["finished"] * 3 and {one["metric"] for one in trials} == {metric}
    best = min if metric == "perplexity" else max
    assert best(one["value"] for one in trials) == figures[metric]
    record = json.loads((output / "config.json").read_text())["nopad_training"]
    assert record["trials"] == 3 and record["metrics"][metric] == figures[metric]
    chosen = next(one["settings"] for one in trials if one["value"] == figures[metric])
    assert {name: record["recipe"][name.replace("-", "_")] for name in chosen} == chosen
    assert f"{metric} by trial" in (output / "sweep.html").read_text()
    assert not output.with_name(f"{output.name}.sweep").exists()
    return trials


@pytest.mark.parametrize(
    ("task", "rows", "metric", "opens"),
    [
        pytest.param(
            "token-classification", tagged, "f1", transformers.AutoModelForTokenClassification, marks=pytest.mark.slow
        ),
        ("rerank", passages, "ndcg@10", transformers.AutoModelForSequenceClassification),
    ],
)
def test_the_best_tagger_and_the_best_reranker_become_the_output(
    task: str,
    rows: Callable[[int, int], list[dict[str, Any]]],
    metric: str,
    opens: Any,
    scratch: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, held = (write_jsonl(tmp_path / f"{seed}.jsonl", rows(count, seed)) for seed, count in enumerate((64, 24)))
    command = ["train", "--task", task, "--from-scratch", str(scratch), "--train", str(data), "--eval", str(held)]
    command += [*QUICK, "--output", str(tmp_path / "out"), "--sweep", "learning-rate=1e-4..1e-2"]
    trials = swept([*command, "--sweep", "batch-size=8,16"], tmp_path / "out", metric, capsys)
    assert len({one["settings"]["learning-rate"] for one in trials}) == 3
    opens.from_pretrained(tmp_path / "out")


def test_a_swept_tagger_and_a_swept_reranker_ask_their_teacher_once(
    checkpoint: Callable[[str], Path], scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = checkpoint("bert-token")
    labels = list(transformers.AutoConfig.from_pretrained(teacher).id2label.values())
    rows = [{**row, "tags": [labels[tag != "O"] for tag in row["tags"]]} for row in tagged(40, 0)]
    rows[3]["tokens"], rows[3]["tags"] = ["film"] * 400, [labels[0]] * 400  # more than the teacher reads
    files = (write_jsonl(tmp_path / "tags.jsonl", rows), write_jsonl(tmp_path / "passages.jsonl", passages(40, 0)))
    start = ["train", "--from-scratch", str(scratch), *(option for option in QUICK if option != "--quiet")]
    start += ["--sweep", "teacher-weight=0.2..0.9", "--trials", "2"]
    for task, name, data, more in (
        ("token-classification", "bert-token", files[0], ["--labels", ",".join(labels)]),
        ("rerank", "bert-rerank", files[1], []),
    ):
        command = [*start, "--task", task, "--train", str(data), "--teacher", str(checkpoint(name)), *more]
        assert run([*command, "--output", str(tmp_path / task)]) == 0
        told, said = capsys.readouterr()
        assert [json.loads(line)["state"] for line in told.splitlines()[:2]] == ["finished"] * 2
        assert said.count("of a text") == said.count("teacher: ") == 1, said


@pytest.mark.parametrize("task", ["text-classification", pytest.param("fill-mask", marks=pytest.mark.slow)])
def test_a_teacher_that_reads_each_batch_is_there_in_every_trial(
    task: str,
    checkpoint: Callable[[str], Path],
    command_run: Any,
    scratch: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tags = task == "text-classification"
    teacher = Path(command_run.output) if tags else checkpoint("modernbert-mlm")
    config = json.loads(((scratch if tags else teacher) / "config.json").read_text())
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config | {"hidden_size": 16, "num_hidden_layers": 1}))
    data = write_jsonl(tmp_path / "rows.jsonl", [row if tags else {"text": row["text"]} for row in sentences(60)])
    command = ["train", "--task", task, "--from-scratch", str(tmp_path / "small"), "--tokenizer", str(teacher)]
    command += ["--train", str(data), *QUICK, "--output", str(tmp_path / "out"), "--teacher", str(teacher)]
    command += ["--sweep", "teacher-states=0..4", "--sweep", "temperature=1,2"]
    if tags:
        command += ["--labels", "neg|ative,posi_tive"]
    trials = swept(command, tmp_path / "out", "f1" if tags else "perplexity", capsys)
    assert trials[0]["settings"] == {"teacher-states": 0.0, "temperature": 2.0}, "the command's own are tried first"
    assert len({one["settings"]["teacher-states"] for one in trials}) == 3


def test_a_teacher_that_no_trial_can_ask_ends_the_sweep_at_once(
    command_run: Any, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", sentences(40))
    command = ["train", "--from-scratch", str(scratch), "--train", str(rows), *QUICK, "--output", str(tmp_path / "o")]
    command += ["--trials", "2"]
    assert run([*command, "--sweep", "teacher-states=1,2"]) == 2
    assert "--teacher-states is the weight of a teacher's; name it with --teacher" in capsys.readouterr().err
    command += ["--teacher", str(command_run.output), "--sweep", "temperature=1,2"]
    capsys.readouterr()
    assert run(command) == 2  # rows have the labels LABEL_0 and LABEL_1
    told, said = capsys.readouterr()
    assert "knows the labels neg|ative, posi_tive, the training data has LABEL_0, LABEL_1" in said and not told
    assert run([*command, "--labels", "neg|ative,posi_tive"]) == 0, "mended, it begins anew"
