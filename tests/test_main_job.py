"""The main job as a user does it: train, export, parity, predict, on real reviews with ModernBERT's own tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import transformers

import nopad.export.parity.run
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import run
from nopad.runtime.predictor import load

CONFIG = {
    "model_type": "modernbert",
    "vocab_size": 50368,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": 50283,
    "cls_token_id": 50281,
    "bos_token_id": 50281,
    "sep_token_id": 50282,
    "eos_token_id": 50282,
}


@pytest.fixture(scope="module")
def reviews(imdb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl and test.jsonl, a few hundred real reviews, and a model to begin with."""
    pytest.importorskip("datasets", reason="training needs: pip install 'nopad[train]'")
    folder = tmp_path_factory.mktemp("reviews")
    for name, count in (("train.jsonl", 320), ("test.jsonl", 160)):
        with (imdb / name).open(encoding="utf-8") as lines:
            (folder / name).write_text("".join(islice(lines, count)), encoding="utf-8")
    tokenizer = imdb.parent / "modernbert-tokenizer"
    if not tokenizer.is_dir():
        pytest.skip(f"no {tokenizer}; it belongs to the test data")
    shutil.copytree(tokenizer, folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def trained(reviews: Path) -> Path:
    command = ["train", "--from-scratch", str(reviews / "model" / "config.json"), "--labels", "negative,positive"]
    command += ["--train", str(reviews / "train.jsonl"), "--eval", str(reviews / "test.jsonl")]
    command += ["--output", str(reviews / "checkpoint"), "--epochs", "1", "--max-length", "256", "--quiet"]
    assert run([*command, "--learning-rate", "2e-3"]) == 0
    return reviews / "checkpoint"


def test_train_export_parity_predict(reviews: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle, test = str(trained), str(reviews / "bundle"), str(reviews / "test.jsonl")
    capsys.readouterr()
    assert run(["export", checkpoint, "--target", "onnx", "--output", bundle, "--quiet"]) == 0
    assert "verified" in capsys.readouterr().out
    assert run(["parity", bundle, "--reference", checkpoint, "--data", test, "--json", "--quiet"]) == 0
    evaluation = json.loads(capsys.readouterr().out)["evaluation"]
    assert evaluation["agreement"] == 1.0 and evaluation["accuracy"] == evaluation["reference_accuracy"]
    answers = reviews / "answers.jsonl"
    assert run(["predict", bundle, "--input", test, "--output", str(answers), "--quiet"]) == 0
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    reviewed = [json.loads(line) for line in Path(test).read_text("utf-8").strip().split("\n")]
    truth = [("negative", "positive")[row["label"]] for row in reviewed]
    assert [row["line"] for row in rows] == list(range(1, 161))
    hits = sum(row["label"] == label for row, label in zip(rows, truth, strict=True))
    assert hits / len(rows) == pytest.approx(evaluation["accuracy"])
    assert {row["tokens_used"] for row in rows if row["tokens"] > 256} == {256}  # what was trained is what is served
    pipe = transformers.pipeline("text-classification", model=checkpoint, truncation=True)
    for row, want in zip(rows, pipe([row["text"] for row in reviewed[:8]]), strict=False):
        assert (row["label"], row["score"]) == (want["label"], pytest.approx(want["score"], abs=1e-5))


def test_ctrl_c_in_the_gate_leaves_the_verdict(
    bundle: Callable[[str], Path],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "modernbert-single-mean"
    own = Path(shutil.copytree(bundle(name), tmp_path / "bundle"))
    before = (own / "manifest.json").read_bytes()

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nopad.export.parity.run, "run_gate", interrupted)
    assert run(["parity", str(own), "--reference", str(checkpoint(name))]) == 130
    assert (own / "manifest.json").read_bytes() == before
    assert open_bundle(own).manifest.verdict == "verified"


def test_the_embedded_model_answers_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["predict", "a dull hour of my life that I want back", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "negative"
    with load(threads=1) as model:
        answers = model.predict(["A wonderful, touching film. I loved it.", "Dull, badly acted and far too long."])
    assert [answer.label for answer in answers] == ["positive", "negative"]
