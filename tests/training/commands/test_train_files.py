"""A CSV with everything that spreadsheets and people put into such files, through `nopad train` and `nopad predict`."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from training_samples import sentences

from nopad.runtime.cli import run
from nopad.training.data import load_data
from nopad.training.errors import DataError

EXTRAS = [
    'he said "no",\r\nand left', "a; b; c", "one\ttab", "naïve “film” 🎬", "two\n\nblank lines", "a\0nul", "  blanks  ",
    '"quoted"', "=SUM(A1)", "it's", "\u202bright to left\u202c", "line\u2028separator",
]  # fmt: skip
NAMES = ["neg", "pos"]


def good_rows() -> list[tuple[str, str, str, str]]:
    """Columns id, language, text and label, as they are meant."""
    texts = [row["text"] for row in sentences(40)]
    texts = [f"{text} {EXTRAS[i]}" if i < len(EXTRAS) else text for i, text in enumerate(texts)]
    return [(f"{i:04}", ["en", "fr"][i % 3 == 0], text, NAMES[i % 2]) for i, text in enumerate(texts)]


def nuisance() -> bytes:
    """Excel's in Europe: a BOM, `sep=`, semicolons, CRLF, an index without a name, odd headers, blank lines, Ctrl-Z."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=";")
    out.write("\ufeffsep=;\r\n")
    writer.writerow(["", " ID", "Lang", "REVIEW_BODY ", "Label", ""])
    for index, row in enumerate(good_rows()):
        writer.writerow([index, *row, ""])
        out.write("\r\n" if index % 5 == 0 else "")
    return (out.getvalue() + "\x1a").encode()


def bad(content: bytes) -> bytes:
    """The same with rows that are broken, each in its own way, before the end."""
    broken = [
        "8;x;en;a; b; c;neg;",
        "8;x",
        '8;x;en;"never closed;neg;',
        "8;x;en;;neg;",
        '8;x;en;"a "word" in quotes";neg;',
    ]
    lines = "\r\n".join(broken).encode() + b"\r\n8;x;en;caf\xe9;neg;\r\n"
    return content.removesuffix(b"\x1a") + lines + b"9;0040;fr;the end, good;pos;\r\n"


@pytest.mark.parametrize("name", ["export.csv", "EXPORT.CSV.gz", "export.txt", "export"])
def test_the_rows_are_those_that_were_meant(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(nuisance()) if name.endswith(".gz") else nuisance())
    data = load_data(str(tmp_path / name), str(tmp_path / name))
    assert data.labels == ("neg", "pos")
    for part in (data.train, data.evaluation):
        assert list(zip(part["text"], part["target"], strict=True)) == [
            (text, NAMES.index(label)) for _, _, text, label in good_rows()
        ]


def test_through_train_and_predict(scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "export.csv", tmp_path / "answers.csv"
    source.write_bytes(nuisance())
    model = ["--from-scratch", str(scratch), "--output", str(tmp_path / "checkpoint")]
    assert run(["train", "--train", str(source), *model, "--epochs", "1", "--max-length", "64", "--threads", "1"]) == 0
    assert "36 texts to train on, 4 to evaluate" in capsys.readouterr().err

    options = ["--input", str(source), "--output", str(output), "--keep", "id,lang,review_body,label", "--scores"]
    assert run(["predict", *options, "--threads", "1"]) == 0, capsys.readouterr().err
    frame = pandas.read_csv(output, dtype={"id": str})
    assert list(frame.columns[:5]) == ["line", "id", "lang", "review_body", "input_label"]
    kept = frame[["id", "lang", "review_body", "input_label"]].itertuples(index=False, name=None)
    assert [tuple(row) for row in kept] == good_rows()
    assert frame["error"].isna().all() and (frame["score_negative"] + frame["score_positive"]).round(3).eq(1).all()


def test_bad_rows_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "export.csv", tmp_path / "answers.parquet"
    source.write_bytes(bad(nuisance()))
    begin = nuisance().count(b"\n") + 1
    assert run(["predict", "--input", str(source), "--output", str(output), "--keep", "id", "--threads", "1"]) == 3
    assert "6 of 47 lines failed" in capsys.readouterr().err
    frame = pandas.read_parquet(output)
    failed = frame[frame["error"].notna()]
    assert list(failed["line"]) == [begin + i for i in range(6)]
    for error, words in zip(
        failed["error"],
        ["8 cells, the header 6", "is missing", "not valid CSV", "empty", "close its quotes", "--encoding cp1252"],
        strict=True,
    ):
        assert words in error
    assert list(frame[frame["error"].isna()]["id"]) == [f"{i:04}" for i in range(41)]
    # Training wants every row right, and says which is not.
    with pytest.raises(DataError, match=rf"export.csv, line {begin}: the row has 8 cells.*; mend or remove it"):
        load_data(str(source))


LAYOUTS: dict[str, Callable[[Path, Any], object]] = {
    "t.xlsx": lambda path, frame: frame.to_excel(path, index=False),
    "t.parquet": lambda path, frame: frame.to_parquet(path),
    "t.feather": lambda path, frame: frame.to_feather(path),
    "t.json": lambda path, frame: frame.to_json(path),
    "t.tsv": lambda path, frame: frame.to_csv(path, sep="\t", index=False),
    "t.csv.zst": lambda path, frame: frame.to_csv(path, index=False),
    "t.jsonl.gz": lambda path, frame: frame.to_json(path, orient="records", lines=True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_kind_trains_alike(name: str, tmp_path: Path) -> None:
    rows = [(row["text"], NAMES[row["label"]]) for row in sentences(30)]
    LAYOUTS[name](tmp_path / name, pandas.DataFrame(rows, columns=["Sentence", "LABEL"]))
    data = load_data(str(tmp_path / name), str(tmp_path / name))
    assert [(row["text"], NAMES[row["target"]]) for row in data.train] == rows and data.labels == ("neg", "pos")


def test_class_folders_and_dotted_paths_train(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("test", 3)):
        for name in ("pos", "neg", "unsup"):
            (tmp_path / "imdb" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "imdb" / split / name / f"{number}_1.txt").write_text(f"{name} {split} {number}")
    data = load_data(str(tmp_path / "imdb"))
    assert data.labels == ("neg", "pos") and (len(data.train), len(data.evaluation)) == (16, 6)
    assert all(row["text"].startswith(data.labels[row["target"]]) for row in data.train)
    assert len(data.remarks) == 2 and all("unsup is left out" in remark for remark in data.remarks)

    lines = [f'{{"meta": {{"review": {{"text": "film {i}"}}, "y": "{NAMES[i % 2]}"}}}}' for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    deep = load_data(
        str(tmp_path / "t.jsonl"), str(tmp_path / "t.jsonl"), text_column="meta.review.text", label_column="meta.y"
    )
    assert deep.labels == ("neg", "pos") and deep.evaluation["text"][19] == "film 19"
    with pytest.raises(DataError, match="no column 'meta.text'; it has meta: name one with --text-column"):
        load_data(str(tmp_path / "t.jsonl"), text_column="meta.text")


def test_names_of_ones_own_tell_a_header_from_a_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(
        "Kommentar;Klasse\n" + "".join(f"film {i}, gut;{NAMES[i % 2]}\n" for i in range(20))
    )
    source = str(tmp_path / "t.txt")
    data = load_data(source, source, text_column="kommentar", label_column="klasse")
    assert data.labels == ("neg", "pos") and data.train["text"][3] == "film 3, gut"
