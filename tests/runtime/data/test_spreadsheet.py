"""Excel files, as pandas and openpyxl write them."""

from __future__ import annotations

import datetime
import zipfile
from pathlib import Path

import openpyxl
import pandas
import pytest
from reading import outcome, records, texts

from nopad.runtime.data.records import open_table
from nopad.runtime.errors import InputFileError

DAY = datetime.datetime(2026, 11, 26)


def test_what_pandas_writes(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"Text": ['so "so"\nfilm', "naïve"], "n": [1, 2], "x": [0.5, 1.5], "b": [True, False]})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    assert records(tmp_path / "t.xlsx") == frame.to_dict("records")
    assert outcome(tmp_path / "t.xlsx") == {2: 'so "so"\nfilm', 3: "naïve"}


def test_cells_of_every_kind_and_empty_ones(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    page = book.active
    rows = [[], [" Review_Body ", None, "date", "n"], ["a film", "unnamed", DAY, 7], [], [2012, None, None, None]]
    for row in [*rows, [2.0], [True], [DAY], ["=1/0"], ["last", None, None, "#N/A"]]:
        page.append(row)
    book.save(tmp_path / "t.xlsx")
    with open_table(str(tmp_path / "t.xlsx")) as table:
        assert table.columns == ("Review_Body", "date", "n")
        items = dict(table.items)
    assert items[3] == {"Review_Body": "a film", "date": DAY, "n": 7} and items[10]["n"] is None  # type: ignore[index]
    found = outcome(tmp_path / "t.xlsx")
    assert {line: found[line] for line in (3, 5, 6, 7, 8, 10)} == {
        3: "a film", 5: "2012", 6: "2", 7: "TRUE", 8: "2026-11-26T00:00:00", 10: "last"
    }  # fmt: skip
    assert 9 not in found  # a formula that was never calculated leaves the row blank


def test_sheets(tmp_path: Path) -> None:
    with pandas.ExcelWriter(tmp_path / "t.xlsx") as writer:
        for name, text in (("Notes", "one"), ("Train data", "two")):
            pandas.DataFrame({"text": [text]}).to_excel(writer, sheet_name=name, index=False)
    with open_table(str(tmp_path / "t.xlsx")) as table:
        (remark,) = table.remarks
        assert "read sheet 'Notes'" in remark and "t.xlsx#SHEET (there are Train data)" in remark
    assert texts(tmp_path / "t.xlsx") == ["one"]
    for name in ("Train data", "train DATA"):
        assert texts(f"{tmp_path}/t.xlsx#{name}") == ["two"]
    with pytest.raises(InputFileError, match="has no sheet 'Test'; there are Notes, Train data"):
        texts(f"{tmp_path}/t.xlsx#Test")
    (tmp_path / "a#b.csv").write_text("text\none\n")
    assert texts(tmp_path / "a#b.csv") == ["one"]
    (tmp_path / "t.csv").write_text("text\none\n")
    with pytest.raises(InputFileError, match="has no part 'x'"):
        texts(f"{tmp_path}/t.csv#x")


def test_a_hidden_first_sheet_is_passed_over(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.sheet_state = "hidden"
    page = book.create_sheet("Data")
    page.append(["text"])
    page.append(["a film"])
    book.save(tmp_path / "t.xlsx")
    assert texts(tmp_path / "t.xlsx") == ["a film"]


def test_other_archives_are_named(tmp_path: Path) -> None:
    for members, words in (
        ({"a.csv": "text\n"}, "is a ZIP archive; unpack it"),
        ({"mimetype": "application/vnd.oasis.opendocument.spreadsheet"}, "is an OpenDocument spreadsheet; save"),
        ({"xl/workbook.bin": ""}, "is a binary Excel file"),
        ({"xl/workbook.xml": "<no"}, "cannot read .*; copy or write the file again"),
    ):
        with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        with pytest.raises(InputFileError, match=words):
            texts(tmp_path / "t.xlsx")
    openpyxl.Workbook().save(tmp_path / "t.xlsx")
    with pytest.raises(InputFileError, match="sheet 'Sheet' is empty: it has no header and no rows"):
        texts(tmp_path / "t.xlsx")
