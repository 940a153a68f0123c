"""CSV and TSV against pandas and the csv module; a mistake in a file affects only its row."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reading import outcome, records, texts
from repository import DATA

from nopad.runtime.data.records import open_table
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError, UsageError

# No lone surrogates, which UTF-8 cannot hold; and no CR alone for pandas, which writes one unquoted and cannot read it.
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x1a"), max_size=12)
AWKWARD = st.sampled_from(
    ['"', '""', '"a"', "a\nb", "a\r\nb", "a\tb", "a,b", "a;b", '"a', 'a"', " a ", "é", "\u2028", ""]
)
TABLES = st.lists(st.tuples(CELLS | AWKWARD, CELLS | AWKWARD), min_size=1, max_size=8)
ONE_AFTER_ANOTHER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@ONE_AFTER_ANOTHER
@given(rows=TABLES, separator=st.sampled_from(",;\t|"), suffix=st.sampled_from([".csv", ".tsv"]))
def test_what_pandas_writes_comes_back(
    rows: list[tuple[str, str]], separator: str, suffix: str, tmp_path: Path
) -> None:
    rows = [(first.replace("\r", "\r\n"), second.replace("\r", "\r\n")) for first, second in rows]
    path = tmp_path / f"t{suffix}"
    frame = pandas.DataFrame([(f"x{a}", b) for a, b in rows], columns=["text", "label"])
    frame.to_csv(path, sep=separator, index=False)
    assert [(record["text"], record["label"]) for record in records(path)] == list(
        frame.itertuples(index=False, name=None)
    )


@ONE_AFTER_ANOTHER
@given(
    rows=TABLES,
    separator=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\r\n", "\n"]),
)
def test_what_the_csv_module_writes_comes_back(
    rows: list[tuple[str, str]], separator: str, quoting: int, end: str, tmp_path: Path
) -> None:
    # Pythons before 2024 (CPython gh-67044) do not quote a CR at the end of a row: half of a CRLF to every reader.
    assume(quoting == csv.QUOTE_ALL or end == "\r\n" or not any(b.endswith("\r") for _, b in rows))
    made = io.StringIO()
    writer = csv.writer(made, delimiter=separator, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    rows = [(f"x{a}", b) for a, b in rows]
    writer.writerows([("text", "label"), *rows])
    (tmp_path / "t.csv").write_bytes(made.getvalue().encode())
    assert [(record["text"], record["label"]) for record in records(tmp_path / "t.csv")] == rows


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t"])
def test_the_delimiter_is_told_from_the_header(separator: str, name: str, tmp_path: Path) -> None:
    rows = [["id", "text", "label"], ["1", "a film, dull; really", "neg"], ["2", "splendid", "pos"]]
    with (tmp_path / name).open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    with open_table(str(tmp_path / name)) as table:
        assert table.columns == ("id", "text", "label")
        assert [list(record.values()) for _, record in table.items] == rows[1:]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ('"text, in full";label\na film;pos\n', ("text, in full", "label")),
        ("sep=;\ntext;a,b,c\na film;1\n", ("text", "a,b,c")),
        ('"sep=|"\r\ntext|label,x,y\r\na film|pos\r\n', ("text", "label,x,y")),
        ("\ufeff text , Label \na film,pos\n", ("text", "Label")),
        (",text,label,\n0,a film,pos,\n", ("text", "label")),
        ("text,label,\na film\n", ("text", "label")),  # pandas' index, and a delimiter at the end
        ("text,label,label\na film,1,2\n", ("text", "label", "label.1")),
        ("\n\ntext,label\na film,pos\n", ("text", "label")),
        ('"text\nof it",label\na film,pos\n', ("text\nof it", "label")),
    ],
)
def test_headers_as_programs_write_them(content: str, columns: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode())
    with open_table(str(tmp_path / "t.csv")) as table:
        assert table.columns == columns
        assert len(list(table.items)) == 1


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("inside", ["\n", "\r\n"])
def test_line_ends_in_quoted_cells_stay_and_lines_are_counted(ending: str, inside: str, tmp_path: Path) -> None:
    lines = ["text,label", f'"a{inside}film",pos', "", "dull,neg"]
    (tmp_path / "t.csv").write_bytes((ending.join(lines) + ending).encode())
    wanted = {2: f"a{inside}film", 5: "dull"}
    found = outcome(tmp_path / "t.csv")
    assert list(found.values()) == list(wanted.values())
    if (ending, inside) != ("\r", "\n"):  # there the LF ends no line
        assert found == wanted


def test_a_cr_inside_a_line_ends_no_row_where_lines_end_in_lf(tmp_path: Path) -> None:
    # pandas writes it unquoted on Linux, and reads two rows of it.
    pandas.DataFrame({"text": ["a\rfilm", "dull"], "label": [1, 0]}).to_csv(tmp_path / "t.csv", index=False)
    assert outcome(tmp_path / "t.csv") == {2: "a\rfilm", 3: "dull"}
    (tmp_path / "u.csv").write_bytes(b'text,label\n"a\r\nbig ""\rfilm""",1\nmixed,2\r\nends,3\n')
    assert texts(tmp_path / "u.csv") == ['a\r\nbig "\rfilm"', "mixed", "ends"]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        # An unclosed quote: the rows after it are read.
        (['"a film,1', "dull,2", "splendid,3"], {2: "!", 3: "dull", 4: "splendid"}),
        # Even where a later row has the quote that would close it.
        (['"a film,1', "dull,2", '"so, so",3', "end,4"], {2: "!", 3: "dull", 4: "so, so", 5: "end"}),
        (['"a film,1', "dull,2", '"two\nlines",3', "end,4"], {2: "!", 3: "dull", 4: "two\nlines", 6: "end"}),
        (['"a film,1', "dull,2", 'x,"3"', "end,4"], {2: "!", 3: "dull", 4: "x", 5: "end"}),
        # Quotes that are not doubled, alone and with a line end: what follows is not made a row.
        (['"a "dull" film",1', "end,2"], {2: "!", 3: "end"}),
        (['"He said "no"\nand left",1', "end,2"], {2: "!", 3: "!", 4: "end"}),
        (['"a film,1', 'so "so",2', '"dull,3', "end,4"], {2: "!", 3: 'so "so"', 4: "!", 5: "end"}),
        # A quote inside a cell that is not quoted is a character.
        (['a 5" pipe,1', 'so "so",2'], {2: 'a 5" pipe', 3: 'so "so"'}),
        # Too many cells, too few, empty cells at the end.
        (["a, b,1", "end,2"], {2: "!", 3: "end"}),
        (["a film", "end,2,,"], {2: "a film", 3: "end"}),
        # Blanks around quotes.
        (['"good, but long" ,1', ' "so, so" , 2'], {2: "good, but long", 3: "so, so"}),
    ],
)
def test_a_bad_row_fails_alone(rows: list[str], wanted: dict[int, str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(("text,n\n" + "\n".join(rows) + "\n").encode())
    found = outcome(tmp_path / "t.csv")
    assert {line: text[: 1 if text.startswith("!") else None] for line, text in found.items()} == wanted


def test_a_row_with_blanks_before_its_quotes(tmp_path: Path) -> None:
    """The blanks are no part of a cell, whether or not it could be read with them."""
    (tmp_path / "t.csv").write_text('n, text\n1, "good, but long"\n2, "so ""so"""\n3, plain\n')
    assert texts(tmp_path / "t.csv") == ["good, but long", 'so "so"', " plain"]


def test_a_header_is_no_row_where_the_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,text\nx,one\n")
    assert texts(DataSource(path=str(tmp_path / "t.csv"), columns=("n", "text"))) == ["text", "one"]
    with pytest.raises(InputFileError, match="has a header line of these names already: leave --columns out"):
        texts(DataSource(path=str(tmp_path / "t.csv"), columns=("label", "text")))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_quotes_escaped_by_backslashes_as_spark_and_databases_do(separator: str, tmp_path: Path) -> None:
    cells = [
        'so "so"',
        'ends in "it"',
        "C:\\",
        'two\n"lines"\nhere',
        f'a{separator} "b"{separator} c',
        '"',
        "",
        "plain\\n",
    ]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        file.write(separator.join(["text", "n"]) + "\n")
        for number, cell in enumerate(cells):
            escaped = cell.replace('"', '\\"')
            file.write(f'"{escaped}"{separator}{number}\n')
    assert texts(tmp_path / "t.csv") == cells


# --- quotes in files with tabs


def test_sst2_stays_as_it_is() -> None:
    path = DATA / "sst2" / "train.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}; set NOPAD_DATA to the folder with the test data")
    lines = path.read_text("utf-8").split("\n")[1:-1]
    found = [(record["label"], record["sentence"]) for record in records(path)]
    assert found == [tuple(line.split("\t")) for line in lines] and len(found) == 67_349


@pytest.mark.parametrize("separator", ["\t", "|"])
def test_quotes_are_characters_where_nothing_is_quoted(separator: str, tmp_path: Path) -> None:
    cells = ['"a film', 'a film"', '"so" it is "so"', "it's", '"', '""', 'the "end"', '"Alien"']
    rows = [f"{n}{separator}{cell}" for n, cell in enumerate(cells)]
    for kind in ("t.tsv", "t.csv"):
        (tmp_path / kind).write_text("\n".join([f"n{separator}text", *rows]) + "\n")
        assert texts(tmp_path / kind) == cells


def test_quotes_are_quotes_where_cells_are_quoted(tmp_path: Path) -> None:
    cells = ['He said "no"\nand left', "plain", '"Alien"', "tab\there", 'a "b', "", 'end\r\n"']
    pandas.DataFrame({"text": cells, "label": range(7)}).to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    assert texts(tmp_path / "t.tsv") == cells
    # A row that is broken by hand is an error, and not a reason to take all quotes for characters.
    with (tmp_path / "t.tsv").open("a") as file:
        file.write('"broken" by hand\t1\nlast\t2\n')
    found = list(outcome(tmp_path / "t.tsv").values())
    assert found[:-2] == cells and found[-2].startswith("! ") and found[-1] == "last"


def test_the_quotes_may_begin_late_and_the_cells_be_large(tmp_path: Path) -> None:
    plain = [f"plain {n}" for n in range(60_000)]
    large = 'so "so"\n' * 500_000
    frame = pandas.DataFrame({"text": [*plain, large, "end"], "label": 1})
    for separator in "\t,":
        frame.to_csv(tmp_path / "t.tsv", sep=separator, index=False)
        assert texts(tmp_path / "t.tsv") == [*plain, large, "end"]
    with (tmp_path / "u.tsv").open("w") as file:
        file.write("text\tn\n" + "\n".join(f"{cell}\t1" for cell in [*plain, '"so it is', 'a "film"', '"end']) + "\n")
    assert texts(tmp_path / "u.tsv") == [*plain, '"so it is', 'a "film"', '"end']


# --- the rest


def test_a_file_without_a_header_says_so_and_can_be_given_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"a film, dull",0\nsplendid,1\n')
    with pytest.raises(InputFileError, match=r"it has: a film, dull, 0\); .* first line is a row .* --columns"):
        texts(path)
    named = DataSource(path=str(path), columns=("text", "label"))
    assert records(named) == [{"text": "a film, dull", "label": "0"}, {"text": "splendid", "label": "1"}]
    with pytest.raises(UsageError, match="each column once"):
        DataSource(path=str(path), columns=("a", "a"))


def test_characters_that_files_have_by_accident(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"text,n\na\0film,1\nlast,2\x1a")
    assert records(tmp_path / "t.csv") == [{"text": "a\0film", "n": "1"}, {"text": "last", "n": "2"}]
    (tmp_path / "u.csv").write_bytes("text\nsep\u2028line\u0085\x0b\x0c\n\x1a".encode())
    assert texts(tmp_path / "u.csv") == ["sep\u2028line\u0085\x0b\x0c"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"text,label\n", b"text,label", b"\xef\xbb\xbf", b"sep=;\n"])
def test_a_file_without_rows_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputFileError, match="no rows"):
        texts(tmp_path / "t.csv")


def test_the_same_name_twice_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,n,text\na,1,b\n")
    with pytest.raises(InputFileError, match="several columns 'text'"):
        texts(tmp_path / "t.csv")
    assert texts(tmp_path / "t.csv", "text.1") == ["b"]
