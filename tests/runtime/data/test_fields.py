"""Finding columns: in any case, exactly if names are ambiguous, and with the existing names if there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import outcome, texts

from nopad.runtime.data.fields import MISSING, TEXT_COLUMNS, value_at
from nopad.runtime.data.records import read_rows
from nopad.runtime.errors import InputFileError


@pytest.mark.parametrize("header", ["Text", "TEXT", " text ", "REVIEW_BODY", "Sentence", "Content", "Body", "Tweet"])
def test_the_usual_names_whatever_their_case(header: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"id,{header},label\n1,a film,x\n")
    assert texts(tmp_path / "t.csv") == ["a film"] == texts(tmp_path / "t.csv", header.strip().lower())
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": 1, header: "a film"}) + "\n")
    assert texts(tmp_path / "t.jsonl") == ["a film"]


def test_several_that_differ_in_case_are_refused_unless_named_exactly(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Text,TEXT,text\na,b,c\n")
    assert texts(tmp_path / "t.csv") == ["c"] and texts(tmp_path / "t.csv", "TEXT") == ["b"]
    (tmp_path / "t.csv").write_text("Text,TEXT\na,b\n")
    with pytest.raises(InputFileError, match="'text' may be 'Text' or 'TEXT'; name one exactly with --field"):
        texts(tmp_path / "t.csv")
    with pytest.raises(InputFileError, match="'text' may be 'Text' or 'TEXT'"):
        texts(tmp_path / "t.csv", "text.body")
    (tmp_path / "t.jsonl").write_text('{"Text": "a"}\n{"Text": "a", "TEXT": "b"}\n')
    assert outcome(tmp_path / "t.jsonl", "text")[2] == "! 'text' may be 'Text' or 'TEXT'"


def test_what_is_there_is_listed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",".join(f"c{n}" for n in range(40)) + "\n" + "1," * 39 + "1\n")
    with pytest.raises(InputFileError, match=r"no column text or .* \(it has: c0, .* and 20 more\); .*--field"):
        texts(tmp_path / "t.csv")


def test_the_field_of_most_records_is_that_of_all(tmp_path: Path) -> None:
    rows = [{"x": 1}, {"content": "no"}, {"text": "a", "content": "no"}, {"text": "b"}, {"content": "no"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = outcome(tmp_path / "t.jsonl")
    assert [found[line][0] for line in range(1, 6)] == ["!", "!", "a", "b", "!"]
    assert "field 'text' is missing (found: content); name the right one with --field" in found[5]


def test_columns_that_are_kept(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,Lang,text\n1,en,a film\n2,fr,"broken\n3,de,dull\n')
    rows = list(read_rows(str(tmp_path / "t.csv"), keep=["id", "lang"]))
    assert [(row.line, dict(row.kept)) for row in rows] == [
        (2, {"id": "1", "lang": "en"}), (3, {}), (4, {"id": "3", "lang": "de"})
    ]  # fmt: skip
    assert dict(next(read_rows(str(tmp_path / "t.csv"), keep=["*"])).kept) == {
        "id": "1",
        "Lang": "en",
        "text": "a film",
    }
    with pytest.raises(InputFileError, match=r"no column 'country' .* name one with --keep"):
        next(read_rows(str(tmp_path / "t.csv"), keep=["country"]))
    (tmp_path / "t.jsonl").write_text('{"text": "a", "meta": {"id": 7}}\n{"text": 1, "meta": {"id": 8}}\n')
    kept = [dict(row.kept) for row in read_rows(str(tmp_path / "t.jsonl"), keep=["meta.id", "no"])]
    assert kept == [{"meta.id": 7, "no": None}, {"meta.id": 8, "no": None}]


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a film\n")
    with pytest.raises(InputFileError, match="plain text, a text on each line"):
        texts(tmp_path / "t.txt", "review")


@given(st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=2), max_size=4), st.text(max_size=5))
def test_any_key_finds_its_value(record: dict[str, str | None], path: str) -> None:
    for key, value in record.items():
        assert value_at(record, key) is value
    try:
        found = value_at(record, path)
    except ValueError:
        return
    assert found is MISSING or found in record.values()


def test_the_list_of_names_has_none_twice() -> None:
    assert len(set(TEXT_COLUMNS)) == len(TEXT_COLUMNS) and all(name == name.casefold() for name in TEXT_COLUMNS)
