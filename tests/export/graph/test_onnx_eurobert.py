"""EuroBERT and UltraBERT in the steps that work on graphs: precision, int8, ONNX Runtime's fusions."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from checkpoints import VOCAB_SIZE, _bpe
from reference_models import EUROBERT, ULTRABERT, labels, packed_logits, token_ids

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.export.graph.onnx import export_graph
from nopad.export.graph.precision import cast
from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.save import write_checkpoint
from nopad.model.encoder import build_encoder
from nopad.model.packing import pack
from nopad.runtime import load

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def encoder(raw: dict[str, Any]) -> Any:
    torch.manual_seed(5)
    made = build_encoder(read_config({**raw, **labels(3)}, task="text-classification"))
    initialize(made)
    return made


def test_an_fp16_graph_keeps_norms_and_softmax_in_fp32(tmp_path: Path) -> None:
    half = cast(encoder(ULTRABERT), "fp16")
    export_graph(half, tmp_path / "model.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx")).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    types: dict[str, set[int]] = {}
    for node in graph.node:
        types.setdefault(node.op_type, set()).add(kinds[node.output[0]])
    assert types["Gemm"] == types["MatMul"] == {HALF}
    assert types["Softmax"] == types["Pow"] == types["Sqrt"] == types["ReduceMean"] == types["Cos"] == {FLOAT}
    assert kinds["logits"] == FLOAT
    ids = token_ids(200)
    assert np.abs(run(tmp_path / "model.onnx", [ids], 128) - packed_logits(half, [ids])[0].numpy()).max() < 5e-3


def run(path: Path, sequences: list[list[int]], multiple: int) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = pack(sequences, multiple=multiple)
    return session.run(None, {one.name: getattr(batch, one.name) for one in session.get_inputs()})[0]


def test_the_cpu_graph_has_one_kernel_for_a_norm(tmp_path: Path) -> None:
    import onnxruntime

    export_graph(encoder(EUROBERT), tmp_path / "model.onnx", target="cpu")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # of that file it says that it is for this machine
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert nodes.count("SimplifiedLayerNormalization") == 2 * 3 + 1
    assert nodes.count("RotaryEmbedding") == 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("raw", [EUROBERT, ULTRABERT], ids=["eurobert", "ultrabert"])
def test_int8_on_cpus(raw: dict[str, Any], tmp_path: Path) -> None:
    raw = {**raw, "vocab_size": VOCAB_SIZE, **labels(3)}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(encoder(raw), raw, folder)
    _bpe(folder)
    result = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(precision=["fp32", "int8"], parity=False))
    exact, small = result.bundle.manifest.artifacts
    assert small.quantized is not None and small.quantized["passed"]
    texts = ["a dull film", "splendid " * 30]
    with (
        load(tmp_path / "bundle", file=exact.file, allow_unverified=True) as one,
        load(tmp_path / "bundle", file=small.file, allow_unverified=True) as other,
    ):
        for want, got in zip(one.logits(texts), other.logits(texts), strict=True):
            assert 0 < np.abs(want - got).max() < 0.1
