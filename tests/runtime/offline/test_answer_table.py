"""`nopad predict` to tables: kept columns, scores as columns, CSV and Parquet equal to the JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from pyarrow import parquet

from nopad.runtime.cli import run
from nopad.runtime.predictor import Model

Bundles = Callable[[str], Path]
Predict = Callable[..., tuple[int, list[dict[str, Any]], str]]
ROWS = [
    {"id": 7, "lang": "en", "text": 'a "dull" film,\nreally', "label": "x", "score": 0.5},
    {"id": 8, "lang": None, "text": "splendid", "label": "y", "score": 1.0},
    {"id": 9, "lang": "fr", "text": "", "label": "z", "score": 2.0},
    {"id": 10, "lang": "=1+1", "text": "naïve 🎬", "label": "x", "score": 2.5},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{broken\n")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_columns_are_carried_through(predict: Predict, source: Path) -> None:
    code, rows, _ = predict("--input", source, "--keep", "id, Lang")
    assert code == 3 and [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert [(row.get("id"), row.get("Lang")) for row in rows] == [
        (7, "en"),
        (8, None),
        (9, "fr"),
        (10, "=1+1"),
        (None,) * 2,
    ]
    assert "empty" in rows[2]["error"] and set(rows[4]) == {"line", "error"}
    _, rows, _ = predict("--input", source, "--keep", "*")
    # The input's own label and score do not take the place of the answer's.
    assert (rows[0]["input_label"], rows[0]["input_score"], rows[0]["text"]) == ("x", 0.5, ROWS[0]["text"])
    assert rows[0]["label"].startswith("class ") and rows[0]["score"] == max(rows[0]["scores"].values())
    assert rows[2]["input_label"] == "z" and "error" in rows[2]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("keep", ["id,lang", "*"])
def test_tables_hold_what_the_lines_hold(
    suffix: str, keep: str, predict: Predict, source: Path, tmp_path: Path, bundle: Bundles
) -> None:
    output, plain = tmp_path / f"answers{suffix}", tmp_path / "answers.jsonl"
    code, _, err = predict("--input", source, "--output", output, "--keep", keep, "--scores")
    assert code == predict("--input", source, "--output", plain, "--keep", keep)[0] == 3, err
    wanted = lines(plain)
    if suffix == ".parquet":
        frame = pandas.read_parquet(output)
    else:
        frame = pandas.read_csv(output, sep="," if suffix == ".csv" else "\t", keep_default_na=False, na_values=[""])
    kept = ["id", "lang"] if keep != "*" else ["id", "lang", "text", "input_label", "input_score"]
    labels = list(wanted[0]["scores"])
    assert list(frame.columns)[: 3 + len(kept)] == ["line", *kept, "label", "score"]
    assert sorted(frame.columns[3 + len(kept) : -4]) == sorted(f"score_{label}" for label in labels)
    assert list(frame.columns)[-4:] == ["tokens", "tokens_used", "engine", "error"]
    for row, want in zip(frame.to_dict("records"), wanted, strict=True):
        flat = want | {f"score_{label}": score for label, score in want.get("scores", {}).items()}
        for name, value in row.items():
            expected = flat.get(name)
            if value is None or value != value:
                assert expected in (None, ""), (name, row)  # CSV cannot distinguish an empty text from a missing text
            else:
                assert value == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-6)), name
    assert {path.name for path in tmp_path.iterdir()} == {"t.jsonl", output.name, plain.name}


def test_types_of_parquet(predict: Predict, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"
    mixed = [1, "a", None, 2.5]
    rows = [{**row, "flag": True, "mixed": value, "deep": {"a": [1]}} for row, value in zip(ROWS, mixed, strict=True)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict("--input", source, "--output", output, "--keep", "id,score,flag,mixed,deep,absent")
    schema = {field.name: str(field.type) for field in parquet.read_schema(output)}
    assert {name: schema[name] for name in ("line", "id", "input_score", "flag", "score", "label", "error")} == {
        "line": "int64", "id": "int64", "input_score": "double", "flag": "bool", "score": "float", "label": "string",
        "error": "string",
    }  # fmt: skip
    found = parquet.read_table(output).to_pylist()
    assert [row["mixed"] for row in found] == ["1", "a", None, "2.5"] and found[0]["deep"] == '{"a": [1]}'
    assert "scores" not in schema and found[0]["absent"] is None


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("modernbert-token", "entities"),
        ("modernbert-mlm", "masks"),
        ("modernbert-multi-cls", "labels"),
        ("modernbert-embed-cls", "vector"),
        ("modernbert-tokens", "vectors"),
    ],
)
def test_answers_of_every_task(name: str, field: str, predict: Predict, tmp_path: Path) -> None:
    source, plain, output = tmp_path / "t.jsonl", tmp_path / "a.jsonl", tmp_path / "a.parquet"
    text = "a [MASK] film" if field == "masks" else "a splendid film"
    source.write_text(json.dumps({"text": text}) + '\n{"text": ""}\n')
    for path in (plain, output):
        assert predict("--input", source, "--output", path, name=name)[0] == 3
    (want, _), (row, failed) = lines(plain), parquet.read_table(output).to_pylist()
    assert failed["error"] and all(value is None for key, value in failed.items() if key not in ("line", "error"))
    if field in ("vector", "vectors"):
        assert ("fixed_size_list" in str(parquet.read_schema(output).field(field).type)) == (field == "vector")
        assert np.array_equal(np.float32(row[field]), np.float32(want[field]))
        assert row.get("tokens_text") == want.get("tokens_text")
        code, _, err = predict("--input", source, "--output", tmp_path / "a.csv", name=name)
        assert code == 2 and "a cell of CSV holds no vector; name it .parquet or .jsonl" in err
        return
    wanted = want.get("labels", [want.get("label")]) if field == "labels" else want[field]
    assert row[field] == wanted
    assert predict("--input", source, "--output", tmp_path / "a.csv", name=name)[0] == 3
    assert json.loads(pandas.read_csv(tmp_path / "a.csv").loc[0, field]) == wanted


def test_options_that_make_no_sense(predict: Predict, source: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--scores"], "lines of JSON have `scores` already"),
        (["--scores", "--output", tmp_path / "o.jsonl"], "lines of JSON have `scores` already"),
        (["--output", tmp_path / "o.xlsx"], ".xlsx is not written; name it .jsonl, .csv or .parquet"),
        (["--output", tmp_path / "o.csv.gz"], ".gz is not written"),
    ):
        code, _, err = predict("--input", source, *arguments)
        assert code == 2 and words in err
    assert run(["predict", "a film", "--keep", "id"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_interrupted_table_is_resumed_to_the_same_bytes(
    suffix: str, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "t.csv"
    source.write_text("id,text\n" + "".join(f"{n},film {n}\n" if n % 50 else f"{n},\n" for n in range(620)))
    calls, real = [0], Model.results

    def results(self: Model, *arguments: Any, **options: Any) -> Iterator[Any]:
        calls[0] += 1
        if calls[0] > 1:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    output, whole = tmp_path / f"o{suffix}", tmp_path / f"whole{suffix}"
    output.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(Model, "results", results)
        assert predict("--input", source, "--output", output, "--keep", "id")[0] == 130
    assert output.read_text() == "old" and (tmp_path / f"o{suffix}.partial").stat().st_size
    assert predict("--input", source, "--output", output, "--keep", "text", "--resume")[0] == 2
    assert predict("--input", source, "--output", output, "--keep", "id", "--resume")[0] == 3
    assert predict("--input", source, "--output", whole, "--keep", "id")[0] == 3
    assert output.read_bytes() == whole.read_bytes() and len(list(tmp_path.iterdir())) == 3


def test_a_folder_or_a_sheet_is_resumed_only_as_it_was(predict: Predict, tmp_path: Path) -> None:
    with pandas.ExcelWriter(tmp_path / "t.xlsx") as writer:
        for name in ("one", "two"):
            pandas.DataFrame({"text": [f"film {name}"]}).to_excel(writer, sheet_name=name, index=False)
    code, _, err = predict("--input", tmp_path / "t.xlsx", "--output", tmp_path / "o.jsonl")
    assert code == 0 and "read sheet 'one'" in err
    (tmp_path / "o.jsonl").rename(tmp_path / "o.jsonl.partial")
    assert predict("--input", f"{tmp_path}/t.xlsx#two", "--output", tmp_path / "o.jsonl", "--resume")[0] == 2
    assert predict("--input", f"{tmp_path}/t.xlsx", "--output", f"{tmp_path}/t.xlsx")[0] == 2
