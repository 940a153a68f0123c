"""`read_labelled`: labels of evaluation files are read by the same rule as in training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.bundle import DEFAULT_BUNDLE, open_bundle
from nopad.runtime.data.labelled import LabelledTexts, read_labelled
from nopad.runtime.errors import InputFileError, UsageError
from nopad.runtime.manifest import Manifest

MULTI = "multi_label_classification"


def classifier(*labels: str, problem_type: Any = "single_label_classification") -> Manifest:
    return replace(open_bundle(DEFAULT_BUNDLE).manifest, labels=labels, problem_type=problem_type)


def read(path: Path, manifest: Manifest, values: list[Any], **options: Any) -> list[list[float]]:
    rows = [{"text": "a", **(value if isinstance(value, dict) else {"label": value})} for value in values]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_labelled(path, manifest, **options).targets
    assert found is not None
    rows_found: list[list[float]] = found.tolist()
    return rows_found


@pytest.mark.parametrize(
    ("names", "values", "indices"),
    [
        (("1", "2", "3", "4", "5"), [1, "1", "1.0", 5, 5.0], [0, 0, 0, 4, 4]),
        (("1010", "4711"), [4711, "1010"], [1, 0]),
        (("0102", "0201"), ["0201", "0102"], [1, 0]),
        (("-1", "0", "1"), [-1, 0, "1"], [0, 1, 2]),
        (("False", "True"), [True, "true", "False", False], [1, 1, 0, 0]),
        (("negative", "positive"), [1, "0", "positive", True], [1, 0, 1, 1]),
    ],
)
def test_names_win_over_numbers(names: tuple[str, ...], values: list[Any], indices: list[int], tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", classifier(*names), values)
    assert [row.index(1.0) for row in rows] == indices and all(sum(row) == 1 for row in rows)


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("1", "2", "3"), 0),
        (("1010", "4711"), 1),
        (("0102", "0201"), 1),
        (("0102", "0201"), 102),
        (("neg", "pos"), "Pos"),
        (("neg", "pos"), "pos "),
        (("neg", "pos"), "\u0661"),
        (("neg", "pos"), -1),
        (("a", "b"), [0]),
    ],
)
def test_nothing_is_silently_an_index(names: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=f"a.jsonl, line 2: label .* is not among {', '.join(names)}"):
        read(tmp_path / "a.jsonl", classifier(*names), [names[0], value])


def test_a_column_for_each_label(tmp_path: Path) -> None:
    values = [{"insult": 0, "toxic": "1"}, {"insult": True, "toxic": 0}]
    manifest = classifier("toxic", "insult", problem_type=MULTI)
    wanted = [[1.0, 0.0], [0.0, 1.0]]
    for field in ("toxic,insult", "insult, toxic"):  # in the order of the names, whatever that of the option
        assert read(tmp_path / "a.jsonl", manifest, values, label_field=field) == wanted
    other = classifier("t", "i", problem_type=MULTI)
    assert read(tmp_path / "a.jsonl", other, values, label_field="toxic,insult") == wanted
    with pytest.raises(InputFileError, match="line 2: label .* is not 0 or 1"):
        read(tmp_path / "a.jsonl", manifest, [values[0], {"toxic": "no", "insult": 0}], label_field="toxic,insult")
    with pytest.raises(InputFileError, match="line 2: no label in field 'toxic,insult'"):
        read(tmp_path / "a.jsonl", manifest, [values[0], {"toxic": 1, "insult": " "}], label_field="toxic,insult")
    with pytest.raises(InputFileError, match="line 1: 2 cells for 3 labels: a, b, c"):
        read(tmp_path / "a.jsonl", classifier("a", "b", "c", problem_type=MULTI), values, label_field="toxic,insult")


def test_lists_and_a_label_alone(tmp_path: Path) -> None:
    manifest = classifier("a", "b", problem_type=MULTI)
    assert read(tmp_path / "a.jsonl", manifest, [["a"], [], ["b", "a"]]) == [[1, 0], [0, 0], [1, 1]]
    assert read(tmp_path / "a.jsonl", manifest, [[1, 0], [0, 0], [True, 1]]) == [[1, 0], [0, 0], [1, 1]]
    alone = classifier("spam", problem_type=MULTI)
    assert read(tmp_path / "a.jsonl", alone, [0, 1, "1", False]) == [[0], [1], [1], [0]]
    assert read(tmp_path / "a.jsonl", alone, [["spam"], []]) == [[1], [0]]


def test_numbers_to_learn(tmp_path: Path) -> None:
    manifest = classifier("stars", problem_type="regression")
    assert read(tmp_path / "a.jsonl", manifest, [1, "2.5", 3.0, " 4 "]) == [[1], [2.5], [3], [4]]
    for value in ("1,5", "1_0", "\u0663", "nan", "good"):
        with pytest.raises(InputFileError, match="line 1: label .* is not 1 finite number"):
            read(tmp_path / "a.jsonl", manifest, [value])


def test_pairs_of_texts(tmp_path: Path) -> None:
    rows = [{"text": "a", "other": "b", "label": 1}, {"text": "c", "other": "d", "label": 0}]
    path = tmp_path / "rows.jsonl"
    write = lambda: path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # noqa: E731
    write()
    pairs = classifier("no", "yes")
    found = read_labelled(path, pairs, second_field="other")
    assert found.inputs == [("a", "b"), ("c", "d")] and found.targets is not None
    assert found.targets.tolist() == [[0, 1], [1, 0]] and found.texts == ["a", "c"]
    assert read_labelled(path, pairs).inputs == ["a", "c"]
    ranked = replace(classifier("LABEL_0"), task="rerank")
    assert read_labelled(path, ranked, second_field="other") == LabelledTexts(texts=["a", "c"], seconds=["b", "d"])
    with pytest.raises(UsageError, match="a reranker reads pairs"):
        read_labelled(path, ranked)
    with pytest.raises(UsageError, match="embeddings reads no pairs"):
        read_labelled(path, replace(pairs, task="embeddings"), second_field="other")
    rows[1]["other"] = " "
    write()
    with pytest.raises(InputFileError, match="line 2: no text in field 'other'; name one with --second-field"):
        read_labelled(path, pairs, second_field="other")


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TAGGER = replace(classifier(*TAGS), task="token-classification")
FORMS: dict[str, str | list[dict[str, Any]]] = {
    "rows.conll": "Ada NNP B-PER\nLovelace NNP I-PER\nleft VBD O\nRome NNP B-LOC\n\nShe PRP O\nstayed VBD O\n",
    "words.jsonl": [
        {"words": ["Ada", "Lovelace", "left", "Rome"], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]},
        {"words": ["She", "stayed"], "ner_tags": [0, 0]},
    ],
    "marked.jsonl": [
        {"text": "Ada Lovelace left Rome", "entities": [[18, 22, "LOC"], {"start": 0, "end": 12, "label": "PER"}]},
        {"text": "She stayed", "entities": None},
    ],
}


def tagged_file(path: Path, rows: str | list[dict[str, Any]]) -> Path:
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.mark.parametrize("name", FORMS)
def test_entities_of_tagged_words_and_marked_texts(name: str, tmp_path: Path) -> None:
    found = read_labelled(tagged_file(tmp_path / name, FORMS[name]), TAGGER)
    assert found.inputs == ["Ada Lovelace left Rome", "She stayed"] and found.targets is None
    assert found.entities == [{("PER", 0, 12), ("LOC", 18, 22)}, frozenset()]


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "She stayed", "label": "PER"}] * 2,  # of a classifier, not of a tagger
        [{"tokens": ["She", "stayed"]}] * 2,
        [{"tokens": ["She", "stayed"], "tags": None}] * 2,
    ],
)
def test_texts_without_tags_are_texts_all_the_same(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert read_labelled(tagged_file(tmp_path / "rows.jsonl", rows), TAGGER) == LabelledTexts(texts=["She stayed"] * 2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("Ada B-PER\nleft O\n\nRome B-ORG\n", "line 4: tag 'B-ORG' is not among O, B-PER"),
        ([{"tokens": ["Ada", "left"], "tags": ["B-PER"]}], "2 words, but 1 tags"),
        ([{"tokens": ["Ada"], "tags": ["B-PER"]}, {"tokens": ["left"]}], "line 2: no label in field 'tags'"),
        ([{"tokens": ["Ada"], "tags": ["O"]}, {"tokens": "left", "tags": []}], "line 2: the words are not a list"),
        ([{"text": "Ada", "entities": [[0, 3, "ORG"]]}], "entity 'ORG' is not among PER, LOC"),
        ([{"text": "Ada", "entities": [[0, 4, "PER"]]}], "is not in the text"),
        ([{"text": "Ada", "entities": [[0, 3, "PER"]]}, {"text": "a", "entities": 1}], "1 is not a list of entities"),
    ],
)
def test_tags_that_fit_nothing_are_named(rows: Any, words: str, tmp_path: Path) -> None:
    path = tagged_file(tmp_path / ("rows.conll" if isinstance(rows, str) else "rows.jsonl"), rows)
    with pytest.raises(InputFileError, match=words) as error:
        read_labelled(path, TAGGER)
    assert "--label-field" in str(error.value) or "label all rows or none" in str(error.value)


def test_bad_rows_are_skipped_and_told(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"text": "a", "label": "no", "from": "x"},
        {"text": "b", "label": "perhaps", "from": "y"},
        {"text": "c", "from": "y"},
        {"text": " ", "label": "yes"},
        {"text": "e", "label": "yes"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    found = read_labelled(path, classifier("no", "yes"), skip_bad=True, keep=["from"])
    assert found.targets is not None and found.targets.tolist() == [[1, 0], [0, 1]]
    assert (found.texts, found.lines) == (["a", "e"], [1, 5])
    assert found.kept == [{"from": "x"}, {"from": None}]
    assert sorted((row.line, row.label) for row in found.bad) == [(2, "perhaps"), (3, None), (4, None), (6, None)]
    with pytest.raises(InputFileError, match="line 4: no text"):
        read_labelled(path, classifier("no", "yes"))


def test_a_broken_row_does_not_change_the_meaning_of_the_others(tmp_path: Path) -> None:
    """Zeros and ones for each label, but for one row that lacks one: read as a list of labels, [1, 0] would be two."""
    rows = [[1, 0, 1]] * 19 + [[1, 0]]
    path = tmp_path / "hot.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": row}) + "\n" for row in rows))
    found = read_labelled(path, classifier("a", "b", "c", problem_type=MULTI), skip_bad=True)
    assert found.targets is not None and found.targets.tolist() == [[1, 0, 1]] * 19
    assert [row.reason for row in found.bad] == ["2 cells for 3 labels: a, b, c"]
