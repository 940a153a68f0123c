"""Tagged texts in every form: lists of words and tags, CoNLL files, marked entities, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from repository import DATA
from training_samples import write_jsonl

from nopad.training.errors import DataError
from nopad.training.tagged_texts import load_tagged
from nopad.training.tasks.token_labels import TokenLabels

ROWS = [
    {"tokens": ["Ada", "Lovelace", "left", "Rome"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]},
    {"tokens": ["She", "stayed"], "tags": ["O", "O"]},
]
LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def words(row: dict[str, Any]) -> list[str]:
    return [row["text"][start:end] for start, end in row["words"]]


def load(path: Path, rows: list[dict[str, Any]], **options: Any) -> Any:
    file = str(write_jsonl(path / "rows.jsonl", rows))
    return load_tagged(file, file, **options)


def test_lists_of_words_and_tags(tmp_path: Path) -> None:
    data = load(tmp_path, ROWS)
    assert data.labels == LABELS and data.task == TokenLabels(labels=LABELS, label_all_tokens=True)
    assert data.train[0]["text"] == "Ada Lovelace left Rome" and words(data.train[0]) == ROWS[0]["tokens"]
    assert data.train["target"][0] == [3, 4, 0, 1]
    assert data.summary == "5 tags (IOB2); PER (1), LOC (1)"
    (remark,) = data.remarks
    assert remark.startswith("2 rows of the training data have a text of the evaluation data, 2 exactly")


def test_a_conll_file(tmp_path: Path) -> None:
    (tmp_path / "rows.train").write_text(
        "-DOCSTART- -X- O\n\nAda NNP B-PER\nLovelace NNP I-PER\nleft VBD O\nRome NNP B-LOC\n\nShe PRP O\nstayed VBD O\n"
    )
    data = load_tagged(str(tmp_path / "rows.train"), str(tmp_path / "rows.train"))
    assert data.train[:] == load(tmp_path, ROWS).train[:]


def test_marked_entities(tmp_path: Path) -> None:
    rows = [
        {"text": "Ada Lovelace left Rome.", "entities": [{"start": 0, "end": 12, "label": "PER"}, [18, 22, "LOC"]]},
        {"text": "She stayed", "entities": []},
    ]
    data = load(tmp_path, [json.loads(json.dumps(row)) for row in rows])
    assert data.labels == LABELS and data.train["text"][0] == rows[0]["text"]
    assert words(data.train[0]) == ["Ada", "Lovelace", "left", "Rome", "."]
    assert data.train["target"][0] == [3, 4, 0, 1, 0]


def test_a_data_set_brings_the_names_of_its_numbers(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    features = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")),
        pos_tags=datasets.Sequence(datasets.Value("int64")),
        ner_tags=datasets.Sequence(datasets.ClassLabel(names=names)),
    )
    rows = {
        "tokens": [row["tokens"] for row in ROWS],
        "pos_tags": [[0] * 4, [0] * 2],
        "ner_tags": [[1, 2, 0, 3], [0, 0]],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    data = load_tagged(str(tmp_path / "set"), str(tmp_path / "set"))
    assert data.labels == tuple(names) and data.train["target"][0] == [1, 2, 0, 3]


def test_numbers_are_named_by_the_user(tmp_path: Path) -> None:
    rows = [{"words": row["tokens"], "ner_tags": [LABELS.index(tag) for tag in row["tags"]]} for row in ROWS]
    assert load(tmp_path, rows).labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4")
    assert load(tmp_path, rows, labels=LABELS).train[:] == load(tmp_path, ROWS).train[:]


@pytest.mark.parametrize(
    ("tags", "scheme", "remark"),
    [
        (["B-A", "I-A", "O", "B-A"], "IOB2", ""),
        (["I-A", "B-A", "O", "I-A"], "IOB1", ""),
        (["S-A", "B-A", "E-A", "O"], "BIOES", ""),
        (["B-A", "O", "I-A", "O"], "IOB2", "1 of 2 entities do not begin as IOB2 has it"),
        (["NN", "VB", "NN", "NN"], "no scheme", ""),
    ],
)
def test_the_scheme_is_recognised(tags: list[str], scheme: str, remark: str, tmp_path: Path) -> None:
    data = load(tmp_path, [{"tokens": ["a", "b", "c", "d"], "tags": tags}, {"tokens": [], "tags": []}])
    assert f"({scheme})" in data.summary
    said = [text for text in data.remarks if "left out" not in text and "a text of the evaluation data" not in text]
    assert [remark in text for text in said] == [True] * bool(remark)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 2: columns 'tokens' and 'tags': 2 words, but 1 tags"),
        ({"tokens": ["a", "b"], "tags": None}, "2 words, but no tags"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "not a list of texts"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "the tag of 'b' is None; a tag is a name"),
        ({"tokens": ["a", "b"], "tags": ["O", " "]}, "the tag of 'b' is ' '; a tag is a name"),
        ({"tokens": ["a", "b"], "tags": ["O", ["B-PER"]]}, "the tag of 'b' is .'B-PER'.; a tag is a name"),
        ({"tokens": ["a", "b"], "tags": [0, 1]}, r"numbers \(0, 1\) in some rows .* names \(B-LOC, B-PER, I-PER, O\)"),
    ],
)
def test_words_and_tags_must_match(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, [ROWS[0], row])


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([[0, 2, "A"], [1, 3, "B"]], "an entity from 1 to 3 overlaps another"),
        ([[0, 99, "A"]], "an entity from 0 to 99 overlaps another, or is not in the text"),
        ([{"start": 0}], "is not an entity"),
        (["A"], "is not an entity"),
        ([[1, 1, "A"]], r"the entity from 1 to 1 \(A\) holds no word"),
        ([[3, 4, "A"]], r"the entity from 3 to 4 \(A\) holds no word"),
    ],
)
def test_marked_entities_must_fit(entities: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, [{"text": "abc def", "entities": entities}])


def test_tags_that_training_does_not_have_are_named(tmp_path: Path) -> None:
    train = str(write_jsonl(tmp_path / "train.jsonl", ROWS))
    test = str(write_jsonl(tmp_path / "test.jsonl", [*ROWS, {"tokens": ["x", "y"], "tags": ["B-ORG", "B-ORG"]}]))
    with pytest.raises(DataError, match=r"the evaluation data has tags that are not among .*'B-ORG' \(2 words\)"):
        load_tagged(train, test)


def test_rows_with_such_tags_are_skipped_if_asked(tmp_path: Path) -> None:
    train = str(write_jsonl(tmp_path / "train.jsonl", [*ROWS, {"tokens": ["x"], "tags": ["B-ORG"]}]))
    test = str(write_jsonl(tmp_path / "test.jsonl", [*ROWS, {"tokens": ["x", "y"], "tags": ["B-DAY", "O"]}]))
    data = load_tagged(train, test, labels=LABELS, bad_rows="skip")
    assert (len(data.train), len(data.evaluation)) == (2, 2)
    for part, tag in (("training", "B-ORG"), ("evaluation", "B-DAY")):
        assert any(
            f"of the {part} data: " in remark and f"tag '{tag}' is not among" in remark for remark in data.remarks
        )


def test_numbers_are_no_places_of_names_that_follow_from_the_data(tmp_path: Path) -> None:
    train = str(write_jsonl(tmp_path / "train.jsonl", ROWS))
    test = str(write_jsonl(tmp_path / "test.jsonl", [{"tokens": ["x", "y"], "tags": [1, 0]}] * 2))
    with pytest.raises(DataError, match=r"the evaluation data has tags that are not among .*'1' \(2 words\)"):
        load_tagged(train, test)
    assert load_tagged(train, test, labels=LABELS).evaluation["target"][0] == [1, 0]


@pytest.mark.parametrize("row", [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"text": "a b", "entities": []}])
def test_a_single_tag_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have one tag, O: there is nothing to tell apart"):
        load(tmp_path, [row] * 5)


def test_texts_that_nothing_is_said_of_are_told(tmp_path: Path) -> None:
    rows = [
        {"text": "Ada left", "entities": [[0, 3, "PER"]]},
        {"text": "She left", "entities": []},
        {"text": "He left"},
    ]
    data = load(tmp_path, rows)
    assert data.train["target"][:] == [[1, 0], [0, 0], [0, 0]]
    assert "1 of 3 rows of the training data have nothing in column 'entities'" in data.remarks[0]


def test_rows_without_words_are_left_out(tmp_path: Path) -> None:
    data = load(tmp_path, [*ROWS, {"tokens": [], "tags": []}])
    assert (
        len(data.train) == 2 and "1 of 3 rows of the training data have nothing in column 'tokens'" in data.remarks[0]
    )


@pytest.mark.parametrize(
    ("name", "scheme", "kinds", "entities"),
    [("conll2000.test.txt", "IOB2", 10, 23_852), ("esp.testa", "IOB2", 4, 4_352)],
)
def test_real_files(name: str, scheme: str, kinds: int, entities: int) -> None:
    path = DATA / "conll" / name
    if not path.is_file():
        pytest.skip(f"no {path}; set NOPAD_DATA to the folder with the test data")
    data = load_tagged(str(path), str(path))
    counts = [int(count.replace(",", "")) for count in data.summary.split("(")[2:] for count in [count.split(")")[0]]]
    assert f"({scheme})" in data.summary and (len(counts), sum(counts)) == (kinds, entities)
