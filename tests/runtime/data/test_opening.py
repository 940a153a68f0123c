"""Compression recognised by content, wrong encodings reported with a fix, all kinds of line ends, stdin."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import zstandard
from reading import outcome, records, texts

from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import EnvironmentProblem, InputFileError, UsageError

CSV = 'text,n\n"a film, dull",1\nnaïve,2\n'
COMPRESS: dict[str, Any] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("method", COMPRESS)
def test_compressed_files_whatever_their_names(method: str, tmp_path: Path) -> None:
    packed = COMPRESS[method](CSV.encode())
    for name in (f"t.csv.{method}", f"T.CSV.{method.upper()}", "t.csv", "t"):
        (tmp_path / name).write_bytes(packed)
        assert texts(tmp_path / name) == ["a film, dull", "naïve"]
    lines = COMPRESS[method](b'{"text": "a film"}\n{"text": "dull"}\n')
    (tmp_path / f"t.jsonl.{method}").write_bytes(lines + lines)  # two members, as `cat` joins them
    assert texts(tmp_path / f"t.jsonl.{method}") == ["a film", "dull"] * 2


@pytest.mark.parametrize("method", COMPRESS)
def test_a_compressed_file_that_breaks_off_is_said(method: str, tmp_path: Path) -> None:
    large = "text,n\n" + "".join(f"film {n * 7919 % 100_003},{n}\n" for n in range(100_000))
    packed = COMPRESS[method](large.encode())
    (tmp_path / "t.csv").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputFileError, match="cannot read .*t.csv"):
        texts(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("encoding", "fix"),
    [("utf-16", "utf-16"), ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be"), ("utf-32", "utf-32")],
)
@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.jsonl"])
def test_wide_encodings_are_named_with_the_fix(encoding: str, fix: str, name: str, tmp_path: Path) -> None:
    content = {"t.csv": CSV, "t.txt": "a film, dull\nnaïve\n", "t.jsonl": '{"text": "a film, dull"}\n{"text": "naïve"}'}
    (tmp_path / name).write_bytes(content[name].encode(encoding))
    with pytest.raises(InputFileError, match=f"read it with --encoding {fix}$"):
        texts(tmp_path / name)
    assert texts(DataSource(path=str(tmp_path / name), encoding=fix)) == ["a film, dull", "naïve"]


def test_rows_that_are_not_utf8_fail_alone_and_name_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("text,n\nplain,1\ncaf\xe9 \x93so\x94,2\nna\u00efve,3\n".encode("latin-1"))
    found = outcome(path)
    assert found[2] == "plain" and all("--encoding cp1252" in found[line] for line in (3, 4))
    assert texts(DataSource(path=str(path), encoding="cp1252")) == ["plain", "café “so”", "naïve"]
    path.write_bytes(b"text,n\nplain,1\n\x81,2\n")
    assert "not valid cp1252; name another --encoding" in outcome(DataSource(path=str(path), encoding="cp1252"))[3]
    path.write_bytes("caf\xe9,text\n".encode("latin-1"))
    with pytest.raises(InputFileError, match="line 1: .*--encoding cp1252"):
        texts(path)
    (tmp_path / "t.json").write_bytes('[{"text": "caf\xe9"}]'.encode("latin-1"))
    with pytest.raises(InputFileError, match="--encoding cp1252"):
        texts(tmp_path / "t.json")


def test_encodings_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"odd")
    with pytest.raises(InputFileError, match="is not utf-16: .* name another --encoding"):
        texts(DataSource(path=str(tmp_path / "t.txt"), encoding="utf-16"))
    for name in ("klingon", "base64", "rot13"):
        with pytest.raises(UsageError, match=f"--encoding {name} is unknown"):
            DataSource(path="x", encoding=name)
    assert texts(DataSource(path=str(tmp_path / "t.txt"), encoding="UTF_8")) == ["odd"]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"a\nb\r\n\r\nc", ["a", "b", "", "c"]),
        (b"a\rb\rc\r", ["a", "b", "c"]),
        (b"a\rfilm\nb\n", ["a\rfilm", "b"]),
        (b"\xef\xbb\xbfa\0b\n\x1a", ["a\0b"]),
        (b"a\nb\x1a", ["a", "b"]),
        ("\u2028a\x0b\x85b\n".encode(), ["\u2028a\x0b\x85b"]),
    ],
)
def test_lines_of_plain_text(content: bytes, wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    assert texts(tmp_path / "t.txt") == wanted


def test_a_line_may_be_very_long(tmp_path: Path) -> None:
    long = "so " * 4_000_000
    (tmp_path / "t.txt").write_text(f"a\n{long}\nb\n")
    (tmp_path / "t.csv").write_text(f'text\n"{long}"\nb\n')
    assert texts(tmp_path / "t.txt") == ["a", long, "b"] and texts(tmp_path / "t.csv") == [long, "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x05\x06" + bytes(18), "an empty ZIP archive"),
        (b"\xd0\xcf\x11\xe0", "an old Excel or Word file; save it as .xlsx or CSV"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"%PDF-1.7", "a PDF"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
        (b"ORC\n", "an ORC file"),
    ],
)
def test_what_is_no_table_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputFileError, match=words):
        texts(tmp_path / "t.csv")


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, content in (("zstandard", COMPRESS["zst"](b"a\n")), ("pyarrow", b"PAR1")):
        monkeypatch.setitem(sys.modules, package, None)
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(EnvironmentProblem, match=rf"needs the package {package}: pip install 'nopad\[tables\]'"):
            texts(tmp_path / "t")


READ = (
    "import json; from nopad.runtime.data.records import read_rows; print(json.dumps([r.text for r in read_rows('-')]))"
)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"a film\ndull, really\n", ["a film", "dull, really"]),
        (b'\n{"text": "a film"}\n{"text": "dull"}\n', ["a film", "dull"]),
        (b'[{"text": "a film"},\n {"text": "dull"}]', ["a film", "dull"]),
        (b'[\n{"text": "a film"}]', ["a film"]),
        (b"[CLS] a film\n", ["[CLS] a film"]),
        (CSV.encode(), ["a film, dull", "naïve"]),
        (b'label\ttext\n1\t"a\n', ['"a']),
        (b"sep=;\ntext;n\na film;1\n", ["a film"]),
        (gzip.compress(CSV.encode(), mtime=0), ["a film, dull", "naïve"]),
        (COMPRESS["zst"](CSV.encode()), ["a film, dull", "naïve"]),
    ],
)
def test_stdin_says_by_its_content_what_it_is(content: bytes, wanted: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", READ], input=content, capture_output=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout) == wanted, done.stderr


def test_parquet_and_spreadsheets_come_through_a_pipe(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a film", "dull"]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    for name in ("t.parquet", "t.xlsx"):
        content = (tmp_path / name).read_bytes()
        for packed in (content, gzip.compress(content)):
            done = subprocess.run([sys.executable, "-c", READ], input=packed, capture_output=True, timeout=120)
            assert done.returncode == 0 and json.loads(done.stdout) == ["a film", "dull"], done.stderr
            (tmp_path / f"{name}.gz").write_bytes(packed)
            assert [record["text"] for record in records(tmp_path / f"{name}.gz")] == ["a film", "dull"]
