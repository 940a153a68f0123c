"""The texts that int8 is made for: `--calibrate` with columns of its own, and pairs of texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from nopad.export.parity.samples import PAIRS
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import run

Checkpoints = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
ROWS = [{"query": f"{query} {n}", "passage": passage} for n in range(20) for query, passage in PAIRS]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [*map(json.dumps, ROWS), json.dumps({"query": "no passage"}), json.dumps({"passage": "no query"})]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path / "pairs.jsonl"


def export(folder: Path, rows: Path, *options: str) -> int:
    command = ["export", str(folder), "--precision", "int8", "--output", str(rows.parent / "bundle"), "--threads", "1"]
    return run([*command, "--quiet", "--no-parity", "--calibrate", str(rows), *options])


@pytest.mark.parametrize(("name", "task"), [("bert-single", []), ("modernbert-rerank", ["--task", "rerank"])])
def test_pairs_are_read_as_the_model_reads_them(
    name: str, task: list[str], checkpoint: Checkpoints, rows: Path, capsys: Capture
) -> None:
    assert export(checkpoint(name), rows, "--text-field", "query", "--second-field", "passage", *task) == 0
    (artifact,) = open_bundle(rows.parent / "bundle").manifest.artifacts
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(name))
    ids = tokenizer([row["query"] for row in ROWS], [row["passage"] for row in ROWS])["input_ids"]
    assert artifact.quantized is not None and artifact.quantized["tokens"] == sum(map(len, ids))


def test_the_texts_of_any_column(checkpoint: Checkpoints, rows: Path) -> None:
    assert export(checkpoint("bert-single"), rows, "--text-field", "passage") == 0
    (artifact,) = open_bundle(rows.parent / "bundle").manifest.artifacts
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("bert-single"))
    ids = tokenizer([*(row["passage"] for row in ROWS), "no query"])["input_ids"]
    assert artifact.quantized is not None and artifact.quantized["tokens"] == sum(map(len, ids))


@pytest.mark.parametrize(
    ("name", "options", "code", "words"),
    [
        ("modernbert-rerank", ["--task", "rerank", "--text-field", "passage"], 2, "a reranker reads pairs"),
        ("bert-token", ["--text-field", "query", "--second-field", "passage"], 2, "-classification reads no pairs"),
        ("bert-single", [], 3, "no texts to calibrate on (line 1: field text or sentence or content or review is "
         "missing (found: passage, query); name the right one with --text-field)"),
        ("bert-single", ["--text-field", "query", "--second-field", "answer"], 3, "line 1: field 'answer' is missing"),
    ],
)  # fmt: skip
def test_what_is_no_text_to_calibrate_on_is_named(
    name: str, options: list[str], code: int, words: str, checkpoint: Checkpoints, rows: Path, capsys: Capture
) -> None:
    assert export(checkpoint(name), rows, *options) == code
    assert words in capsys.readouterr().err and not (rows.parent / "bundle").exists()


def test_columns_without_a_file(checkpoint: Checkpoints, tmp_path: Path, capsys: Capture) -> None:
    command = ["export", str(checkpoint("bert-single")), "--output", str(tmp_path / "bundle"), "--second-field", "b"]
    assert run(command) == 2
    assert "--text-field and --second-field are of the texts of --calibrate FILE" in capsys.readouterr().err
