"""Cross-encoders: scores as sentence-transformers' `CrossEncoder` gives them, and an order that no score can lose."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_faults import gate_against
from safetensors.torch import load_file, save_file
from st_folders import NEW, edit, library, quiet

from nopad.export import bundle as export_bundle
from nopad.export.bundle import export_checkpoint, write_bundle
from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.export.reference.sentence_transformers import LibraryCrossEncoder, ReadingCrossEncoder
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.errors import CheckpointError
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import Model, load

GetCheckpoint = Callable[[str], Path]
Scores = np.ndarray[Any, np.dtype[np.float32]]
QUERY = PAIRS[0][0]
MODULE = "torch.nn.modules.activation"


def without_tracing(checkpoint: Any, folder: Path, precision: str, target: str = "onnx") -> Artifact:
    """In the place of `write_graph`: the torch engine answers."""
    (folder / "model.onnx").write_bytes(b"")
    inputs = {"token_type_ids": ["tokens"]} if checkpoint.config.type_vocab_size else {}
    return Artifact(
        file="model.onnx",
        target=target,
        precision=precision,
        layout="packed",
        inputs=inputs,
        outputs={"logits": ["n", "1"]},
    )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Model]:
    """A folder's bundle on the torch engine."""
    monkeypatch.setattr(export_bundle, "write_graph", without_tracing)

    def make(folder: Path, name: str = "bundle", **asked: Any) -> Model:
        output = tmp_path / name
        output.mkdir()
        write_bundle(load_checkpoint(folder, **asked), output, torch="fp32")
        return load(output, engine="torch", allow_unverified=True)

    return make


@pytest.fixture
def folder(checkpoint: GetCheckpoint, tmp_path: Path) -> Callable[..., Path]:
    """A classifier's checkpoint with logits like a real reranker's, and more keys in its config.json."""

    def make(name: str, *, factor: float = 4.0, shift: float = 0.0, **config: Any) -> Path:
        made = Path(shutil.copytree(checkpoint(name), tmp_path / "checkpoint"))
        weights = load_file(made / "model.safetensors")
        weights["classifier.weight"] *= factor
        weights["classifier.bias"] += shift
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        edit(made / "config.json", **config)
        return made

    return make


def predict(folder: Path, pairs: list[tuple[str, str]]) -> Scores:
    with quiet():
        model = library().CrossEncoder(str(folder), device="cpu", local_files_only=True)
        return np.asarray(model.predict([list(pair) for pair in pairs], show_progress_bar=False), dtype=np.float32)


def scores(model: Model, pairs: list[tuple[str, str]]) -> Scores:
    rows = [[answer.scores[label] for label in model.labels] for answer in model.predict(pairs)]
    return np.array(rows, dtype=np.float32)


def named(name: str) -> dict[str, Any]:
    return {"sentence_transformers": {"activation_fn": name, "version": "4.0.0"}}


OLD = "sbert_ce_default_activation_function"
FOLDERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "identity": ("bert-rerank", named("torch.nn.modules.linear.Identity"), "Identity"),
    "sigmoid": ("modernbert-rerank", named(f"{MODULE}.Sigmoid"), "Sigmoid"),
    "tanh": ("bert-rerank", named(f"{MODULE}.Tanh"), "Tanh"),
    "softplus": ("bert-rerank", named(f"{MODULE}.Softplus"), "Softplus"),
    "log sigmoid": ("bert-rerank", named(f"{MODULE}.LogSigmoid"), "LogSigmoid"),
    "relu": ("bert-rerank", named(f"{MODULE}.ReLU"), "ReLU"),
    "old key": ("bert-rerank", {OLD: "torch.nn.modules.linear.Identity"}, "Identity"),
    "old key without a value": ("bert-rerank", {OLD: None}, "Sigmoid"),
    "a version alone": ("bert-rerank", {"sentence_transformers": {"version": "4.0.0"}}, "Sigmoid"),
    "three labels": ("bert-single", {"sentence_transformers": {"version": "4.0.0"}}, "Identity"),
    "three labels, softmax": ("bert-single", named(f"{MODULE}.Softmax"), "Softmax"),
    "three labels, sigmoid": ("modernbert-single-mean", named(f"{MODULE}.Sigmoid"), "Sigmoid"),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", FOLDERS)
def test_scores_are_those_of_predict(name: str, folder: Callable[..., Path], opened: Callable[..., Model]) -> None:
    checkpoint, config, activation = FOLDERS[name]
    made = folder(checkpoint, **config)
    pairs = [*PAIRS, *((QUERY, text) for text in SAMPLES), (QUERY, " ".join(SAMPLES) * 2)]
    with opened(made) as model:
        assert model.manifest.activation == activation
        assert model.task == ("text-classification" if "three" in name else "rerank")
        want = predict(made, pairs).reshape(len(pairs), -1)
        close = 1e-5 * max(1.0, float(np.abs(want).max()))
        assert np.abs(scores(model, pairs) - want).max() <= close
        report = gate_against(model.bundle, made, engine="torch")
    assert report["passed"], report
    assert "predict" in {row["check"] for row in report["rows"]}
    reading, ours = ReadingCrossEncoder(made), LibraryCrossEncoder(made)
    assert np.abs(reading.predict(pairs[:6]) - ours.predict(pairs[:6])).max() <= 1e-5 * max(
        1.0, float(np.abs(want).max())
    )


def test_a_saturated_sigmoid_keeps_the_order(folder: Callable[..., Path], opened: Callable[..., Model]) -> None:
    made = folder("bert-rerank", shift=60.0)
    logits = predict_logits(made, list(SAMPLES))
    with opened(made, task="rerank") as model:
        ranked = model.rerank(QUERY, SAMPLES)
        assert {one.score for one in ranked} == {1.0}
        assert [one.index for one in ranked] == sorted(range(len(SAMPLES)), key=lambda i: -logits[i])
        assert all(one.text == SAMPLES[one.index] for one in ranked)


def predict_logits(folder: Path, texts: list[str]) -> list[float]:
    with quiet():
        model = library().CrossEncoder(str(folder), device="cpu", local_files_only=True)
        pairs = [[QUERY, text] for text in texts]
        return [float(x) for x in model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)]


def test_rank_gives_the_same_order_and_scores(folder: Callable[..., Path], tmp_path: Path) -> None:
    made = folder("bert-rerank", **named("torch.nn.modules.linear.Identity"))
    result = export_checkpoint(made, tmp_path / "whole")
    assert result.passed, result.report
    with quiet():
        ranked = library().CrossEncoder(str(made), device="cpu", local_files_only=True).rank(QUERY, list(SAMPLES))
    with load(tmp_path / "whole") as model:
        ours = model.rerank(QUERY, SAMPLES)
    assert [one.index for one in ours] == [one["corpus_id"] for one in ranked]
    assert np.allclose([one.score for one in ours], [one["score"] for one in ranked], atol=1e-4)


@pytest.mark.parametrize("seed", ["activation", "limit"])
def test_the_gate_catches_what_is_left_out(
    seed: str, folder: Callable[..., Path], opened: Callable[..., Model], tmp_path: Path
) -> None:
    made = folder("bert-rerank", **named("torch.nn.modules.linear.Identity"))
    poorer = Path(shutil.copytree(made, tmp_path / "poorer"))
    if seed == "activation":
        edit(poorer / "config.json", **named(f"{MODULE}.Tanh"))
    else:
        edit(made / "tokenizer_config.json", model_max_length=48)
    with opened(poorer) as model:
        report = gate_against(model.bundle, made, engine="torch")
    assert "predict" in {row["check"] for row in report["rows"] if not row["passed"]}, report


@pytest.mark.parametrize(
    "name", ["my_code.Activation", "os.system", "torch.nn.functional.relu", "torch.load", "torch.nn.Dropout", 3]
)
def test_other_activations_are_refused_by_name(name: Any, folder: Callable[..., Path]) -> None:
    made = folder("bert-rerank", **named(name))
    with pytest.raises(CheckpointError, match=rf"config\.json: activation_fn {name!r} is not supported.*Identity"):
        _ = load_checkpoint(made).activation


@pytest.mark.skipif(not NEW, reason="older versions write no modules.json for a cross-encoder")
def test_a_folder_of_version_6(folder: Callable[..., Path], opened: Callable[..., Model], tmp_path: Path) -> None:
    made = folder("bert-rerank")
    saved = tmp_path / "saved"
    with quiet():
        model = library().CrossEncoder(
            str(made), device="cpu", activation_fn=torch.nn.Tanh(), prompts={"ask": "ask: "}, default_prompt_name="ask"
        )
        model.save_pretrained(str(saved), create_model_card=False)
    assert json.loads((saved / "config_sentence_transformers.json").read_text())["model_type"] == "CrossEncoder"
    pairs = [*PAIRS, *((QUERY, text) for text in SAMPLES)]
    with opened(saved) as model:
        assert (model.task, model.manifest.activation) == ("rerank", "Tanh")
        want = predict(saved, pairs).reshape(-1, 1)
        assert np.abs(scores(model, pairs) - want).max() <= 1e-5
        plain = predict(saved, [(f"ask: {one}", other) for one, other in pairs]).reshape(-1, 1)
        assert np.abs(plain - want).max() > 1e-5  # the prompt shows
        report = gate_against(model.bundle, saved, engine="torch")
        assert report["passed"], report
    reading, ours = ReadingCrossEncoder(saved), LibraryCrossEncoder(saved)
    assert np.abs(reading.predict(pairs[:6]) - ours.predict(pairs[:6])).max() <= 1e-5


@pytest.mark.skipif(not NEW, reason="of version 6")
def test_a_cross_encoder_made_of_several_modules_is_refused(folder: Callable[..., Path], tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with quiet():
        library().CrossEncoder(str(folder("bert-rerank")), device="cpu").save_pretrained(
            str(saved), create_model_card=False
        )
    modules = json.loads((saved / "modules.json").read_text())
    modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.x.LogitScore"})
    (saved / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="the module LogitScore is not supported.*decoder"):
        load_checkpoint(saved)
