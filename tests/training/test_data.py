"""load_data: every format, every kind of label, and what it refuses."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_samples import write_jsonl

from nopad.model.errors import NopadError
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData, load_data
from nopad.training.errors import DataError

Row = dict[str, Any]
ROWS: list[Row] = [{"text": f"text, number {i}", "label": i % 3} for i in range(30)]


def _delimited(separator: str) -> Callable[[Path, list[Row]], object]:
    def write(path: Path, rows: list[Row]) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)

    return write


def _parquet(path: Path, rows: list[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], object]] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": write_jsonl,
    ".parquet": _parquet,
}


def write(path: Path, rows: list[Row]) -> str:
    WRITERS[path.suffix](path, rows)
    return str(path)


def pairs(part: Any) -> set[tuple[str, Any]]:
    return {(row["text"], json.dumps(row["target"])) for row in part}


def targets(data: TrainingData) -> dict[str, Any]:
    return {row["text"]: row["target"] for part in (data.train, data.evaluation) for row in part}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    data = load_data(write(tmp_path / f"data{suffix}", ROWS))
    assert data.problem_type == "single_label_classification"
    assert data.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert len(data.train) == 27 and len(data.evaluation) == 3  # a tenth is held out
    assert targets(data) == {row["text"]: row["label"] for row in ROWS}
    assert set(data.train.column_names) == {"text", "target"}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_folder_with_splits(suffix: str, held_out: str, tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:20]), (held_out, ROWS[20:])):
        write(tmp_path / f"{name}{suffix}", rows)
    (tmp_path / "README.md").write_text("not data")
    data = load_data(str(tmp_path))
    assert pairs(data.train) == {(row["text"], str(row["label"])) for row in ROWS[:20]}
    assert pairs(data.evaluation) == {(row["text"], str(row["label"])) for row in ROWS[20:]}


def test_several_files_of_one_split_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "train-00.jsonl", ROWS[:10])
    write(tmp_path / "train-01.jsonl", ROWS[10:20])
    write(tmp_path / "test.jsonl", ROWS[20:])
    data = load_data(str(tmp_path))
    assert len(data.train) == 20 and len(data.evaluation) == 10


def test_evaluation_file(tmp_path: Path) -> None:
    held_out = write(tmp_path / "held.csv", ROWS[20:])
    data = load_data(write(tmp_path / "a.jsonl", ROWS[:20]), held_out)
    assert len(data.train) == 20
    assert pairs(data.evaluation) == {(row["text"], str(row["label"])) for row in ROWS[20:]}


def test_a_lone_test_split_is_not_trained_and_evaluated_on_itself(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", ROWS)
    try:
        data = load_data(str(tmp_path))
    except DataError:
        return
    assert not pairs(data.train) & pairs(data.evaluation)


def test_the_held_out_rows_follow_the_seed(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    parts = [pairs(load_data(source, eval_fraction=0.4, seed=seed).evaluation) for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]
    assert [len(part) for part in parts] == [12, 12, 12]


@pytest.mark.parametrize("column", ["sentence", "content", "review"])
def test_known_text_columns(column: str, tmp_path: Path) -> None:
    rows = [{column: row["text"], "labels": row["label"], "id": 7} for row in ROWS]
    assert targets(load_data(write(tmp_path / "a.csv", rows))) == {row["text"]: row["label"] for row in ROWS}


def test_named_columns_win(tmp_path: Path) -> None:
    rows = [{"text": "no", "body": row["text"], "label": 0, "stars": row["label"]} for row in ROWS]
    data = load_data(write(tmp_path / "a.jsonl", rows), text_column="body", label_column="stars")
    assert targets(data) == {row["text"]: row["label"] for row in ROWS}


# --- labels


def labelled(values: list[Any]) -> list[Row]:
    return [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_words_are_classes_in_alphabetical_order(suffix: str, tmp_path: Path) -> None:
    names = ["pos", "neg", "mixed"]
    data = load_data(write(tmp_path / f"a{suffix}", labelled([names[i % 3] for i in range(30)])))
    assert data.labels == ("mixed", "neg", "pos")
    assert data.problem_type == "single_label_classification"
    assert targets(data) == {f"text {i}": (2, 1, 0)[i % 3] for i in range(30)}


@pytest.mark.parametrize("suffix", WRITERS)
def test_floats_are_a_regression_target(suffix: str, tmp_path: Path) -> None:
    data = load_data(write(tmp_path / f"a{suffix}", labelled([i / 4 for i in range(30)])))
    assert data.problem_type == "regression" and data.labels == ("label",)
    assert targets(data) == {f"text {i}": i / 4 for i in range(30)}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_are_several_labels_at_once(suffix: str, tmp_path: Path) -> None:
    values = [["a"], [], ["b", "c"], ["c"], ["a", "b", "c"]] * 6
    data = load_data(write(tmp_path / f"a{suffix}", labelled(values)))
    assert data.problem_type == "multi_label_classification" and data.labels == ("a", "b", "c")
    wanted = [[float(name in value) for name in "abc"] for value in values]
    assert targets(data) == {f"text {i}": hot for i, hot in enumerate(wanted)}


def test_lists_of_numbers_and_of_zeros_and_ones(tmp_path: Path) -> None:
    ids = load_data(write(tmp_path / "ids.jsonl", labelled([[0, 2], [1], [2]] * 10)))
    assert ids.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert [targets(ids)[f"text {i}"] for i in range(3)] == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    hot = load_data(write(tmp_path / "hot.jsonl", labelled([[0, 1, 1], [1, 0, 0], [0, 0, 0]] * 10)))
    assert hot.problem_type == "multi_label_classification" and len(hot.labels) == 3
    assert [targets(hot)[f"text {i}"] for i in range(3)] == [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_booleans_are_two_classes(tmp_path: Path) -> None:
    data = load_data(write(tmp_path / "a.jsonl", labelled([False, True] * 15)))
    assert data.problem_type == "single_label_classification"
    assert targets(data) == {f"text {i}": i % 2 for i in range(30)}


def test_given_names_set_the_order(tmp_path: Path) -> None:
    words = load_data(write(tmp_path / "w.csv", labelled(["neg", "pos"] * 15)), labels=["pos", "other", "neg"])
    assert words.labels == ("pos", "other", "neg")
    assert targets(words)["text 0"] == 2 and targets(words)["text 1"] == 0
    numbers = load_data(write(tmp_path / "n.csv", labelled([0, 1] * 15)), labels=["no", "yes"])
    assert numbers.labels == ("no", "yes") and targets(numbers)["text 1"] == 1


def test_rows_without_text_are_dropped(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "", "label": 0}, {"text": "  \n", "label": 1}, {"text": None, "label": 2}]
    data = load_data(write(tmp_path / "a.jsonl", rows))
    assert targets(data) == {row["text"]: row["label"] for row in ROWS}


def test_rows_without_text_do_not_shape_the_labels(tmp_path: Path) -> None:
    # The empty rows of a spreadsheet: pandas makes floats of the whole column.
    rows = [*labelled([0, 1] * 15), {"text": None, "label": None}, {"text": None, "label": None}]
    for suffix in WRITERS:
        data = load_data(write(tmp_path / f"a{suffix}", rows))
        assert data.problem_type == "single_label_classification", suffix
        assert targets(data) == {f"text {i}": i % 2 for i in range(30)}
    floats = [{**row, "label": row["label"] if row["label"] is None else float(row["label"])} for row in rows]
    assert load_data(write(tmp_path / "f.parquet", floats)).labels == ("LABEL_0", "LABEL_1")


def test_whole_floats_are_classes_where_names_are_given(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", labelled([0.0, 1.0] * 15))
    assert load_data(source).problem_type == "regression"
    data = load_data(source, labels=["no", "yes"])
    assert data.labels == ("no", "yes") and targets(data)["text 1"] == 1
    with pytest.raises(DataError, match="holds fractions"):
        load_data(write(tmp_path / "b.jsonl", labelled([0.5, 1.0] * 15)), labels=["no", "yes"])


def test_a_class_may_be_named_none(tmp_path: Path) -> None:
    data = load_data(write(tmp_path / "a.csv", labelled(["None", "NA", "1_0"] * 10)))
    assert data.labels == ("1_0", "NA", "None")


def test_a_rare_class_is_known_wherever_its_row_falls(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", labelled(["neg", "pos"] * 9 + ["rare"]))
    kept = [load_data(source, eval_fraction=0.3, seed=seed) for seed in range(8)]
    assert {data.labels for data in kept} == {("neg", "pos", "rare")}
    assert all(2 in data.train["target"] for data in kept), "its only row is trained on"


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    part.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    other = datasets.Dataset.from_dict({"text": ["c"], "label": [-1]}, features=features)
    splits = datasets.DatasetDict(unsupervised=other, validation_matched=part, train=part)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    for data in (load_data("who/what"), load_data(str(tmp_path), str(tmp_path))):
        assert data.labels == ("no", "yes") and data.train["target"][:] == data.evaluation["target"][:] == [1, 0]


# --- files and folders


@pytest.mark.parametrize(
    "name", ["validation", "valid", "val", "dev", "eval", "test", "imdb_test", "dev-00000-of-00001"]
)
def test_evaluation_files_are_known_by_their_names(name: str, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:20])
    write(tmp_path / f"{name}.csv", ROWS[20:])
    data = load_data(str(tmp_path))
    assert len(data.train) == 20 and len(data.evaluation) == 10


def test_a_file_that_is_neither_is_not_guessed_at(tmp_path: Path) -> None:
    for name in ("train", "held"):
        write(tmp_path / f"{name}.csv", ROWS)
    with pytest.raises(DataError, match="held.csv is neither training nor evaluation data .*; rename it"):
        load_data(str(tmp_path))
    (tmp_path / "train.csv").rename(tmp_path / "more.csv")
    assert len(load_data(str(tmp_path), eval_fraction=0.5).train) == 30  # without any split they all are training data


def test_upper_case_and_the_layout_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.parquet", ROWS)
    assert len(load_data(str(tmp_path)).train) == 27
    write(tmp_path / "up.csv", ROWS)
    (tmp_path / "up.csv").rename(tmp_path / "UP.CSV")
    assert len(load_data(str(tmp_path / "UP.CSV")).train) == 27


def test_quotes_of_a_tsv_are_characters(tmp_path: Path) -> None:
    lines = [f'{i % 2}\t"text {i}' for i in range(20)]
    (tmp_path / "a.tsv").write_text("label\tsentence\n" + "\n".join(lines))
    assert targets(load_data(str(tmp_path / "a.tsv"))) == {f'"text {i}': i % 2 for i in range(20)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b'text,label\nok,1\n"bad 1,0\ngood,1\n"bad 2,0\n',
            "line 3: the row is not valid CSV: .*; close its quotes",
        ),
        ("a.csv", b'text,label\nok,1\n"bad 1,0\ngood,1\n', "line 3: the row is not valid CSV: .*; close its quotes"),
        ("a.csv", b'text,label\n"two\nlines",1\na, b,0\n', "line 4: the row has 3 cells, the header 2"),
        (
            "a.csv",
            "text,label\nok,1\ncaf\xe9,0\n".encode("latin-1"),
            "line 3: the line is not valid UTF-8; name its encoding .--encoding cp1252",
        ),
        ("a.csv", b"text,label\n", "it has no rows"),
        ("a.jsonl", b"\n", "it has no rows"),
        (
            "a.jsonl",
            b'{"text": "x", "label": 1}\n\n{broken\n',
            "line 3: the line is not valid JSON: .*; mend or remove it",
        ),
        ("a.json", b'[{"text": "x", "label": 1},\n{"text": "x" "label": 1}]', "is not valid JSON: .* line 2 "),
        ("a.jsonl", b'{"text": "x", "label": 1}\n7\n', "line 2: the line is a JSON int, expected an object"),
        ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', "line 1: column 'text' holds half a character"),
    ],
)
def test_the_line_at_fault_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        load_data(str(tmp_path / name))


# --- refusals


def test_errors_are_bad_input() -> None:
    assert issubclass(DataError, NopadError) and DataError.exit_code == 3


@pytest.mark.parametrize("name", ["none.csv", "./none", "/none/at/all", "~/none"])
def test_no_such_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"no file or folder at {name}"):
        load_data(name)


def test_sources_that_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no column label .*; it has text"):  # plain text has no labels
        load_data(str(tmp_path / "notes.txt"))
    with pytest.raises(DataError, match="expected one kind of .*found 0 file"):
        load_data(str(tmp_path))
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(DataError, match="expected one kind of .*found 2 file"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b'{"text": "x", "label": 1}\n{"text": '), ("a.parquet", b"PAR1 no"), ("a.csv", b""), ("a.jsonl", b"")],
)
def test_damaged_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_data(str(tmp_path / name))


@pytest.mark.filterwarnings("default")  # what the Hub's client has to say about the network is not the point
def test_hub_name_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(name: str, **options: Any) -> None:
        raise ConnectionError(f"cannot reach the Hub for {name}\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="cannot read who/nothing: ConnectionError: cannot reach .* who/nothing$"):
        load_data("who/nothing")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", [{"remark": "x", "mark": 1}] * 20)
    with pytest.raises(DataError, match="no column text or sentence .*; it has remark, mark: name one with --text-col"):
        load_data(source)
    with pytest.raises(DataError, match="no column label or labels or score .*--label-column"):
        load_data(source, text_column="remark")
    with pytest.raises(DataError, match="no column 'stars'; it has remark, mark"):
        load_data(source, text_column="Remark", label_column="stars")
    held_out = write(tmp_path / "b.csv", [{"remark": "x", "other": 1}] * 20)
    with pytest.raises(DataError, match="evaluation data has no column 'mark'; it has remark, other"):
        load_data(source, held_out, text_column="remark", label_column="mark")


def test_no_text_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the training data has no row with text in column 'text'"):
        load_data(write(tmp_path / "a.jsonl", [{"text": " ", "label": 1}] * 20))


def test_no_label_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'label' has no value"):
        load_data(write(tmp_path / "a.jsonl", labelled([None] * 20)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.5, float("nan")], "line 3: column 'label': label nan is not finite"),
        ([0.5, float("inf")], "line 2: column 'label': label inf is not finite"),
        ([{"a": 1}], "line 1: column 'label': {'a': 1} is not a text, a number or a list of them"),
        ([[1], [None]], "line 2: column 'label': .None. is not a text"),
        ([[1], 2], "line 2: column 'label': label 2 is not a list, as others are"),
        ([[], []], "column 'label': every list of labels is empty"),
    ],
)
def test_labels_that_cannot_be_learned(values: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path / "a.jsonl", labelled(values * 5)))


@pytest.mark.parametrize("names", [["a", "a"], ["", ""], ["a", " "]])
def test_names_must_differ(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--labels must name each label once") as caught:
        load_data(str(tmp_path / "not-even-there.csv"), labels=names)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("rows", "fraction"), [(1, 0.1), (30, 0.999)])
def test_too_little_to_divide(rows: int, fraction: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{rows} text.s. cannot be divided .* --eval-fraction {fraction} .* or --eval"):
        load_data(write(tmp_path / "a.csv", ROWS[:rows]), eval_fraction=fraction)


@pytest.mark.parametrize("values", [["a", "b"], [0, 1], [0.5, 1.5]], ids=["words", "integers", "floats"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_missing_label_is_named(suffix: str, values: list[Any], tmp_path: Path) -> None:
    rows = labelled([*values * 20, None])
    with pytest.raises(DataError, match=f"line {42 if suffix == '.csv' else 41}: column 'label' has no value"):
        load_data(write(tmp_path / f"a{suffix}", rows))


def test_labels_that_do_not_fit_the_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels that --labels does not name: bad, ugly"):
        load_data(write(tmp_path / "w.csv", labelled(["good", "bad", "ugly"] * 9)), labels=["good"])
    with pytest.raises(DataError, match="has label 2, but only 2 names: no, yes"):
        load_data(write(tmp_path / "n.csv", labelled([0, 1, 2] * 9)), labels=["no", "yes"])


def test_a_negative_label_is_no_number_of_a_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label -1"):
        load_data(write(tmp_path / "n.csv", labelled([-1, 1] * 9)), labels=["no", "yes"])


@pytest.mark.parametrize(
    ("trained", "unknown"), [(["a", "b"], "c"), ([0, 1], 2), ([["a"], ["b"]], ["c"])], ids=["word", "integer", "list"]
)
def test_evaluation_label_that_training_does_not_know(trained: list[Any], unknown: Any, tmp_path: Path) -> None:
    held_out = write(tmp_path / "b.jsonl", labelled([unknown] * 5))
    with pytest.raises(DataError, match=r"label .* is not among "):
        load_data(write(tmp_path / "a.jsonl", labelled(trained * 10)), held_out)


def test_evaluation_list_of_another_width(tmp_path: Path) -> None:
    held_out = write(tmp_path / "b.jsonl", labelled([[0, 1, 1]] * 5))
    with pytest.raises(DataError, match="column 'label'"):
        load_data(write(tmp_path / "a.jsonl", labelled([[0, 1], [1, 0]] * 10)), held_out)
