"""CoNLL's column files: the shared tasks' own, and those that others write."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from reading import outcome, records
from repository import DATA

from nopad.runtime.data.records import open_table
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError

SMALL = "-DOCSTART- -X- O\n\n# source: a paper\nU.N. NNP B-ORG\n# # O\n\nno JJ O\nquestion NN O\n"


@pytest.mark.parametrize(
    ("name", "sentences", "words"),
    [("conll2000.train.txt", 8_936, 211_727), ("conll2000.test.txt", 2_012, 47_377), ("esp.testb", 1_517, 51_533)],
)
def test_the_files_of_the_shared_tasks(name: str, sentences: int, words: int) -> None:
    path = DATA / "conll" / name
    if not path.is_file():
        pytest.skip(f"no {path}; set NOPAD_DATA to the folder with the test data")
    read = records(path)
    rows = [line.split(" ") for line in path.read_text("utf-8").split("\n") if line.strip()]
    assert (len(read), sum(len(record["tokens"]) for record in read)) == (sentences, words)
    assert [word for record in read for word in record["tokens"]] == [row[0] for row in rows]
    assert [tag for record in read for tag in record["tags"]] == [row[2] for row in rows]
    assert Counter(tag for record in read for tag in record["column2"]) == Counter(row[1] for row in rows)


@pytest.mark.parametrize("name", ["t.txt", "t.conll", "t.tsv", "t"])
def test_comments_documents_and_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SMALL.replace(" ", "\t") if name == "t.tsv" else SMALL)
    first, second = records(tmp_path / name)
    assert first == {
        "text": "U.N. #",
        "tokens": ["U.N.", "#"],
        "column2": ["NNP", "#"],
        "tags": ["B-ORG", "O"],
    }
    assert second["tokens"] == ["no", "question"]
    named = DataSource(path=str(tmp_path / name), columns=("tokens", "pos", "chunk"))
    assert list(records(named)[0]) == ["text", "tokens", "pos", "chunk"]
    with pytest.raises(InputFileError, match="has 3 columns, but --columns names 2"):
        records(DataSource(path=str(tmp_path / name), columns=("tokens", "ner")))


def test_numbers_of_words_are_no_words(tmp_path: Path) -> None:
    """As in GermEval's files, whose comments hold tabs, too."""
    sentence = "#\thttp://x\t[2014]\n1\tAnn\tB-PER\tO\n2\tlives\tO\tO\n\n"
    (tmp_path / "t.conll").write_text(sentence * 2)
    read = records(tmp_path / "t.conll")
    assert [record["tokens"] for record in read] == [["Ann", "lives"]] * 2
    assert (read[0]["id"], read[0]["column3"], read[0]["tags"]) == (["1", "2"], ["B-PER", "O"], ["O", "O"])
    (tmp_path / "t.conll").write_text(sentence + "7\tdays\tO\tO\n\n")  # here they are words
    assert [record["tokens"] for record in records(tmp_path / "t.conll")] == [["1", "2"], ["7"]]


def test_a_hashtag_is_a_word_whatever_its_tag(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("# id 7\n#fail\tHT\nword\tNN\n\n")
    (record,) = records(tmp_path / "t.conll")
    assert (record["tokens"], record["tags"]) == (["#fail", "word"], ["HT", "NN"])


def test_a_document_begins_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("-DOCSTART- O\nAnn B-X\n-DOCSTART- O\nBob B-X\n")
    assert [record["tokens"] for record in records(tmp_path / "t.conll")] == [["Ann"], ["Bob"]]


def test_a_broken_sentence_fails_alone_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.conll"
    path.write_bytes(b"a B-X\nb O\n\nc B-X\nd\n\ncaf\xe9 O\n\ne O\n")
    found = outcome(path)
    assert found[1] == "a b"
    assert found[4] == "! line 5 has 1 cells, others 2"
    assert found[7].startswith("! the line is not valid UTF-8")
    assert found[9] == "e"


def test_universal_dependencies(tmp_path: Path) -> None:
    rows = ["1-2\tdámelo" + "\t_" * 8, "1\tda\tdar\tVERB" + "\t_" * 6, "2\tlo\tél\tPRON" + "\t_" * 6, "2.1" + "\t_" * 9]
    (tmp_path / "t.conllu").write_text("# text = dámelo\n" + "\n".join(rows) + "\n\n", "utf-8")
    (record,) = records(tmp_path / "t.conllu")
    assert (record["tokens"], record["upos"]) == (["da", "lo"], ["VERB", "PRON"])


@pytest.mark.parametrize("text", ["Plan B\nVitamin O\n", "an O\nis O\n", "text\tlabel\nfine\tB-X\n", "O\nO\n"])
def test_other_texts_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text)
    with open_table(str(tmp_path / "t.txt")) as table:
        assert table.kind != "CoNLL"
