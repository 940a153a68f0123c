"""Bundles for token-embeddings: each engine gives transformers' last hidden state of every token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import make_checkpoint

from nopad.export.bundle import ExportOptions, export_checkpoint, write_bundle
from nopad.export.parity.samples import SAMPLES
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.cpus import cpu_at_hand
from nopad.model.head import Task
from nopad.runtime.cli import run
from nopad.runtime.engines.hardware import Precision
from nopad.runtime.predictor import load

Folders = Callable[[str], Path]
TOKENS: Task = "token-embeddings"
ENGINES = {"cpu": "onnx-cpu", "openvino": "openvino", "onnx": "onnx-cpu", "torch": "torch"}  # by target


@pytest.fixture(scope="module")
def every_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer, and beside it its bundle with the file of each target."""
    root = tmp_path_factory.mktemp("tokens")
    for name in ("checkpoint", "bundle"):
        (root / name).mkdir()
    make_checkpoint("bert-tokens", root / "checkpoint", num_hidden_layers=1)
    loaded = load_checkpoint(root / "checkpoint", task=TOKENS)
    write_bundle(loaded, root / "bundle", openvino=("fp32",), graphs=("fp32",), torch="fp32")
    return root


@pytest.mark.parametrize("target", ENGINES)
def test_every_engine_gives_the_last_hidden_state(target: str, every_target: Path) -> None:
    if target == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(every_target / "checkpoint")
    model = transformers.AutoModel.from_pretrained(every_target / "checkpoint", attn_implementation="sdpa").eval()
    file = {"cpu": "model.cpu.onnx", "openvino": "model.openvino.onnx", "onnx": "model.onnx"}.get(target)
    texts = ["a", *SAMPLES, " ".join(SAMPLES)]
    engine = ENGINES[target]
    with (
        load(every_target / "bundle", engine=engine, file=file, threads=1, allow_unverified=True) as served,
        torch.no_grad(),
    ):
        assert served.artifact.target == target
        for text, ours in zip(texts, served.embed_tokens(texts), strict=True):
            encoded = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
            want = model(**encoded).last_hidden_state[0].numpy()
            assert ours.shape == want.shape
            assert ours == pytest.approx(want, abs=1e-5 * max(1, float(np.abs(want).max())))


@pytest.mark.slow
def test_the_command_exports_inspects_and_judges(
    checkpoint: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = str(checkpoint("modernbert-tokens")), str(tmp_path / "bundle")
    assert run(["export", folder, "--task", TOKENS, "--precision", "fp32,int8", "-o", bundle]) == 0
    capsys.readouterr()
    assert run(["inspect", bundle]) == 0
    rows = {line[:13].strip(): line[14:].strip() for line in capsys.readouterr().out.splitlines()}
    assert (rows["task"], rows["verdict"]) == (TOKENS, "verified") and "pooling" not in rows
    assert run(["parity", bundle, "-r", folder]) == 0
    assert run(["predict", bundle, "a film"]) == 0
    assert "vectors of 64" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [
        pytest.param(
            "bf16", marks=pytest.mark.skipif(not cpu_at_hand().bf16, reason="this CPU has no bf16 instructions")
        ),
        "int8",
    ],
)
def test_the_gate_holds_each_tokens_direction_in_lower_precisions(
    precision: Precision, checkpoint: Folders, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    options = ExportOptions(task=TOKENS, target="openvino", precision=precision)
    result = export_checkpoint(checkpoint("bert-tokens"), tmp_path / "bundle", options)
    assert result.report is not None and result.passed
    assert len([row for row in result.report["rows"] if row["check"] == "cosine"]) > 30
