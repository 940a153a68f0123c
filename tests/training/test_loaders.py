"""Each task has its loader, and options of other tasks are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_samples import write_jsonl

from nopad.runtime.errors import UsageError
from nopad.training.commands.train import TRAINED
from nopad.training.errors import DataError
from nopad.training.loaders import LOADERS, load


def test_the_command_offers_the_tasks_that_have_a_loader() -> None:
    assert tuple(LOADERS) == TRAINED


def test_an_option_of_another_task_is_refused() -> None:
    with pytest.raises(UsageError, match="--words-column does not apply to --task text-classification"):
        load("text-classification", "rows.jsonl", words_column="words", label_column=None)


def rows_of(task: str, count: int) -> list[dict[str, Any]]:
    """Rows of a task, two of each `author`."""
    made: dict[str, Callable[[int], dict[str, Any]]] = {
        "text-classification": lambda n: {"text": f"text {n}", "label": n % 2},
        "embeddings": lambda n: {
            "anchor": f"a {n}",
            "positive": f"b {n}",
            "negative": [f"c {k}" for k in range(n % 3)],
        },
        "rerank": lambda n: {"query": f"q {n}", "passage": f"p {n}", "label": n % 2},
        "token-classification": lambda n: {"tokens": ["word", str(n)], "tags": ["O", "B-A"]},
        "fill-mask": lambda n: {"text": f"text {n}"},
    }
    return [made[task](n) | {"author": f"author {n // 2}"} for n in range(count)]


def values(rows: Any) -> list[str]:
    """Each row's texts, as one."""
    names = [name for name in ("text", "texts", "query", "passage") if name in rows.column_names]
    return [json.dumps(row) for row in zip(*(rows[name] for name in names), strict=True)]


@pytest.mark.parametrize("task", LOADERS)
def test_repeats_are_told_and_dropped_for_every_task(task: Any, tmp_path: Path) -> None:
    rows = rows_of(task, 20)
    train = str(write_jsonl(tmp_path / "train.jsonl", [*rows, rows[0], rows[1], rows[0]]))
    held = str(write_jsonl(tmp_path / "held.jsonl", [rows[5], *rows_of(task, 24)[20:]]))
    kept, dropped = (load(task, train, held, duplicates=choice) for choice in ("keep", "drop"))
    assert (len(kept.train), len(dropped.train)) == (23, 19) and len(dropped.evaluation) == 5
    expected = values(kept.train)
    del expected[20:], expected[5]
    assert values(dropped.train) == expected
    for data in (kept, dropped):
        repeats, shared = (text for text in data.remarks if "exactly" in text)
        assert repeats.startswith("3 of 23 rows of the training data repeat the text of an earlier one, 3 exactly")
        assert shared.startswith("1 rows of the training data have a text of the evaluation data, 1 exactly")
        assert "train.jsonl, line 21 and " in repeats and "train.jsonl, line 6 and " in shared
    unasked = load(task, train, held)
    assert len(unasked.train) == 23 and (unasked.remarks == kept.remarks or task == "fill-mask")


@pytest.mark.parametrize("task", LOADERS)
def test_groups_stay_together_for_every_task(task: Any, tmp_path: Path) -> None:
    rows = rows_of(task, 40)
    source = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    data = load(task, source, split_group="author", eval_fraction=0.3)
    every = values(load(task, source, source).train)
    halves = [{rows[every.index(value)]["author"] for value in values(part)} for part in (data.train, data.evaluation)]
    assert len(halves[1]) == 6 and not halves[0] & halves[1]
    with pytest.raises(UsageError, match="--split-group says how to hold rows out, but there is evaluation data"):
        load(task, source, source, split_group="author")
    with pytest.raises(DataError, match="no column 'writer'"):
        load(task, source, split_group="writer")


def test_conflicting_tags_are_told(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": tags} for tags in (["O", "B-A"], ["B-A", "O"])]
    data = load("token-classification", str(write_jsonl(tmp_path / "rows.jsonl", [*rows, *rows])), eval_fraction=0.5)
    assert any(text.startswith("1 text has different labels in different rows") for text in data.remarks)
