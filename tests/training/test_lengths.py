"""The lengths of the texts that a run was trained on: told, stored in the checkpoint, and planned for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nopad.runtime.cli import run
from nopad.training.batches import text_lengths, token_counts
from nopad.training.lengths import length_report

Capture = pytest.CaptureFixture[str]


def test_a_checkpoint_brings_the_lengths_of_its_texts(command_run: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(command_run.output)
    rows = [json.loads(line) for line in (command_run.data.parent / "rows.jsonl").read_text().splitlines()]
    expected = Counter(len(ids) for ids in tokenizer([row["text"] for row in rows], max_length=64)["input_ids"])
    stored = json.loads((command_run.output / "lengths.json").read_text())
    assert stored == {str(length): expected[length] for length in sorted(expected)}
    record = json.loads((command_run.output / "config.json").read_text())["nopad_training"]["lengths"]
    assert (record["texts"], record["longest"], record["at_limit"]) == (300, max(expected), 0)
    told = next(line for line in command_run.said.splitlines() if line.startswith("tokens of 300 texts: "))
    assert f"50 % at most {record['p50']}" in told and "0 % reach --max-length 64" in told
    assert told in " ".join((command_run.output / "README.md").read_text().split()).replace("\\", "")


def test_plan_takes_the_lengths_of_the_checkpoint(command_run: Any, capsys: Capture) -> None:
    answers = []
    for own in ([], ["--lengths", str(command_run.output / "lengths.json")]):
        assert run(["plan", "--json", "--model", str(command_run.output), *own]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] and answers[0]["texts"] == 300
    assert answers[0]["source"] == str(command_run.output / "lengths.json")


def test_each_text_of_a_row_counts_by_itself() -> None:
    """Embeddings train on rows of several texts, of which a server sees one at a time."""
    rows = [{"input_ids": [2, 5, 3, 2, 5, 6, 3], "lengths": [3, 4]}, {"input_ids": [2, 3] * 3, "lengths": [2, 2, 2]}]
    data = Dataset.from_list(rows)
    report = length_report(text_lengths(data), 4, divided=False)
    assert report.counts == {2: 3, 3: 1, 4: 1} and report.at_limit == 0.2
    assert token_counts(data).tolist() == [7, 6]


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 100))
def test_percentiles_are_the_least_lengths_that_enough_texts_do_not_exceed(lengths: list[int], percent: int) -> None:
    report = length_report(np.array(lengths), 50, divided=False)
    found = report.percentile(percent)
    assert 100 * sum(length <= found for length in lengths) >= percent * len(lengths)
    assert 100 * sum(length < found for length in lengths) < percent * len(lengths)
    assert report.at_limit == lengths.count(50) / len(lengths)


def test_the_sentence_says_whether_long_texts_are_cut() -> None:
    cut, divided = (length_report(np.array([3, 4]), 4, divided=divided).line() for divided in (False, True))
    assert cut.startswith("tokens of 2 texts: ") and cut.endswith("50 % reach --max-length 4, where texts end")
    assert divided.startswith("tokens of 2 parts of texts: ") and divided.endswith("4, where texts are divided")
