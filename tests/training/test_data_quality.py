"""Several files, splits by class and group, repeated texts, bad rows and pairs: what `nopad train` makes of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository import DATA
from training_samples import sentences, write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.data.duplicates import find_duplicates
from nopad.runtime.errors import UsageError
from nopad.training.data import load_data
from nopad.training.errors import DataError
from nopad.training.splits import held_rows
from nopad.training.tagged_texts import load_tagged
from nopad.training.texts import load_texts


def rows_of(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": "ab"[number % 2], **more} for number in range(count)]


def test_several_files_and_patterns_are_one_split(tmp_path: Path) -> None:
    rows = rows_of(30)
    write_jsonl(tmp_path / "part-1.jsonl", rows[:10])
    write_jsonl(tmp_path / "part-2.jsonl", rows[10:20])
    (tmp_path / "more.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows[20:]))
    data = load_data([str(tmp_path / "part-*.jsonl"), str(tmp_path / "more.csv")])
    assert {*data.train["text"], *data.evaluation["text"]} == {row["text"] for row in rows}
    with pytest.raises(DataError, match=r"nothing matches .*no-\*"):
        load_data(str(tmp_path / "no-*.jsonl"))


def test_a_file_without_the_column_is_refused_not_left_out(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", rows_of(10))
    second = write_jsonl(tmp_path / "b.jsonl", [{"review": "fine", "label": "a"}] * 3)
    with pytest.raises(DataError, match=r"b.jsonl, line 1: no column 'text' here.*label, review"):
        load_data([str(first), str(second)])


def test_files_of_a_folder_must_have_the_column_too(tmp_path: Path) -> None:
    (tmp_path / "part-1.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(60)))
    (tmp_path / "part-2.csv").write_text("review,label\nfine,a\n")
    for bad_rows in ("refuse", "skip"):
        with pytest.raises(DataError, match=r"part-2.csv, line 2: no column 'text' here.*label, review"):
            load_data(str(tmp_path), bad_rows=bad_rows)  # type: ignore[arg-type]


def test_names_in_other_capitals_are_the_same_column(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
    other = [{name.title(): value for name, value in row.items()} for row in rows]
    first = str(write_jsonl(tmp_path / "a.jsonl", rows[:10]))
    second = str(write_jsonl(tmp_path / "b.jsonl", other[10:]))
    mixed = str(
        write_jsonl(tmp_path / "c.jsonl", [pair[i % 2] for i, pair in enumerate(zip(rows, other, strict=True))])
    )
    for source in ([first, second], mixed):
        data = load_data(source)
        found = [(row["text"], row["target"]) for half in (data.train, data.evaluation) for row in half]
        assert sorted(found) == sorted((f"text {i}", i % 2) for i in range(20)) and data.remarks == ()


def test_a_split_that_takes_the_place_of_train_is_told(tmp_path: Path) -> None:
    for name in ("dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}", "label": i % 2} for i in range(4)])
    data = load_data(str(tmp_path))
    assert data.train["text"][0] == "dev 0" and data.evaluation["text"][0] == "test 0"
    assert data.remarks[0] == "the data has no split 'train', but validation, test: 'validation' is trained on"


def test_files_of_a_folder_must_name_classes_alike(tmp_path: Path) -> None:
    import datasets

    for number, names in enumerate((["no", "yes"], ["yes", "no"])):
        features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
        rows = {"text": [f"text {number} {i}" for i in range(10)], "label": [i % 2 for i in range(10)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"part-{number}.parquet")
    with pytest.raises(DataError, match=r"part-1.parquet names the classes of a column otherwise than .*part-0"):
        load_data(str(tmp_path))


def test_labels_that_mean_the_same_are_no_conflict(tmp_path: Path) -> None:
    first = str(write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {i}", "label": i % 2} for i in range(10)]))
    (tmp_path / "b.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2 ^ (i == 3)}\n" for i in range(10)))
    remarks = load_data([first, str(tmp_path / "b.csv")]).remarks
    (conflict,) = [remark for remark in remarks if "different labels" in remark]
    assert conflict.startswith("1 text has") and "a.jsonl, line 4 (1)" in conflict and "b.csv, line 5 ('0')" in conflict


def test_numbers_of_groups_may_be_written_in_any_way(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {i}", "label": i % 2, "id": (i // 8, float(i // 8), f"{i // 8}.0")[i % 3]} for i in range(80)
    ]
    data = load_data(str(write_jsonl(tmp_path / "a.jsonl", rows)), eval_fraction=0.3, split_group="id")
    halves = [{int(text.split()[1]) // 8 for text in half["text"]} for half in (data.train, data.evaluation)]
    assert len(halves[1]) == 3 and not halves[0] & halves[1]


@pytest.mark.parametrize("value", [7, ["a"], True])
def test_what_is_no_text_is_a_bad_row(value: Any, tmp_path: Path) -> None:
    source = str(write_jsonl(tmp_path / "a.jsonl", [*rows_of(20), {"text": value, "label": "a"}, {"label": "a"}]))
    for load in (load_data, load_texts):
        with pytest.raises(DataError, match="line 21: column 'text' holds .*, which is no text; mend"):
            load(source)
        data = load(source, bad_rows="skip")
        assert len(data.train) + len(data.evaluation) == 20
        assert any("1 of 22 rows of the training data have no text" in remark for remark in data.remarks)


def test_a_label_of_half_a_character_is_a_bad_row(tmp_path: Path) -> None:
    for name, row in {"label": {"text": "a", "label": "\ud83d"}, "tags": {"tokens": ["a"], "tags": ["\ud83d"]}}.items():
        good = {"text": "a", "tokens": ["a"], "label": "x", "tags": ["x"]}
        path = write_jsonl(tmp_path / "a.jsonl", [{key: good[key] for key in row}] * 3 + [row])
        with pytest.raises(DataError, match=f"line 4: .*'{name}'.* half a character"):
            (load_data if name == "label" else load_tagged)(str(path))


@pytest.mark.parametrize("path", ["meta.TEXT", "META.text"])
def test_an_ambiguous_path_is_refused(path: str, tmp_path: Path) -> None:
    rows = [{"meta": {"text": "a", "Text": "b"}, "Meta": {}, "label": "ab"[i % 2]} for i in range(10)]
    with pytest.raises(DataError, match=r"several such columns: '(TEXT|META)' may be .* or "):
        load_data(str(write_jsonl(tmp_path / "a.jsonl", rows)), text_column=path)


@pytest.mark.parametrize("seed", range(3))
def test_each_class_has_its_share_of_both_halves(seed: int) -> None:
    classes = np.random.default_rng(seed).permutation([0] * 700 + [1] * 250 + [2] * 50)
    held = held_rows(1000, 0.1, seed, classes=classes)
    assert held.sum() == 100
    assert abs(np.bincount(classes[held]) - [70, 25, 5]).max() <= 1
    assert (held == held_rows(1000, 0.1, seed, classes=classes)).all()
    assert (held != held_rows(1000, 0.1, seed + 1, classes=classes)).any()


def test_no_group_is_in_both_halves(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2, "author": f"author {i % 17}"} for i in range(200)]
    author = {row["text"]: row["author"] for row in rows}
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    data = load_data(path, eval_fraction=0.3, split_group="author")
    halves = [{author[text] for text in half["text"]} for half in (data.train, data.evaluation)]
    assert not halves[0] & halves[1] and 48 <= len(data.evaluation) <= 60
    with pytest.raises(UsageError, match="--split-group says how to hold rows out, but there is evaluation data"):
        load_data(path, path, split_group="author")
    with pytest.raises(DataError, match="all rows are of one group"):
        load_data(str(write_jsonl(tmp_path / "b.jsonl", rows_of(20, author="x"))), split_group="author")


def test_near_duplicates_are_those_of_jaccard_itself() -> None:
    draw = np.random.default_rng(0)
    words = [f"word{number}" for number in range(300)]
    texts = []
    for _ in range(60):
        base = draw.choice(words, 60).tolist()
        texts.append(" ".join(base))
        for changes in (1, 2, 5, 12):
            other = list(base)
            for place in draw.choice(60, changes, replace=False):
                other[place] = str(draw.choice(words))
            texts.append(" ".join(other))

    def shingles(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return set(zip(parts, parts[1:], parts[2:], strict=False))

    near = find_duplicates(texts).near
    for base in range(0, len(texts), 5):
        for other in range(base + 1, base + 5):
            one, two = shingles(texts[base]), shingles(texts[other])
            if len(one & two) >= 0.8 * len(one | two):
                assert near[other] == base
        assert near[base] == base, "texts of other families are no duplicates"


def test_repeats_overlap_and_conflicts_are_told_with_places_and_dropped_as_asked(tmp_path: Path) -> None:
    rows = [*rows_of(20), {"text": "TEXT  1", "label": "b"}, {"text": "text 2", "label": "b"}]
    train = str(write_jsonl(tmp_path / "train.jsonl", rows))
    test = str(write_jsonl(tmp_path / "test.jsonl", [{"text": "text 5", "label": "b"}, {"text": "new", "label": "a"}]))
    kept = load_data(train, test)
    said = "\n".join(kept.remarks)
    assert "2 of 22 rows of the training data repeat the text of an earlier one, 2 exactly and 0 nearly" in said
    assert f"{train}, line 21 and {train}, line 2;" in said
    assert (
        f"1 rows of the training data have a text of the evaluation data, 1 exactly and 0 nearly: {train}, line 6"
        in said
    )
    assert f"1 text has different labels in different rows: {train}, line 3 ('a') and {train}, line 22 ('b')" in said
    assert len(kept.train) == 22
    dropped = load_data(train, test, duplicates="drop")
    assert Counter(dropped.train["text"]) == Counter(f"text {i}" for i in range(20) if i != 5)
    assert list(dropped.evaluation["text"]) == ["text 5", "new"]


def test_what_imdb_has(imdb: Path) -> None:
    texts = [
        [json.loads(line)["text"] for line in (imdb / f"{name}.jsonl").read_text("utf-8").split("\n") if line]
        for name in ("train", "test")
    ]
    count = len(texts[0])
    found = find_duplicates([*texts[0], *texts[1]])
    own = np.arange(count)
    assert (found.exact[:count] != own).sum() == 96
    assert (found.exact[count:] < count).sum() == 53
    assert ((found.near[:count] != own) & (found.exact[:count] == own)).sum() == 21


BAD = [
    ("{broken", "the line is not valid JSON"),
    ('{"text": "no label"}', "column 'label' has no value"),
    ('{"text": "half \\ud800", "label": "a"}', "half a character"),
    ('{"text": "a list", "label": {"a": 1}}', "is not a text, a number or a list"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_bad_rows_are_refused_or_counted_and_shown(line: str, reason: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(20))
    path.write_text(path.read_text() + f"{line}\n")
    with pytest.raises(DataError, match="--bad-rows skip") as refused:
        load_data(str(path))
    assert f"{path}, line 21: " in str(refused.value) and reason in str(refused.value)
    data = load_data(str(path), bad_rows="skip")
    assert len(data.train) + len(data.evaluation) == 20
    (remark,) = data.remarks
    assert remark.startswith("1 bad row is left out of the training data: ") and reason in remark


def test_labels_that_only_the_evaluation_data_has_are_bad_rows(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", rows_of(20))
    held = write_jsonl(
        tmp_path / "b.jsonl", [{"text": f"new {i}", "label": label} for i, label in enumerate("axbxaxx")]
    )
    data = load_data(str(train), str(held), bad_rows="skip")
    assert len(data.evaluation) == 3
    assert "4 bad rows are left out of the evaluation data" in data.remarks[0] and "and 1 more" in data.remarks[0]
    with pytest.raises(DataError, match="no row is left to evaluate on|has no row"):
        write_jsonl(held, [{"text": "new", "label": "x"}])
        load_data(str(train), str(held), bad_rows="skip")


def test_uneven_classes_are_told(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "rare" if i < 3 else "common"} for i in range(60)]
    data = load_data(str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert any("classes are uneven: 57 rows of 'common', 3 of 'rare'" in remark for remark in data.remarks)


def test_pairs_are_read_as_transformers_reads_them(scratch: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = [{"text": a["text"], "other": b["text"], "label": i % 2} for i, (a, b) in enumerate(
        zip(sentences(20), sentences(20, seed=1), strict=True))]  # fmt: skip
    data = load_data(str(write_jsonl(tmp_path / "a.jsonl", rows)), text_pair_column="other")
    tokenizer = AutoTokenizer.from_pretrained(scratch)
    encoded = data.task.encode(data.train[:], tokenizer, 20)
    expected = [
        tokenizer(row["text"], row["text_pair"], truncation=True, max_length=20)["input_ids"] for row in data.train
    ]
    assert encoded["input_ids"] == expected
    rows[3]["other"] = " "
    with pytest.raises(DataError, match=r"line 4: column 'other' has no text, the second of the pair"):
        load_data(str(write_jsonl(tmp_path / "a.jsonl", rows)), text_pair_column="other")


@pytest.mark.slow
def test_entailment_is_trained_exported_and_predicted(
    tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of RTE: what the bundle answers is what transformers answers for the pair."""
    import xml.etree.ElementTree as ElementTree

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = DATA / "rte" / "rte3_dev.xml"
    if not source.is_file():
        pytest.skip(f"no {source}; set NOPAD_DATA to the folder with the test data")
    monkeypatch.chdir(tmp_path)
    pairs = [
        {"premise": pair.findtext("t"), "hypothesis": pair.findtext("h"), "entailment": pair.get("entailment")}
        for pair in ElementTree.parse(source).getroot()
    ][:120]
    write_jsonl(tmp_path / "rte.jsonl", pairs)
    columns = ["--text-column", "premise", "--text-pair-column", "hypothesis", "--label-column", "entailment"]
    recipe = ["--epochs", "1", "--max-length", "96", "--threads", "1", "--from-scratch", str(scratch)]
    assert run(["train", "--train", "rte.jsonl", *columns, *recipe, "-o", "checkpoint"]) == 0
    assert run(["export", "checkpoint", "-o", "bundle", "--target", "cpu"]) == 0, capsys.readouterr().err
    fields = ["--field", "premise", "--second-field", "hypothesis"]
    assert run(["predict", "bundle", "--input", "rte.jsonl", *fields, "-o", "answers.jsonl"]) == 0, (
        capsys.readouterr().err
    )
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained("checkpoint")
    model = AutoModelForSequenceClassification.from_pretrained("checkpoint").eval()
    for pair, answer in zip(pairs[:20], answers, strict=False):
        tokens = tokenizer(pair["premise"], pair["hypothesis"], truncation=True, max_length=96, return_tensors="pt")
        with torch.no_grad():
            expected = model(**tokens).logits[0].softmax(-1)
        scores = answer["scores"]
        found = [scores[name] for name in (model.config.id2label[0], model.config.id2label[1])]
        assert found == pytest.approx(expected.tolist(), abs=1e-3)
    capsys.readouterr()
    fields = ["--text-field", "premise", "--second-field", "hypothesis", "--label-field", "entailment", "--json"]
    assert run(["parity", "bundle", "--reference", "checkpoint", "--data", "rte.jsonl", *fields]) == 0
    evaluation = json.loads(capsys.readouterr().out)["evaluation"]
    right = [answer["label"] == pair["entailment"] for pair, answer in zip(pairs, answers, strict=True)]
    assert evaluation["accuracy"] == evaluation["reference_accuracy"] == pytest.approx(sum(right) / len(pairs))
