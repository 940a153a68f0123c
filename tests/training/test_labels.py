"""How a column of labels is understood: the same from every kind of file, with remarks and refusals."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_samples import sentences, write_jsonl

from nopad.runtime.bundle import DEFAULT_BUNDLE, open_bundle
from nopad.runtime.cli import run
from nopad.runtime.data.labelled import read_labelled
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData, load_data
from nopad.training.errors import DataError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def write(path: Path, rows: list[dict[str, Any]], **columns: Any) -> str:
    """`rows` as CSV, JSONL or Parquet (`columns`: types of pyarrow)."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        import pyarrow
        from pyarrow import parquet

        arrays = {name: pyarrow.array([row[name] for row in rows], columns.get(name)) for name in rows[0]}
        parquet.write_table(pyarrow.table(arrays), path)
    return str(path)


def labelled(values: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]


def targets(data: TrainingData) -> list[Any]:
    found = {row["text"]: row["target"] for part in (data.train, data.evaluation) for row in part}
    return [found[f"text {i}"] for i in range(len(found))]


def load(folder: Path, values: list[Any], suffix: str = ".csv", **options: Any) -> TrainingData:
    return load_data(write(folder / f"rows{suffix}", labelled(values)), **options)


# --- classes


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([4711, 1010], ["1010", "4711"]),
        ([90210001, 10115002], ["10115002", "90210001"]),
        ([5, 1, 2, 10], ["1", "2", "5", "10"]),
        ([2024, 2019, 2022], ["2019", "2022", "2024"]),
        ([1, 0, -1], ["-1", "0", "1"]),
        ([-1, 1], ["-1", "1"]),
        ([0, 2, 3], ["0", "2", "3"]),
        ([2, 0, 1], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["0201", "0102"], ["0102", "0201"]),
        (["90210", "01067", "10115"], ["01067", "10115", "90210"]),
        (["1", "01"], ["01", "1"]),
        (["1A", "2B", "1E5"], ["1A", "1E5", "2B"]),
        (["J45", "E11.9"], ["E11.9", "J45"]),
        (["1_0", "2_0"], ["1_0", "2_0"]),
        (["٤", "٣"], ["٣", "٤"]),
        (["yes", "no"], ["no", "yes"]),
        (["true", "false"], ["false", "true"]),
        ([True, False], ["False", "True"]),
        ([2**62, 2**62 + 1], [str(2**62), str(2**62 + 1)]),
    ],
    ids=str,
)
def test_classes_follow_from_the_values(values: list[Any], names: list[str], suffix: str, tmp_path: Path) -> None:
    data = load(tmp_path, values * 12, suffix)
    assert data.problem_type == SINGLE and data.labels == tuple(names)
    texts = [f"LABEL_{value}" if names[0] == "LABEL_0" else str(value) for value in values]
    assert targets(data) == [names.index(text) for text in texts] * 12


@pytest.mark.parametrize("shape", ["four-digits", "eight-digits", "leading-zero"])
def test_codes_of_a_product_list(shape: str, tmp_path: Path) -> None:
    codes = {
        "four-digits": ("1010", "4711"),
        "eight-digits": ("10115002", "90210001"),
        "leading-zero": ("0102", "0201"),
    }
    data = load(tmp_path, list(codes[shape]) * 10)
    assert data.labels == codes[shape] and targets(data) == [0, 1] * 10


def test_whole_floats_of_a_column_with_empty_cells_are_whole_numbers(tmp_path: Path) -> None:
    rows = [*labelled([1.0, 2.0, 5.0] * 10), {"text": None, "label": None}]
    for suffix in (".csv", ".jsonl", ".parquet"):
        data = load_data(write(tmp_path / f"a{suffix}", rows))
        assert data.labels == ("1", "2", "5") and targets(data) == [0, 1, 2] * 10


def test_other_types_of_parquet(tmp_path: Path) -> None:
    import pyarrow

    for kind, values in {
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()): ["4711", "1010"],
        pyarrow.uint64(): [4711, 1010],
        pyarrow.int8(): [11, 10],
        pyarrow.decimal128(10, 0): [Decimal(4711), Decimal(1010)],
        pyarrow.large_string(): ["4711", "1010"],
    }.items():
        data = load_data(write(tmp_path / "a.parquet", labelled(values * 10), label=kind))
        assert data.labels == tuple(sorted(str(value) for value in values)) and targets(data) == [1, 0] * 10, kind


def test_numbers_and_texts_mixed(tmp_path: Path) -> None:
    data = load(tmp_path, [1, "2", "1", 2] * 10, ".jsonl")
    assert data.labels == ("1", "2") and targets(data) == [0, 1, 0, 1] * 10
    data = load(tmp_path, [1, "b", "1", "a"] * 10, ".jsonl")
    assert data.labels == ("1", "a", "b") and targets(data) == [0, 2, 0, 1] * 10


LABELS = [
    st.integers(-3, 3),
    st.integers(0, 2),
    st.integers(1000, 1003),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.integers(-40, 40).map(lambda number: number / 8),
    st.integers(0, 3).map(float),
    st.sampled_from(["0102", "0201", "102", "1", "01"]),
    st.text("aB01 -.,;|", min_size=1, max_size=3).filter(str.strip),
    st.sampled_from(["1", "2", "1.0", "0.5", "nan", "x"]),
]


@settings(max_examples=60)
@given(st.one_of([st.lists(kind, min_size=2, max_size=4, unique=True) for kind in LABELS]))
def test_every_kind_of_file_gives_the_same(values: list[Any]) -> None:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".csv", ".jsonl", ".parquet"):
            try:
                data = load(Path(folder), values * 6, suffix)
            except DataError as error:
                found.append(str(error).split("label")[-1])
            else:
                found.append((data.problem_type, data.labels, targets(data), data.remarks))
    assert found[0] == found[1] == found[2]


@settings(max_examples=60)
@given(st.lists(st.integers(-5, 30), min_size=2, max_size=9, unique=True))
def test_integers_are_indices_only_without_gaps(values: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = load(Path(folder), values * 3, ".jsonl")
    if set(values) == set(range(len(values))):
        assert data.labels == tuple(f"LABEL_{i}" for i in range(len(values)))
    else:
        assert data.labels == tuple(str(value) for value in sorted(values))
    assert targets(data) == [sorted(values).index(value) for value in values] * 3


# --- names known beforehand


def test_given_names_that_are_numbers(tmp_path: Path) -> None:
    stars = ["1", "2", "3", "4", "5"]
    data = load(tmp_path, [1, 3, 2] * 10, labels=stars)
    assert data.labels == tuple(stars) and targets(data) == [0, 2, 1] * 10
    assert any("no row of the training data for '4', '5'" in remark for remark in data.remarks)
    with pytest.raises(DataError, match="has label 0, but only 5 names.*numbers themselves"):
        load(tmp_path, [0, 1, 2] * 10, labels=stars)


def test_given_names_for_numbers_with_gaps(tmp_path: Path) -> None:
    data = load(tmp_path, [0, 2] * 10, labels=["bad", "fair", "good"])
    assert targets(data) == [0, 2] * 10


def test_given_names_are_what_the_values_are(tmp_path: Path) -> None:
    assert targets(load(tmp_path, [0.5, "1.50"] * 10, ".jsonl", labels=["1.5", "0.5"])) == [1, 0] * 10
    data = load(tmp_path, [*[0.5, 1.5] * 10, "n/a"], labels=["0.5", "1.5", "n/a"])
    assert targets(data) == [*[0, 1] * 10, 2]
    many = load(tmp_path, list(range(1, 41)), labels=[str(i) for i in range(1, 41)])
    assert len(many.labels) == 40 and not any("whole numbers" in remark for remark in many.remarks)
    with pytest.raises(DataError, match="labels that --labels does not name: neg, pos; it has Neg, Pos"):
        load(tmp_path, ["neg", "pos"] * 10, labels=["Neg", "Pos"])


def class_labels(path: Path, names: list[str], values: list[Any], several: bool = False) -> str:
    import datasets

    kind = datasets.ClassLabel(names=names)
    feature = datasets.Sequence(kind) if several else kind
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    rows = {"text": [f"text {i}" for i in range(len(values))], "label": values}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def test_a_data_sets_own_names(tmp_path: Path) -> None:
    names = ["2", "1", "unused"]  # names of digits: the stored number is an index all the same
    source = class_labels(tmp_path / "a.parquet", names, [0, 1] * 10)
    data = load_data(source)
    assert data.labels == tuple(names) and targets(data) == [0, 1] * 10
    assert "no row of the training data for 'unused': there is little to learn from" in data.remarks
    ordered = load_data(source, labels=["1", "2", "unused"])
    assert ordered.labels == ("1", "2", "unused") and targets(ordered) == [1, 0] * 10, "by name, not by number"
    renamed = load_data(class_labels(tmp_path / "b.parquet", ["no", "yes"], [0, 1] * 10), labels=["non", "oui"])
    assert renamed.labels == ("non", "oui") and targets(renamed) == [0, 1] * 10
    words = write(tmp_path / "held.csv", labelled(["1", "2"] * 3))
    assert load_data(source, words).evaluation["target"][:] == [1, 0] * 3
    with pytest.raises(
        DataError, match="row 2: column 'label': label -1 is not a number of the data's own classes no, yes"
    ):
        load_data(class_labels(tmp_path / "c.parquet", ["no", "yes"], [0, -1] * 10))


def test_a_data_sets_own_names_in_lists(tmp_path: Path) -> None:
    data = load_data(class_labels(tmp_path / "a.parquet", ["joy", "fear", "awe"], [[0], [0, 2]] * 10, several=True))
    assert data.problem_type == MULTI and data.labels == ("joy", "fear", "awe")
    assert targets(data) == [[1, 0, 0], [1, 0, 1]] * 10


# --- several labels at once


TOXIC = [{"text": f"text {i}", "toxic": i % 2, "insult": i % 3 // 2, "lang": "en"} for i in range(30)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", [int, bool, float, str], ids=lambda kind: kind.__name__)
def test_a_column_for_each_label(kind: Any, suffix: str, tmp_path: Path) -> None:
    rows = [{**row, "toxic": kind(row["toxic"]), "insult": kind(row["insult"])} for row in TOXIC]
    data = load_data(write(tmp_path / f"a{suffix}", rows), label_column="toxic,insult")
    assert data.problem_type == MULTI and data.labels == ("toxic", "insult")
    assert targets(data) == [[row["toxic"], row["insult"]] for row in TOXIC]
    assert "2 labels, several at once: 'toxic' (15), 'insult' (10)" in data.summary
    assert load_data(str(tmp_path / f"a{suffix}"), label_column="toxic, insult", labels=["t", "i"]).labels == ("t", "i")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "line 4: column 'insult' has no value"),
        ("maybe", "line 4: column 'toxic,insult': label .* is not 0 or 1"),
        ("2", "is not 0 or 1"),
        ("-1", "is not 0 or 1"),
    ],
)
def test_cells_that_are_neither(cell: str, message: str, tmp_path: Path) -> None:
    rows = [{**row, "insult": cell if i == 2 else row["insult"]} for i, row in enumerate(TOXIC)]
    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path / "a.csv", rows), label_column="toxic,insult")


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", TOXIC)
    with pytest.raises(DataError, match="no column 'rude'; it has text, toxic, insult, lang"):
        load_data(source, label_column="toxic,rude")
    with pytest.raises(DataError, match=r"2 label columns \(toxic, insult\), but --labels has 1 names"):
        load_data(source, label_column="toxic,insult", labels=["a"])
    with pytest.raises(UsageError, match="several columns .* are multi_label_classification, not regression"):
        load_data(source, label_column="toxic,insult", problem_type="regression")


def test_one_column_of_zeros_and_ones_on_demand(tmp_path: Path) -> None:
    data = load(tmp_path, [0, 1] * 10, problem_type=MULTI)
    assert data.labels == ("label",) and targets(data) == [[0.0], [1.0]] * 10


def test_lists_of_codes(tmp_path: Path) -> None:
    data = load(tmp_path, [[4711, 1010], [4711], []] * 10, ".jsonl")
    assert data.problem_type == MULTI and data.labels == ("1010", "4711")
    assert targets(data) == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]] * 10
    with pytest.raises(DataError, match="has lists of fractions"):
        load(tmp_path, [[0.2, 0.8], [0.5, 0.5]] * 10, ".jsonl")
    with pytest.raises(DataError, match="has lists of labels: that is multi_label_classification, not regression"):
        load(tmp_path, [[0.2, 0.8]] * 10, ".jsonl", problem_type="regression")


# --- which task, and the other one on demand


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("values", [[0.0, 1.0], [0.5, 1.5], [-1.0, 1.0], [1.0, 2.0, 3.0]], ids=str)
def test_few_different_floats_say_which_task_was_chosen(values: list[float], suffix: str, tmp_path: Path) -> None:
    data = load(tmp_path, values * 10, suffix)
    assert data.problem_type == "regression" and targets(data) == values * 10
    (remark,) = data.remarks
    assert "taken as a number to learn (regression)" in remark and f"--problem-type {SINGLE}" in remark
    chosen = load(tmp_path, values * 10, suffix, problem_type=SINGLE)
    assert chosen.problem_type == SINGLE and targets(chosen) == list(range(len(values))) * 10
    whole = all(value.is_integer() for value in values)
    names = [str(int(value)) if whole else str(value) for value in values]
    assert chosen.labels == (("LABEL_0", "LABEL_1") if values == [0.0, 1.0] else tuple(names))


def test_real_scores_need_no_remark(tmp_path: Path) -> None:
    data = load(tmp_path, [i / 7 for i in range(60)])
    assert data.problem_type == "regression" and not data.remarks and "0 to 8.42857" in data.summary


def test_many_whole_numbers_in_a_row_may_be_a_number_to_learn(tmp_path: Path) -> None:
    values = list(range(1, 101)) * 3
    data = load(tmp_path, values)
    assert data.problem_type == SINGLE and len(data.labels) == 100
    assert any(
        "100 different whole numbers from 1 to 100" in remark and "regression" in remark for remark in data.remarks
    )
    learned = load(tmp_path, values, problem_type="regression")
    assert learned.problem_type == "regression" and targets(learned) == values and not learned.remarks
    assert not any("whole numbers" in remark for remark in load(tmp_path, [1, 2, 3, 4, 5] * 9).remarks)


def test_a_number_to_learn_on_demand(tmp_path: Path) -> None:
    data = load(tmp_path, [1, 2, 5] * 10, problem_type="regression", labels=["stars"])
    assert data.labels == ("stars",) and targets(data) == [1.0, 2.0, 5.0] * 10
    with pytest.raises(DataError, match="line 3: column 'label': label 'good' is not a number"):
        load(tmp_path, ["1", "good"] * 10, problem_type="regression")
    with pytest.raises(DataError, match="one number to learn, not one of 2 --labels"):
        load(tmp_path, [1, 2] * 10, problem_type="regression", labels=["a", "b"])
    with pytest.raises(UsageError, match="--problem-type 'multi' is unknown"):
        load(tmp_path, [1, 2] * 10, problem_type="multi")


def test_numbers_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="decimal comma .'1,5'.: write them with a point"):
        load(tmp_path, ["1,5", "2", "3,25"] * 10)
    with pytest.raises(DataError, match="line 2: column 'label': label '1,5' has a decimal comma"):
        load(tmp_path, ["1,5", "2", "3,25"] * 10, problem_type="regression")
    assert load(tmp_path, ["1,5", "2"] * 10, problem_type=SINGLE).labels == ("1,5", "2")
    with pytest.raises(DataError, match=r"20 numbers and 1 other value\(s\) \(n/a\): mend these"):
        load(tmp_path, [*[0.5, 1.5] * 10, "n/a"])
    assert any("(n/a): taken as classes" in remark for remark in load(tmp_path, [*[1, 2] * 10, "n/a"]).remarks)
    for word in ("nan", "Infinity"):
        with pytest.raises(DataError, match="line 22: column 'label': label .* is not finite"):
            load(tmp_path, [*[0, 1] * 10, word])


def test_nan_among_whole_numbers_is_a_missing_label(tmp_path: Path) -> None:
    """As pandas writes them: they do not make the others numbers to learn."""
    for values in (["0", "1"], ["0.0", "1.0"]):
        data = load(tmp_path, [*values * 10, "nan"], bad_rows="skip")
        assert data.problem_type == SINGLE and data.labels == ("LABEL_0", "LABEL_1")
        assert any("label 'nan' is not finite" in remark for remark in data.remarks)
    with pytest.raises(DataError, match="line 22: column 'label': label 'nan' is not finite"):
        load(tmp_path, [*[0, 1] * 10, "nan"], problem_type=SINGLE)


@pytest.mark.parametrize("bad", [[1], [1, 0, 2], "a", [1, 0, 1, 1]])
def test_a_broken_row_does_not_make_lists_of_labels_of_zeros_and_ones(bad: Any, tmp_path: Path) -> None:
    """Read as labels, [1, 0, 1] would be two of them."""
    rows = [bad, *[[1, 0, 1], [0, 0, 1]] * 10]
    data = load(tmp_path, rows, ".jsonl", bad_rows="skip")
    assert data.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert {tuple(row) for half in (data.train, data.evaluation) for row in half["target"]} == {(1, 0, 1), (0, 0, 1)}
    with pytest.raises(DataError, match="rows.jsonl, line 1: .* is not a list of 3 zeros and ones"):
        load(tmp_path, rows, ".jsonl")


def test_lists_of_two_labels_are_no_zeros_and_ones(tmp_path: Path) -> None:
    data = load(tmp_path, [[0], [1], [0, 1]] * 10, ".jsonl")
    assert targets(data)[:3] == [[1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("values", [["World", "Sports", "Business"], [["World"], ["Sports", "World"], ["Business"]]])
def test_numbers_are_places_only_of_names_that_the_user_gives(values: list[Any], tmp_path: Path) -> None:
    """The order of the alphabet need not be theirs."""
    train = write(tmp_path / "train.jsonl", labelled(values * 8))
    held = write(tmp_path / "eval.jsonl", labelled([0, 1, 2] if isinstance(values[0], str) else [[0], [1, 0], [2]]))
    with pytest.raises(DataError, match=r"eval.jsonl, line 1: .* is not among Business, .* only where --labels names"):
        load_data(train, held)
    names = ["World", "Sports", "Business"]
    data = load_data(train, held, labels=names)
    assert data.evaluation["target"][:] == data.train["target"][:3]


def test_rows_of_labels_that_are_not_named_are_skipped_if_asked(tmp_path: Path) -> None:
    for values in (["no", "yes", "perhaps"], [["no"], ["yes"], ["yes", "perhaps"]]):
        data = load(tmp_path, values * 10, ".jsonl", labels=["no", "yes"], bad_rows="skip")
        assert data.labels == ("no", "yes") and len(data.train) + len(data.evaluation) == 20
        assert any("10 bad rows are left out" in remark and "perhaps" in remark for remark in data.remarks)


# --- remarks and refusals


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["yes", "no", 0, 1], r"has numbers \(0, 1\) and names \(no, yes\): each is a class of its own"),
        (["yes", "no", "nan"], r"'nan' \(10 rows\) may stand for a missing label"),
        (["yes", "no", "None", "NULL"], r"'NULL' \(10 rows\), 'None' \(10 rows\) may stand"),
        (["yes", "no", 3], None),
        (["yes", "no", "none"], None),
    ],
)
def test_labels_that_may_be_a_mistake_are_told(values: list[Any], words: str | None, tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl"):
        data = load(tmp_path, values * 10, suffix)
        assert len(data.labels) == len(values)
        assert [bool(re.search(words or "^$", remark)) for remark in data.remarks] == [True] * (words is not None)


def test_classes_that_a_split_takes_away_are_told(tmp_path: Path) -> None:
    for values in (["a", "b", "c"], [["a"], ["b"], ["c"]]):
        rows = [{**row, "group": i % 3} for i, row in enumerate(labelled(values * 10))]
        source = write(tmp_path / "rows.jsonl", rows)
        data = load_data(source, split_group="group", eval_fraction=0.4)
        held = data.evaluation["text"][0].removeprefix("text ")
        told = [remark for remark in data.remarks if "held out or dropped" in remark]
        assert len(told) == 1 and told[0].startswith(f"all rows of '{'abc'[int(held) % 3]}' are")
        assert not load_data(source).remarks


@pytest.mark.parametrize(
    ("pair", "alike"),
    [
        (("pos", "pos "), True),
        (("Pos", "pos"), True),
        (("pos", "pos\u200b"), True),
        (("new york", "new  york"), True),
        (("new york", "new\u00a0york"), True),
        (("caf\u00e9", "cafe\u0301"), True),
        (("7A", "07A"), True),
        (("pos", "pot"), False),
        (("10A", "1A"), False),
    ],
)
def test_labels_that_hardly_differ_get_a_remark(pair: tuple[str, str], alike: bool, tmp_path: Path) -> None:
    data = load(tmp_path, [pair[0], pair[0], pair[1]] * 10, ".jsonl")
    assert set(data.labels) == set(pair), "they stay what they are"
    said = [remark for remark in data.remarks if "differ only in blanks" in remark]
    assert bool(said) is alike
    if alike:
        assert f"{pair[0]!r} (20 rows)" in said[0] and f"{pair[1]!r} (10 rows)" in said[0]


def test_other_remarks(tmp_path: Path) -> None:
    rows = [*labelled(["a", "b"] * 10), {"text": "text 20", "label": "rare"}, {"text": "", "label": "a"}]
    data = load_data(write(tmp_path / "a.csv", rows))
    assert data.remarks == (
        "1 of 22 rows of the training data have no text in column 'text': left out",
        "a single row of the training data for 'rare': there is little to learn from",
    )
    assert data.summary == "3 classes: 'a' (10), 'b' (10), 'rare' (1)"
    assert any("labels begin or end with a blank" in remark for remark in load(tmp_path, [" a", " b"] * 9).remarks)
    for values in (["a|b", "a", "b"], ["a, b", "a", "b"], ["[0, 1]", "[1, 0]"], ["['a', 'b']", "['b']"]):
        assert any("look like several in one cell" in remark for remark in load(tmp_path, values * 9).remarks)
    assert not load(tmp_path, ["rock, pop", "r&b"] * 9).remarks


def test_labels_of_the_evaluation_data_alone(tmp_path: Path) -> None:
    held = write(tmp_path / "held.csv", labelled(["a", "c", "c", "d"]))
    source = write(tmp_path / "a.csv", labelled(["a", "b"] * 10))
    message = "held.csv, line 3: column 'label': label 'c' is not among a, b; in all 3 rows of the evaluation data: "
    with pytest.raises(DataError, match=message + r"'c' \(2 rows\), 'd' \(1 rows\)"):
        load_data(source, held)
    assert load_data(source, held, labels=["a", "b", "c", "d"]).labels == ("a", "b", "c", "d")
    numbers = write(tmp_path / "n.csv", labelled([1, 2, 5] * 10))
    with pytest.raises(DataError, match="label .*0.* is not among 1, 2, 5"):
        load_data(numbers, write(tmp_path / "held.csv", labelled([1, 0])))
    assert load_data(numbers, write(tmp_path / "held.csv", labelled(["1.0", "5"]))).evaluation["target"][:] == [0, 2]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_as_many_classes_as_rows_are_refused(suffix: str, tmp_path: Path) -> None:
    for values in ([f"u{i}" for i in range(40)], [10_000_000 + i * i for i in range(40)], [*range(11), *range(9)]):
        with pytest.raises(DataError, match="different values in .* too many to be classes: .*--problem-type single"):
            load(tmp_path, values, suffix)
    data = load(tmp_path, [f"u{i}" for i in range(40)], suffix, problem_type=SINGLE)
    assert len(data.labels) == 40
    assert len(load(tmp_path, [f"u{i % 20}" for i in range(40)], suffix).labels) == 20
    assert len(load(tmp_path, list("abcde"), suffix, eval_fraction=0.3).labels) == 5


def test_a_table_of_labels_that_no_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopad.training.labels._MOST_CELLS", 1000)
    with pytest.raises(DataError, match="60 labels for each of 60 texts are more than 1,000 zeros and ones"):
        load(tmp_path, [[i, i + 1, i + 2] for i in range(1, 59)] + [[59], [60]], ".jsonl")


def test_one_class_is_refused(tmp_path: Path) -> None:
    for value in ("a", 7, 0, True):
        with pytest.raises(DataError, match="has one class only, .*: there is nothing to tell apart"):
            load(tmp_path, [value] * 10, ".jsonl")


# --- through the commands


@pytest.mark.slow
def test_codes_go_through_training_export_and_answers(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    rows = [{**row, "label": (4711, 1010)[row["label"]]} for row in sentences(40)]
    write(tmp_path / "rows.csv", rows)
    command = ["train", "--train", "rows.csv", "--from-scratch", str(scratch), "--output", "out", "--epochs", "1"]
    assert run([*command, "--max-length", "64", "--threads", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["checkpoint"] == "out", "stdout is for the result"
    assert (
        "36 texts to train on, 4 to evaluate, single_label_classification\n2 classes: '1010' (20), '4711' (20)\n" in err
    )
    config = transformers.AutoConfig.from_pretrained("out")
    assert config.id2label == {0: "1010", 1: "4711"} and config.label2id == {"1010": 0, "4711": 1}
    assert run(["export", "out", "--output", "bundle", "--threads", "1", "--quiet"]) == 0
    assert open_bundle("bundle").manifest.labels == ("1010", "4711")
    manifest = open_bundle("bundle").manifest
    found = read_labelled(tmp_path / "rows.csv", manifest).targets
    assert found is not None and [int(row.argmax()) for row in found] == [int(row["label"] == 4711) for row in rows]
    write_jsonl(tmp_path / "wrong.jsonl", [{"text": "a film", "label": 1}])
    assert run(["parity", "bundle", "--reference", "out", "--data", "wrong.jsonl"]) == 3
    assert "label 1 is not among 1010, 4711" in capsys.readouterr().err
    assert run(["predict", "bundle", "--input", "rows.csv", "--json", "--quiet"]) == 0
    assert {json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()} <= {"1010", "4711"}


def test_columns_of_zeros_and_ones_go_through_training(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    rows = [{"text": row["text"], "long": int(len(row["text"]) > 80), "good": row["label"]} for row in sentences(40)]
    write(tmp_path / "rows.csv", rows)
    command = ["train", "--train", "rows.csv", "--from-scratch", str(scratch), "--output", "out", "--epochs", "1"]
    assert run([*command, "--max-length", "64", "--threads", "1", "--label-column", "long,good"]) == 0
    assert "multi_label_classification\n2 labels, several at once: 'long' (" in capsys.readouterr().err
    config = transformers.AutoConfig.from_pretrained("out")
    assert config.id2label == {0: "long", 1: "good"} and config.problem_type == MULTI
    manifest = replace(open_bundle(DEFAULT_BUNDLE).manifest, labels=("long", "good"), problem_type=MULTI)
    found = read_labelled(tmp_path / "rows.csv", manifest, label_field="good,long").targets
    assert found is not None and found.tolist() == [[row["long"], row["good"]] for row in rows]


def test_remarks_are_on_stderr_unless_quiet(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [{**row, "label": float(row["label"])} for row in sentences(40)])
    command = ["train", "--train", "rows.jsonl", "--from-scratch", str(scratch), "--output", "out", "--epochs", "1"]
    command += ["--max-length", "64", "--threads", "1", "--json"]
    assert run([*command, "--problem-type", SINGLE, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "f1" in json.loads(out) and not err
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert "mse" in json.loads(out)
    assert "note: column 'label' has 2 different values, written as floats (0.0, 1.0)" in err
