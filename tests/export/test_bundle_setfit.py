"""SetFit folders: the classifier becomes the last layer, or the command says that it is left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import sentence_transformers
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.errors import CheckpointError
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import run
from nopad.runtime.predictor import load

GetFolder = Callable[[str], Path]
TEXTS = ["A dull story, badly told.", "good", "the film is a splendid one and I would see it again at once", "bad"]


@pytest.fixture(scope="module")
def body(checkpoint: GetFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("body") / "st"
    model = sentence_transformers.SentenceTransformer(
        str(checkpoint("bert-embed-default")), device="cpu"
    )  # mean pooling
    model.max_seq_length = 32
    model.save_pretrained(str(folder))
    return folder


def fitted(classifier: Any, targets: Any) -> Any:
    rows = np.random.default_rng(1).normal(size=(len(targets), 64)) * 2
    return classifier.fit(rows, targets)


RNG = np.random.default_rng(2)
FLAGS = (RNG.random((60, 4)) > 0.5).astype(int)
# name -> classifier, targets, labels of config_setfit.json, the bundle's labels
HEADS: dict[str, tuple[Any, Any, list[str] | None, tuple[str, ...]]] = {
    "two": (LogisticRegression(C=10), RNG.integers(0, 2, 60), ["neg", "pos"], ("neg", "pos")),
    "three, named by themselves": (
        LogisticRegression(C=10), RNG.choice(["a", "b", "c"], 60), None, ("a", "b", "c")
    ),
    "four, unnamed": (LogisticRegression(), np.arange(60) % 4, None, ("0", "1", "2", "3")),
    "one against the rest, several": (OneVsRestClassifier(LogisticRegression()), FLAGS, list("wxyz"), tuple("wxyz")),
    "several outputs": (MultiOutputClassifier(LogisticRegression()), FLAGS, list("wxyz"), tuple("wxyz")),
}  # fmt: skip


def make_setfit(
    folder: Path, body: Path, classifier: Any, *, labels: list[str] | None, normalize: bool = False
) -> Path:

    shutil.copytree(body, folder)
    joblib.dump(classifier, folder / "model_head.pkl")
    (folder / "config_setfit.json").write_text(json.dumps({"labels": labels, "normalize_embeddings": normalize}))
    return folder


def probabilities(folder: Path, classifier: Any, *, normalize: bool) -> np.ndarray:
    """Probabilities as SetFitModel.predict_proba computes them."""
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    rows = model.encode(TEXTS, normalize_embeddings=normalize, show_progress_bar=False)
    out = classifier.predict_proba(rows)
    return np.stack([one[:, 1] for one in out], axis=1) if isinstance(out, list) else np.asarray(out)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_weights_of_the_classifier(name: str, normalize: bool, body: Path, tmp_path: Path) -> None:
    kind, targets, labels, expected = HEADS[name]
    folder = make_setfit(tmp_path / "m", body, fitted(kind, targets), labels=labels, normalize=normalize)
    loaded = load_checkpoint(folder, allow_pickle=True)
    assert loaded.config.labels == expected and loaded.config.task == "text-classification"
    assert [module.kind for module in loaded.config.modules] == (["Normalize"] if normalize else []) + ["Dense"]


@pytest.mark.parametrize(
    ("name", "normalize"), [("two", True), ("three, named by themselves", False), ("several outputs", False)]
)
def test_answers_are_predict_proba(name: str, normalize: bool, body: Path, tmp_path: Path) -> None:
    kind, targets, labels, _ = HEADS[name]
    classifier = fitted(kind, targets)
    folder = make_setfit(tmp_path / "m", body, classifier, labels=labels, normalize=normalize)
    result = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(allow_pickle=True, threads=1))
    assert result.passed, result.report
    true = probabilities(folder, classifier, normalize=normalize)
    with load(tmp_path / "bundle", threads=1) as model:
        for answer, row in zip(model.predict(TEXTS), true, strict=True):
            assert np.abs(np.array([answer.scores[label] for label in model.labels]) - row).max() <= 1e-5
    assert "model_head.pkl" in open_bundle(tmp_path / "bundle").manifest.source["sha256"]


def test_without_leave_the_pickle_is_not_opened(body: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_setfit(tmp_path / "m", body, _Trap(tmp_path / "opened"), labels=["neg", "pos"])
    assert run(["export", str(folder), "-o", str(tmp_path / "bundle"), "--quiet"]) == 3
    err = capsys.readouterr().err
    for part in ("is a SetFit model", "model_head.pkl", "which can run code", "--allow-pickle", "--task embeddings"):
        assert part in err
    assert run(["export", str(folder), "-o", str(tmp_path / "bundle"), "--task", "embeddings"]) == 0
    assert "its classifier (model_head.pkl) is left out" in capsys.readouterr().err
    assert not (tmp_path / "opened").exists()


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("classifier", "targets", "message"),
    [
        (RidgeClassifier(), np.arange(60) % 3, "holds RidgeClassifier, and nopad converts LogisticRegression"),
        (ClassifierChain(LogisticRegression()), FLAGS, "holds ClassifierChain"),
        (MultiOutputClassifier(RidgeClassifier()), FLAGS, "holds MultiOutputClassifier of RidgeClassifier"),
        (OneVsRestClassifier(LogisticRegression()), np.arange(60) % 3, "holds OneVsRestClassifier"),
    ],
)
def test_other_classifiers_are_refused_by_name(
    classifier: Any, targets: Any, message: str, body: Path, tmp_path: Path
) -> None:
    folder = make_setfit(tmp_path / "m", body, fitted(classifier, targets), labels=None)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, allow_pickle=True)


def test_broken_folders(body: Path, tmp_path: Path) -> None:
    folder = make_setfit(tmp_path / "m", body, None, labels=None)
    with pytest.raises(CheckpointError, match="holds NoneType"):
        load_checkpoint(folder, allow_pickle=True)
    (folder / "model_head.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_checkpoint(folder, allow_pickle=True)
    (folder / "model_head.pkl").unlink()
    with pytest.raises(CheckpointError, match="without its classifier"):
        load_checkpoint(folder, allow_pickle=True)
    with pytest.raises(CheckpointError, match="classifies texts; it has no token-classification"):
        load_checkpoint(folder, task="token-classification", allow_pickle=True)
    classifier = LogisticRegression().fit(np.random.default_rng(1).normal(size=(20, 8)), np.arange(20) % 2)
    joblib.dump(classifier, folder / "model_head.pkl")
    with pytest.raises(CheckpointError, match="takes embeddings of 8, the encoder gives 64"):
        load_checkpoint(folder, allow_pickle=True)
