"""Checkpoint -> bundle: every head, the form of the graph, precisions, external data, optimum."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from checkpoints import make_checkpoint
from onnx import TensorProto
from reference_models import CASES

import nopad.export.graph.onnx
from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import run
from nopad.runtime.predictor import load

# One of each task and architecture; the other heads run with the slow tests.
FAST = {
    "modernbert-single-mean",
    "modernbert-multi-cls",
    "modernbert-token",
    "modernbert-mlm",
    "modernbert-embed-mean-unit",
    "modernbert-rerank",
    "bert-single",
    "bert-mlm",
}
Bundles = Callable[[str], Path]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name) for name in CASES]
)
def test_every_head_exports_and_passes_the_gate(name: str, bundle: Bundles) -> None:
    case = CASES[name]
    manifest = open_bundle(bundle(name)).manifest  # the fixture asserts that the gate passed
    assert manifest.verdict == "verified"
    assert manifest.task == case.task
    assert manifest.labels == tuple(case.config.get("id2label", {}).values())
    assert manifest.problem_type == (case.config.get("problem_type") if case.task == "text-classification" else None)
    lengths = {row["case"] for row in manifest.artifacts[0].parity["onnx-cpu"]["rows"]}
    for length in (1, 2, 63, 64, 65, 127, 128, 129, 511, 512):
        assert {f"{length} tokens, alone", f"{length} tokens, in a mixed batch"} <= lengths


def test_token_types_are_those_that_the_checkpoints_tokenizer_makes(bundle: Bundles, tmp_path: Path) -> None:
    pair = ("a dull film", "splendid")
    with load(bundle("bert-rerank"), threads=1) as model:
        typed = model.logits([pair])[0]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    make_checkpoint("bert-rerank", folder)
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    raw = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(raw | {"model_input_names": ["input_ids", "attention_mask"]}))
    assert (
        export_checkpoint(folder, tmp_path / "bundle", ExportOptions(task="rerank")).bundle.manifest.verdict
        == "verified"
    )
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(*pair, return_tensors="pt")
    assert "token_type_ids" not in inputs
    with load(tmp_path / "bundle", threads=1) as model, torch.no_grad():
        untyped = model.logits([pair])[0]
        assert untyped == pytest.approx(reference(**inputs).logits[0].numpy(), abs=1e-5)
    assert abs(float(untyped[0] - typed[0])) > 1e-3


def test_one_label_of_no_stated_kind_scores_as_in_transformers_pipeline(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    make_checkpoint("modernbert-regression-cls", folder)
    raw = json.loads((folder / "config.json").read_text())
    del raw["problem_type"]
    (folder / "config.json").write_text(json.dumps(raw))
    assert export_checkpoint(folder, tmp_path / "bundle").bundle.manifest.verdict == "verified"
    pipe = transformers.pipeline("text-classification", model=str(folder))
    with load(tmp_path / "bundle", threads=1) as model:
        for text in ("a dull film", "splendid"):
            assert model.predict([text])[0].score == pytest.approx(pipe(text)[0]["score"], abs=1e-5)


def test_fp16_halves_the_file_and_keeps_norms_in_fp32(
    checkpoint: Bundles, plain_bundle: Bundles, tmp_path: Path
) -> None:
    folder = checkpoint("modernbert-single-mean")
    small = export_checkpoint(folder, tmp_path / "fp16", ExportOptions(target="onnx", precision="fp16"))
    assert small.report is not None and small.report["passed"]
    assert small.bundle.manifest.artifacts[0].precision == "fp16"
    graph = onnx.load(str(tmp_path / "fp16" / "model.fp16.onnx")).graph
    kinds = {w.name: w.data_type for w in graph.initializer}
    assert kinds["model.embeddings.tok_embeddings.weight"] == TensorProto.FLOAT16
    assert {kind for name, kind in kinds.items() if "norm" in name} == {TensorProto.FLOAT}
    assert {kind for name, kind in kinds.items() if "classifier" in name} == {TensorProto.FLOAT16}
    # Matrices are transposed at export, so they carry their own names: by size, most bytes are fp16.
    bulk = {w.data_type for w in graph.initializer if len(w.dims) == 2 and min(w.dims) >= 64 and "head" not in w.name}
    assert TensorProto.FLOAT16 in bulk
    size = (tmp_path / "fp16" / "model.fp16.onnx").stat().st_size
    assert size < 0.65 * (plain_bundle("modernbert-single-mean") / "model.onnx").stat().st_size
    with load(tmp_path / "fp16", threads=1) as model:
        assert model.logits(["a film"])[0].dtype == "float32"


def test_large_weights_go_to_a_file_beside_that_travels_with_the_bundle(
    checkpoint: Bundles, bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nopad.export.graph.onnx, "INLINE_BYTES", 0)
    result = export_checkpoint(checkpoint("modernbert-single-mean"), tmp_path / "made")
    assert result.report is not None and result.report["passed"]
    assert set(result.bundle.manifest.files) >= {"model.cpu.onnx", "model.cpu.onnx.data"}
    assert (tmp_path / "made" / "model.cpu.onnx").stat().st_size < 300_000
    (tmp_path / "made").rename(tmp_path / "moved")
    with load(tmp_path / "moved", threads=1) as model, load(bundle("modernbert-single-mean"), threads=1) as inline:
        assert model.logits(["a film"])[0] == pytest.approx(inline.logits(["a film"])[0], abs=1e-6)


def test_the_command_reports_as_json(checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bundle"
    command = ["export", str(checkpoint("modernbert-single-mean")), "--target", "onnx", "--output", str(output)]
    assert run([*command, "--max-length", "100", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["verdict"] == "verified" and report["parity"]["passed"] and err == ""
    assert report["bytes"] == sum(f.stat().st_size for f in output.iterdir() if f.name != "manifest.json")
    manifest = open_bundle(output).manifest
    assert manifest.max_length == 100
    assert manifest.artifacts[0].opset == nopad.export.graph.onnx.OPSET
    assert manifest.created["transformers"] == transformers.__version__
    assert manifest.created["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_max_length_is_the_tokenizers_at_most_the_models(
    checkpoint: Bundles, bundle: Bundles, tmp_path: Path
) -> None:
    assert open_bundle(bundle("modernbert-single-mean")).manifest.max_length == 1024
    folder = shutil.copytree(checkpoint("modernbert-single-mean"), tmp_path / "checkpoint")
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(raw | {"model_max_length": 300}))
    made = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(parity=False)).bundle
    assert made.manifest.max_length == 300
    assert made.manifest.verdict == "unverified"  # without the gate nothing is


def test_a_tokenizer_that_transformers_5_saved_serves_under_transformers_4_too(
    checkpoint: Bundles, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("modernbert-single-mean"), tmp_path / "checkpoint")
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(raw | {"tokenizer_class": "TokenizersBackend"}))
    result = export_checkpoint(folder, tmp_path / "bundle")
    assert result.report is not None and result.report["passed"]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("onnx", "fp32"), ("onnx", "fp16")])
def test_the_base_config_exports_in_a_minute(target: Any, precision: Any, tmp_path: Path) -> None:
    base = {"vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22}
    base |= {"num_attention_heads": 12, "max_position_embeddings": 8192}
    make_checkpoint("modernbert-single-mean", tmp_path / "base", **base)
    output = tmp_path / "bundle"
    result = export_checkpoint(
        tmp_path / "base", output, ExportOptions(target=target, precision=precision, parity=False)
    )
    assert result.export_seconds < 60
    assert result.bytes == pytest.approx(600e6 if precision == "fp32" else 303e6, rel=0.02)


def test_optimum_makes_a_padded_bundle_of_another_architecture(tmp_path: Path) -> None:
    pytest.importorskip("optimum.exporters.onnx", reason="needs: pip install 'nopad[optimum]' (transformers 4.57)")
    folder, output = tmp_path / "distilbert", tmp_path / "bundle"
    make_checkpoint("bert-single", folder)
    torch.manual_seed(0)
    labels = {"id2label": {0: "negative", 1: "neutral", 2: "positive"}}
    config = transformers.DistilBertConfig(vocab_size=420, dim=32, hidden_dim=64, n_layers=2, n_heads=2, **labels)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    assert run(["export", str(folder), "--exporter", "optimum", "--output", str(output), "--quiet"]) == 0
    manifest = open_bundle(output).manifest
    assert manifest.verdict == "verified"
    assert (manifest.artifacts[0].layout, manifest.artifacts[0].exporter) == ("padded", "optimum")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.DistilBertForSequenceClassification.from_pretrained(folder).eval()
    texts = ["ok", "a tender, sharply written film", "it ends with more hearings " * 20]
    with load(output, threads=1) as served, torch.no_grad():
        assert served.labels == ("negative", "neutral", "positive")
        for text, answer in zip(texts, served.predict(texts, return_logits=True), strict=True):
            want = model(**{k: v for k, v in tokenizer(text, return_tensors="pt").items() if k != "token_type_ids"})
            assert answer.logits == pytest.approx(want.logits[0].numpy(), abs=1e-5)
