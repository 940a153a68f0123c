"""Columns of pairs, triplets, scored pairs and passages are recognised; bad rows are named."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from repository import DATA
from training_samples import write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.errors import UsageError
from nopad.training.data import load_data
from nopad.training.errors import DataError
from nopad.training.pair_data import load_pairs, load_passages
from nopad.training.tasks.embeddings import Pairs, ScoredPairs
from nopad.training.tasks.rerank import LabelledPairs, Rerank


def rows_of(columns: str, count: int = 20, **more: Any) -> list[dict[str, Any]]:
    return [{name: f"{name} {i}" for name in columns.split()} | more for i in range(count)]


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ("anchor positive", 2),
        ("query answer other", 2),
        ("question passage hard_negative", 3),
        ("Anchor Positive Negative", 3),
        ("sentence1 sentence2", 2),
    ],
)
def test_pairs_and_triplets(columns: str, texts: int, tmp_path: Path) -> None:
    data = load_pairs(str(write_jsonl(tmp_path / "rows.jsonl", rows_of(columns))), matryoshka=[8])
    assert data.task == Pairs(matryoshka=(8,)) and (len(data.train), len(data.evaluation)) == (18, 2)
    wanted = columns.split()[:texts]
    assert all([text.split()[0] for text in row["texts"]] == wanted for row in data.train)
    assert data.labels == () and wanted[0] in data.summary


def test_scored_pairs_and_columns_by_name(tmp_path: Path) -> None:
    rows = [{**row, "score": i / 20} for i, row in enumerate(rows_of("sentence1 sentence2 third"))]
    source = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    data = load_pairs(source, pooling="cls")
    assert data.task == ScoredPairs(pooling="cls") and {"texts", "target"} == set(data.train.column_names)
    assert load_pairs(source, text_column="third,sentence2").task == Pairs()
    assert load_pairs(source, text_column="third", text_pair_column="sentence2").task == Pairs()
    both = load_pairs(source, text_column="third,sentence2", label_column="score")
    assert both.task == ScoredPairs() and both.train[0]["texts"][0].startswith("third")


def test_negatives_of_several_columns(tmp_path: Path) -> None:
    rows = rows_of("anchor positive negative_1 negative_2", label=1)
    rows[3]["negative_1"] = " "
    rows[4] |= {"negative_1": None, "negative_2": ""}
    source = str(write_jsonl(tmp_path / "train.jsonl", rows))
    data = load_pairs(source, str(write_jsonl(tmp_path / "eval.jsonl", rows_of("anchor positive", label=1))))
    assert data.task == Pairs()
    assert data.remarks == (
        "1 rows of the training data have a text of the evaluation data, 1 exactly and 0 nearly: "
        f"{source}, line 5 and {tmp_path / 'eval.jsonl'}, line 5; kept (--duplicates drop leaves them out)",
    )
    assert data.train[0]["texts"] == ["anchor 0", "positive 0", "negative_1 0", "negative_2 0"]
    assert data.train[3]["texts"] == ["anchor 3", "positive 3", "negative_2 3"]
    assert data.train[4]["texts"] == ["anchor 4", "positive 4"]
    assert data.summary == "pairs with 0 to 2 negatives each: anchor, positive, negative_1, negative_2"
    named = load_pairs(source, text_column="positive,anchor,negative_2", eval_fraction=0.5)
    assert {len(texts) for texts in named.train["texts"]} <= {2, 3}


def test_lists_of_texts(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{i}", "positive": [f"p{i}", f"r{i}"], "negatives": [f"n{k}" for k in range(i)]} for i in range(6)
    ]
    source = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    bare = str(write_jsonl(tmp_path / "eval.jsonl", rows_of("query positive")))
    data = load_pairs(source, bare)
    assert data.train["texts"][:] == [
        [f"q{i}", a, *row["negatives"]] for i, row in enumerate(rows) for a in row["positive"]
    ]
    assert all(len(texts) == 2 for texts in data.evaluation["texts"]) and "0 to 5 negatives" in data.summary
    passages = load_passages(source, source)
    assert passages.task == Rerank()
    assert passages.train["passage"][-7:] == ["p5", "r5", "n0", "n1", "n2", "n3", "n4"]
    assert passages.train["target"][-7:] == [1, 1, 0, 0, 0, 0, 0] and set(passages.train["query_id"][-7:]) == {5}
    alone = [
        {"query": "q", "positive": None, "negatives": ["n", "m"]},
        {"query": "r", "positive": " ", "negatives": []},
    ]
    bare = str(write_jsonl(tmp_path / "alone.jsonl", [*rows, *alone]))
    assert load_passages(source, bare).evaluation["target"][-2:] == [0, 0]
    assert ["q", "n", "m"] not in load_pairs(source, bare).evaluation["texts"][:]
    with pytest.raises(DataError, match="line 1: column 'positive' holds a list of 2 texts, and one is needed"):
        load_passages(
            str(write_jsonl(tmp_path / "labelled.jsonl", [{**row, "label": 1} for row in rows])), label_column="label"
        )


def test_negatives_that_are_not_used_are_told(tmp_path: Path) -> None:
    rows = [{**row, "label": i} for i, row in enumerate(rows_of("anchor positive negative"))]
    scored = load_pairs(str(write_jsonl(tmp_path / "scored.jsonl", rows)), label_column="label")
    assert scored.task == ScoredPairs() and scored.remarks == ("not used: negative (a scored pair has no negative)",)


def test_passages_of_a_query_stay_together(tmp_path: Path) -> None:
    rows = [{"query": f"q{i // 4}", "passage": f"p{i}", "label": int(i % 4 == 0)} for i in range(80)]
    data = load_passages(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert data.task == Rerank() and data.labels == ("LABEL_0",)
    assert (len(data.train), len(data.evaluation)) == (72, 8)
    assert not set(data.train["query"]) & set(data.evaluation["query"])
    assert all(row["target"] == int(int(row["passage"][1:]) % 4 == 0) for row in data.train)


def test_rows_of_a_single_query_are_not_divided(tmp_path: Path) -> None:
    rows = [{"question": "who?", "passage": f"passage {i}", "label": i % 2, "author": f"a {i % 3}"} for i in range(12)]
    source = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    with pytest.raises(DataError, match=r"same query \(column 'question'\).* with --eval, or more queries") as error:
        load_passages(source)
    assert "--split-group" not in str(error.value)
    other = str(write_jsonl(tmp_path / "eval.jsonl", [{**row, "question": "when?"} for row in rows[:4]]))
    assert len(load_passages(source, other).train) == 12
    assert len(load_passages(source, split_group="author", eval_fraction=0.34).evaluation) == 4
    with pytest.raises(DataError, match="--split-group: all rows are of one group"):
        load_passages(source, split_group="question")


def test_entailment_has_one_passage_each(tmp_path: Path) -> None:
    file = DATA / "rte" / "rte3_dev.xml"
    if not file.is_file():
        pytest.skip(f"no {file}; set NOPAD_DATA to the folder with the test data")
    pairs = ElementTree.fromstring(file.read_text(encoding="utf-8")).iter("pair")
    rows = [
        {
            "premise": pair.findtext("t"),
            "hypothesis": pair.findtext("h"),
            "label": int(pair.attrib.get("entailment", pair.attrib.get("value")) in ("YES", "TRUE")),
        }
        for pair in pairs
    ]
    data = load_passages(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert data.task == LabelledPairs() and len(data.train) + len(data.evaluation) == len(rows) == 800


def test_rows_without_a_text_are_counted(tmp_path: Path) -> None:
    rows = [*rows_of("anchor positive"), {"anchor": "a", "positive": " "}, {"anchor": None, "positive": "b"}]
    data = load_pairs(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert len(data.train) + len(data.evaluation) == 20
    assert data.remarks == ("2 of 22 rows of the training data lack one of anchor, positive: left out",)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (rows_of("anchor other"), {}, "no column positive or answer"),
        (rows_of("left right"), {}, "no column anchor or query"),
        (rows_of("sentence1 sentence2", score=0.5), {}, "training data have one score in column 'score'"),
        (
            rows_of("sentence1 sentence2", score="high"),
            {},
            "rows.jsonl, line 1: column 'score': 'high' is not a number",
        ),
        ([{"anchor": " ", "positive": ""}], {}, "no row with texts in the columns anchor, positive"),
        (rows_of("anchor positive"), {"text_column": "anchor,colour"}, "no column 'colour'"),
    ],
    ids=["second", "first", "one-score", "word", "blank", "unknown"],
)
def test_bad_pairs(rows: list[dict[str, Any]], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load_pairs(str(write_jsonl(tmp_path / "rows.jsonl", rows)), **options)


@pytest.mark.parametrize(
    ("label", "message"),
    [("entailment", "'entailment' is not a number"), (2, "2 is not from 0 (no answer) to 1 (an answer)")],
)
def test_bad_labels_of_passages(label: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load_passages(str(write_jsonl(tmp_path / "rows.jsonl", rows_of("query passage", label=label))))


@pytest.mark.parametrize(
    "options",
    [{"pooling": "max"}, {"matryoshka": [0]}, {"matryoshka": [8, 8]}, {"text_column": "anchor"}],
    ids=["pooling", "zero", "twice", "one-column"],
)
def test_bad_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_pairs(str(write_jsonl(tmp_path / "rows.jsonl", rows_of("anchor positive"))), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "embeddings", "--matryoshka", "16,x"], "whole numbers with commas between them, got '16,x'"),
        (["--task", "rerank", "--pooling", "cls"], "--pooling does not apply to --task rerank"),
        (["--task", "embeddings", "--prompts", "query: "], "--prompts must be none, or a JSON object of texts"),
        (["--task", "embeddings", "--prompts", '{"query": 1}'], "--prompts must be none, or a JSON object of texts"),
        (["--task", "embeddings", "--prompts", '{"anchor": "a"}'], "may name query, document, passage, corpus, got"),
        (["--task", "rerank", "--prompts", "none"], "--prompts does not apply to --task rerank"),
        (["--task", "embeddings", "--labels", "a,b"], "--labels does not apply to --task embeddings"),
    ],
)
def test_options_that_do_not_apply(
    options: list[str], message: str, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", rows_of("query passage", label=1))
    start = ["--from-scratch", str(scratch / "config.json"), "--train", str(rows), "-o", str(tmp_path / "out")]
    assert run(["train", *start, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('["one", "two"]', "line 21: column 'negatives' holds a list written as a text"),
        ("['one', 'two']", "column 'negatives' holds a list written as a text"),
        (["one", 2], "column 'negatives' holds 2, which is no text"),
        (7, "column 'negatives' holds 7, which is no text"),
    ],
)
def test_what_is_no_text_is_a_bad_row(cell: Any, message: str, tmp_path: Path) -> None:
    rows = [*rows_of("anchor positive negatives"), {"anchor": "a", "positive": "b", "negatives": cell}]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    with pytest.raises(DataError, match=message):
        load_pairs(path)
    data = load_pairs(path, bad_rows="skip")
    assert len(data.train) + len(data.evaluation) == 20 and any(
        "1 bad row is left out" in text for text in data.remarks
    )
    rows[-1]["negatives"] = "[removed]"
    assert "1 negatives each" in load_pairs(str(write_jsonl(tmp_path / "rows.jsonl", rows))).summary


def test_a_column_of_negatives_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("anchor,positive,negative,negative\n" + "a,b,c,d\n" * 20)
    with pytest.raises(DataError, match="several columns 'negative'; name them apart"):
        load_pairs(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    ("names", "scores"), [(["entailment", "neutral", "contradiction"], False), (["no", "yes"], True)]
)
def test_classes_are_no_scores(names: list[str], scores: bool, tmp_path: Path) -> None:
    """The numbers of entailment's classes are least where the texts are most alike."""
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(premise=text, hypothesis=text, label=datasets.ClassLabel(names=names))
    rows = [row | {"label": i % len(names)} for i, row in enumerate(rows_of("premise hypothesis"))]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    if scores:
        assert load_pairs(path, eval_fraction=0.5).task == ScoredPairs()
    else:
        with pytest.raises(DataError, match=r"column 'label' holds classes \(entailment, neutral, .*, not scores"):
            load_pairs(path)
    assert load_pairs(path, text_column="premise,hypothesis").task == Pairs()


@pytest.mark.parametrize(
    ("first", "second", "repeats"),
    [("ice", "cream cone", True), ("ice", "Cream  Cone", True), ("ice cream", "cone", False)],
)
def test_rows_repeat_each_other_only_text_by_text(first: str, second: str, repeats: bool, tmp_path: Path) -> None:
    rows = [*rows_of("text positive"), {"text": "ice", "positive": "cream cone"}, {"text": first, "positive": second}]
    rows = [row | {"label": i % 2} for i, row in enumerate(rows)]
    train, held = str(write_jsonl(tmp_path / "rows.jsonl", rows)), tmp_path / "held.jsonl"
    write_jsonl(held, [{"text": "other", "positive": "text", "label": 1}])
    found = (
        load_pairs(train, str(held), text_column="text,positive", duplicates="drop"),
        load_data(train, str(held), text_pair_column="positive", duplicates="drop"),
    )
    assert [len(data.train) for data in found] == [22 - repeats] * 2


def test_passages_that_all_have_one_label_are_told(tmp_path: Path) -> None:
    data = load_passages(str(write_jsonl(tmp_path / "rows.jsonl", rows_of("query passage", label=1))))
    assert "all passages of the training data have the label 1: nothing tells them apart" in data.remarks


def test_bad_rows_are_skipped_if_asked(tmp_path: Path) -> None:
    rows = [*rows_of("query passage", label=1), {"query": "q", "passage": "p", "label": "yes"}]
    data = load_passages(str(write_jsonl(tmp_path / "rows.jsonl", rows)), bad_rows="skip")
    assert len(data.train) + len(data.evaluation) == 20
    assert any("1 bad row is left out" in remark and "'yes' is not a number" in remark for remark in data.remarks)
