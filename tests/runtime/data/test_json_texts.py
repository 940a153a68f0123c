"""JSON as pandas and others write it, and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from reading import outcome, records, texts

from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError

ROWS = [{"text": "a film", "label": 1}, {"text": 'so "so"\n', "label": 0}, {"text": "naïve", "label": 1}]


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t"])
@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
@pytest.mark.parametrize("indent", [None, 2])
def test_what_pandas_writes_in_every_orient(orient: Any, indent: int | None, name: str, tmp_path: Path) -> None:
    if indent and name != "t.json":
        name = "u.json"
    pandas.DataFrame(ROWS).to_json(tmp_path / name, orient=orient, indent=indent)
    assert records(tmp_path / name) == ROWS


def test_lines_and_other_layouts(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    pandas.DataFrame(ROWS).to_json(path, orient="records", lines=True)
    assert records(path) == ROWS
    for value in (
        {"data": ROWS},
        {"version": "1.1", "rows": ROWS},
        {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]},
    ):
        for indent in (None, 1):
            path.write_text(json.dumps(value, indent=indent))
            assert records(path) == ROWS
    only = {"text": "a film", "meta": [{"a": 1}, {"b": 2}], "more": {"c": 3}}
    for indent in (None, 1):
        path.write_text(json.dumps(only, indent=indent))
        assert records(path) == [only]
    path.write_text(json.dumps({"7": {"body": "a"}, "9": {"body": "b"}}))  # by ids
    assert texts(path) == ["a", "b"]
    path.write_text('["a film", 1]\n["dull", 0]\n')
    named = DataSource(path=str(path), columns=("text", "n"))
    assert records(named) == [{"text": "a film", "n": 1}, {"text": "dull", "n": 0}]
    path.write_text('[["a film", 1], ["dull", 0]]')
    assert records(named) == [{"text": "a film", "n": 1}, {"text": "dull", "n": 0}]
    assert "name its cells with --columns" in outcome(path)[1]
    path.write_text('["a film",\n "dull"]')
    assert texts(path) == ["a film", "dull"]


def test_an_object_of_objects_is_a_record_if_a_field_in_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"meta": {"review": "a film"}, "user": {"id": 1}}\n')
    assert texts(tmp_path / "t.jsonl", "meta.review") == ["a film"]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("meta.review.text", "deep"),
        ("meta.review", "! field 'meta.review' is not a text"),
        ("messages.0.content", "first"),
        ("messages.1.content", "second"),
        ("messages.2.content", "! field 'messages.2.content' is missing"),
        ("a.b", "with a dot"),
        ("meta.c.d", "with a dot inside"),
        ("META.Review.text", "deep"),
        ("text.0", "! field 'text.0' is missing"),
    ],
)
def test_dotted_paths(path: str, wanted: str, tmp_path: Path) -> None:
    record = {
        "text": "flat",
        "meta": {"review": {"text": "deep"}, "c.d": "with a dot inside"},
        "messages": [{"content": "first"}, {"content": "second"}],
        "a.b": "with a dot",
        "a": {"b": "no"},
    }
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
    found = outcome(tmp_path / "t.jsonl", path)
    assert list(found) == [1, 2] and all(text.startswith(wanted) for text in found.values())


def test_bad_lines_fail_alone(tmp_path: Path) -> None:
    lines = [
        '{"text": "a"}',
        "{broken",
        "[1]",
        "7",
        '"text"',
        "",
        '{"text": "b"}',
        '{"text": "\\ud800"}',
        '{"text": 1}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    found = outcome(tmp_path / "t.jsonl")
    assert [found[line][:1] for line in (2, 3, 4, 5, 9)] == ["!"] * 5 and 6 not in found
    assert (found[1], found[7], found[8]) == ("a", "b", "\ud800")
    for first in ("{broken", '{"text": "cut', '{"text": "a",', "[1]", "7"):
        (tmp_path / "t.jsonl").write_text(first + '\n{"text": "b"}\n{"text": "c"}\n')
        found = outcome(tmp_path / "t.jsonl")
        assert found[1].startswith("! the line is") and list(found.values())[1:] == ["b", "c"], first


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"text": "b"', '{"data": [\n{"text": "a"}\n', '{\n"text": 1'])
def test_a_broken_document_is_refused_whole(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputFileError, match="is not valid JSON: "):
        texts(tmp_path / "t.json")


@pytest.mark.parametrize("content", ["", "[]", "\n\n", '{"data": []}', "{}"])
def test_no_rows(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    if content in ('{"data": []}', "{}"):
        assert "is missing" in next(iter(outcome(tmp_path / "t.json").values()))
        return
    with pytest.raises(InputFileError, match="it has no rows"):
        texts(tmp_path / "t.json")
