"""`nopad parity`: on labelled data of every problem type, and what it writes into the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gate_faults import gate_against
from sklearn.metrics import f1_score

from nopad.export.parity.samples import SAMPLES
from nopad.runtime.bundle import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT, open_bundle
from nopad.runtime.cli import run
from nopad.runtime.data.labelled import LabelledTexts

Bundles = Callable[[str], Path]
NAME = "modernbert-single-mean"


@pytest.fixture
def own(bundle: Bundles, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a bundle, since the verdict is written into it."""
    return lambda name: Path(shutil.copytree(bundle(name), tmp_path / "bundle" / name))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def reports(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().out.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


def reference_labels(folder: Path) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in SAMPLES]


def test_labelled_rows_give_accuracy_and_f1_of_both(
    own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = reference_labels(checkpoint(NAME))
    truth = [(best[0] + 1) % 3, *best[1:]]  # one row wrong, in names and numbers
    names = open_bundle(own(NAME)).manifest.labels
    rows = [{"text": t, "label": names[n] if i % 2 else n} for i, (t, n) in enumerate(zip(SAMPLES, truth, strict=True))]
    command = ["parity", str(tmp_path / "bundle" / NAME), "--reference", str(checkpoint(NAME)), "--json", "--quiet"]
    assert run([*command, "--data", write(tmp_path / "rows.jsonl", rows)]) == 0
    report = reports(capsys)
    evaluation = report["evaluation"]
    assert evaluation["rows"] == len(SAMPLES)
    assert evaluation["agreement"] == 1.0
    assert evaluation["accuracy"] == evaluation["reference_accuracy"] == pytest.approx(1 - 1 / len(SAMPLES))
    want = f1_score(truth, best, average="weighted")
    assert evaluation["f1"] == evaluation["reference_f1"] == pytest.approx(want, abs=1e-6)
    assert sum(evaluation["label_mix"].values()) == pytest.approx(1)
    assert {row["check"] for row in report["rows"]} >= {"accuracy loss", "labels", "logits", "batch invariance"}
    manifest = open_bundle(tmp_path / "bundle" / NAME).manifest
    assert manifest.evaluation == evaluation and manifest.verdict == "verified"


def test_the_entities_of_a_users_texts(
    own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "modernbert-token"
    texts = ["Alice works here", "in Paris, with Bob"]
    pipe = transformers.pipeline(
        "token-classification", model=str(checkpoint(name)), aggregation_strategy="simple", ignore_labels=[]
    )
    found = [[_without_blanks(text, one) for one in pipe(text)] for text in texts]
    assert all(len(each) > 1 for each in found)
    true = [found[0], found[1][1:]]  # the first one of the second text is none
    rows = [{"text": text, "entities": each} for text, each in zip(texts, true, strict=True)]
    command = ["parity", str(own(name)), "--reference", str(checkpoint(name)), "--json", "--quiet"]
    assert run([*command, "--data", write(tmp_path / "rows.jsonl", rows)]) == 0
    report = reports(capsys)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(name))
    evaluation = report["evaluation"]
    assert evaluation["rows"] == sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert evaluation["agreement"] == 1.0 and evaluation["accuracy"] is None
    count = sum(map(len, true))
    assert evaluation["entities"] == count
    assert evaluation["f1"] == evaluation["reference_f1"] == pytest.approx(2 * count / (2 * count + 1))
    ours = [row for row in report["rows"] if row["case"] == "2 texts"]
    assert {row["check"]: row["passed"] for row in ours} == {"logits": True, "labels": True}


def _without_blanks(text: str, entity: dict[str, Any]) -> tuple[int, int, str]:
    """Start, end and label of an entity of transformers' pipeline, without blanks at its ends unless it is one."""
    start, end = entity["start"], entity["end"]
    if piece := text[start:end].strip():
        start = text.index(piece, start)
        end = start + len(piece)
    return start, end, entity["entity_group"]


@pytest.mark.parametrize("hot", [True, False])
def test_several_labels(
    hot: bool, own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "modernbert-multi-cls"
    labels = open_bundle(own(name)).manifest.labels
    rows = [{"text": t, "label": [1, 0, 0, 1] if hot else [labels[0], labels[3]]} for t in SAMPLES]
    command = ["parity", str(tmp_path / "bundle" / name), "--reference", str(checkpoint(name)), "--json", "--quiet"]
    assert run([*command, "--data", write(tmp_path / "rows.jsonl", rows)]) == 0
    evaluation = reports(capsys)["evaluation"]
    pipe = transformers.pipeline("text-classification", model=str(checkpoint(name)), top_k=None)
    guess = np.array([[s["score"] > 0.5 for s in sorted(r, key=lambda s: s["label"])] for r in pipe(list(SAMPLES))])
    truth = np.array([[1, 0, 0, 1]] * len(SAMPLES))
    assert evaluation["accuracy"] == evaluation["reference_accuracy"] == (guess == truth).all(1).mean()
    assert evaluation["f1"] == pytest.approx(f1_score(truth, guess, average="weighted", zero_division=0), abs=1e-6)


def test_regression_gives_the_squared_error_of_both(
    own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "modernbert-regression-cls"
    own(name)
    rows = [{"text": text, "label": 0.5} for text in SAMPLES]
    command = ["parity", str(tmp_path / "bundle" / name), "--reference", str(checkpoint(name)), "--json", "--quiet"]
    assert run([*command, "--data", write(tmp_path / "rows.jsonl", rows)]) == 0
    evaluation = reports(capsys)["evaluation"]
    assert evaluation["mse"] == pytest.approx(evaluation["reference_mse"], rel=1e-4) and evaluation["mse"] > 0
    assert evaluation["agreement"] is None and evaluation["accuracy"] is None
    for label in ("nan", [0.5, 0.5], 10**400):
        data = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label}])
        assert run([*command, "--data", data]) == 3 and "line 1" in capsys.readouterr().err


def test_unlabelled_csv_and_a_limit(
    own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("body\n" + "\n".join(["a film", "a dull film", "splendid"]) + "\n")
    command = ["parity", str(own(NAME)), "--reference", str(checkpoint(NAME)), "--json", "--quiet"]
    assert run([*command, "--data", str(tmp_path / "rows.csv"), "--text-field", "body", "--limit", "2"]) == 0
    evaluation = reports(capsys)["evaluation"]
    assert (evaluation["rows"], evaluation["accuracy"], evaluation["agreement"]) == (2, None, 1.0)


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        (
            [{"text": "a", "label": 0}, {"text": "b", "label": 7}],
            3,
            "line 2: label 7 is not among class 0, class 1, class 2",
        ),
        ([{"text": "a", "label": "class 0"}, {"text": " ", "label": 0}], 3, "line 2: no text in field 'text'"),
        ([{"text": "a", "label": 0}, {"text": "b"}], 3, "line 2: no label in field 'label' (1 of 2 rows have none)"),
        ([{"phrase": "a"}], 3, "--text-field"),
        ([], 3, "it has no rows"),
    ],
)
def test_bad_rows_are_named(
    rows: list[dict[str, Any]],
    code: int,
    words: str,
    bundle: Bundles,
    checkpoint: Bundles,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write(tmp_path / "rows.jsonl", rows)
    command = ["parity", str(bundle(NAME)), "--reference", str(checkpoint(NAME)), "--quiet", "--data", data]
    assert run(command) == code
    assert words in capsys.readouterr().err


def test_data_for_another_task_is_refused(
    bundle: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "modernbert-mlm"
    data = write(tmp_path / "rows.jsonl", [{"text": "a"}])
    assert run(["parity", str(bundle(name)), "--reference", str(checkpoint(name)), "--data", data]) == 2
    assert "this bundle does fill-mask" in capsys.readouterr().err


def test_another_checkpoint_is_named_and_fails(
    own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(checkpoint(NAME), tmp_path / "other")
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(raw | {"classifier_pooling": "cls"}))
    assert run(["parity", str(own(NAME)), "--reference", str(other)]) == 1
    out, err = capsys.readouterr()
    assert f"{other} is not the checkpoint" in err
    assert "FAILED" in out
    assert open_bundle(tmp_path / "bundle" / NAME).manifest.verdict == "verified"  # that of its own checkpoint stands


def test_a_checkpoint_for_another_task_is_no_reference(
    own: Bundles, checkpoint: Bundles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["parity", str(own(NAME)), "--reference", str(checkpoint("modernbert-mlm"))]) == 3
    assert "has no weights for text-classification: classifier" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["weights", "model_type", "no pad_token"])
def test_a_damaged_reference_is_refused_and_one_without_a_pad_token_is_not(
    what: str, own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(checkpoint(NAME), tmp_path / "checkpoint")
    data = write(tmp_path / "rows.jsonl", [{"text": "a film"}, {"text": "a very dull film"}])
    command = ["parity", str(own(NAME)), "--reference", str(folder), "--quiet", "--data", data]
    if what == "weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:5000])
    elif what == "model_type":
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "warp"}))
    else:
        path = folder / "tokenizer_config.json"
        raw = json.loads(path.read_text())
        del raw["pad_token"]
        path.write_text(json.dumps(raw))
    assert run(command) == (0 if what == "no pad_token" else 3)
    err = capsys.readouterr().err
    said = {"weights": f"{folder}/model.safetensors is damaged", "model_type": f"cannot open {folder}"}.get(what, "")
    assert "Traceback" not in err and said in err


@pytest.mark.parametrize("name", ["modernbert-multi-cls", "modernbert-regression-cls"])
def test_other_shapes_fail_and_are_null_in_the_report(
    name: str, own: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "rows.jsonl", [{"text": "a film", "label": 0}])
    command = ["parity", str(own(NAME)), "--reference", str(checkpoint(name)), "--quiet", "--data", data]
    assert run([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {row["value"] for row in report["rows"] if row["check"] == "logits"} == {None}
    assert report["evaluation"] is None
    assert run(command) == 1 and "none" in capsys.readouterr().out


def test_the_table_lists_every_length_up_to_the_longest(
    own: Bundles, checkpoint: Bundles, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["parity", str(own(NAME)), "--reference", str(checkpoint(NAME)), "--quiet", "--longest", "1024"]
    assert run(command) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    lengths = [int(line[0]) for line in lines if len(line) == 3 and line[0].isdigit()]
    assert lengths == [1, 2, 63, 64, 65, 66, 127, 128, 129, 511, 512]


def test_the_embedded_bundle_answers_real_reviews_as_transformers_does(imdb: Path, tmp_path: Path) -> None:
    lines = (imdb / "test.jsonl").read_text("utf-8").strip().split("\n")
    rows = [json.loads(line) for line in [*lines[:60], *lines[-60:]]]
    manifest = open_bundle(DEFAULT_BUNDLE).manifest
    targets = np.eye(2)[[row["label"] for row in rows]]
    data = LabelledTexts(texts=[row["text"] for row in rows], targets=targets)
    report = gate_against(open_bundle(), DEFAULT_CHECKPOINT, threads=1, data=data)
    assert report["passed"]
    assert report["evaluation"]["agreement"] == 1.0
    assert report["evaluation"]["accuracy"] >= 0.8  # 120 reviews; the whole test set is in the README
    assert manifest.labels == ("negative", "positive")
