"""Weights stored as bf16 and int8: which, how exactly, how small, and that any ONNX library reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from reference_models import CASES, token_ids

from nopad.export.bundle_files import write_graph
from nopad.export.graph.stored_weights import depths, store_weights
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import PackedBatch, pack
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, open_bundle

Array = np.ndarray[Any, Any]
FILES = {name: f"model.openvino{'' if name == 'fp32' else '.' + name}.onnx" for name in ("fp32", "bf16", "int8")}
LAYERS = [f"model.layers.{i}.{part}" for i in range(3) for part in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")]


def arrays(file: Path) -> dict[str, Array]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}


def answers(file: Path, batch: PackedBatch) -> Array:
    """ONNX Runtime's, which computes in fp32."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {one.name: getattr(batch, one.name) for one in session.get_inputs()})[0])


def as_bf16(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


# --- the embedded model's files


@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 0.5, 0.53), ("int8", 0.25, 0.3)])
def test_a_file_has_half_or_a_quarter_of_the_bytes(
    precision: str, least: float, most: float, openvino_bundle: Path
) -> None:
    exact, stored = ((openvino_bundle / FILES[name]).stat().st_size for name in ("fp32", precision))
    assert least * exact <= stored <= most * exact


def test_bf16_is_for_embeddings_and_layers(openvino_bundle: Path) -> None:
    exact, stored = arrays(openvino_bundle / FILES["fp32"]), arrays(openvino_bundle / FILES["bf16"])
    rounded = {name.removesuffix(".bf16"): array for name, array in stored.items() if name.endswith(".bf16")}
    matrices = {name for name, array in exact.items() if array.ndim == 2 and array.dtype == np.float32}
    kept = {name for name in matrices if name.startswith(("head.", "classifier."))}
    assert rounded.keys() == matrices - kept and len(kept) == 2
    assert len(rounded) == 1 + 7 * 3  # embeddings; q, k, v, out, two halves, down
    for name, array in rounded.items():
        np.testing.assert_array_equal(array.astype(np.float32), as_bf16(exact[name]))
    for name in exact.keys() - rounded.keys():  # norms, the head: as they were
        assert stored[name].dtype == exact[name].dtype
        np.testing.assert_array_equal(stored[name], exact[name])


def test_int8_has_a_scale_for_each_channel_of_a_layer_and_each_row_of_embeddings(
    openvino_bundle: Path, tmp_path: Path
) -> None:
    nearest = write_graph(load_checkpoint(DEFAULT_CHECKPOINT), tmp_path, "int8", "openvino")
    exact, stored = arrays(openvino_bundle / FILES["fp32"]), arrays(tmp_path / nearest.file)
    integers = {name.removesuffix(".int8") for name, array in stored.items() if array.dtype == np.int8}
    assert len(integers) == 1 + 7 * 3 and not any(name.endswith(".bf16") for name in stored)
    for name in integers:
        values, scales = stored[f"{name}.int8"], stored[f"{name}.scale"]
        assert scales.size == len(values) and scales.dtype == np.float32  # rows, which are a product's outputs
        by_row = scales.reshape(-1, 1)
        gap = np.abs(values * by_row - exact[name])
        assert (gap <= by_row * 0.50001).all() and np.abs(values.astype(int)).max() == 127
        assert name not in stored


def test_the_manifest_says_what_is_int8(openvino_bundle: Path) -> None:
    told = {one.precision: one.quantized for one in open_bundle(openvino_bundle).manifest.artifacts}
    assert told["fp32"] is None and told["bf16"] is None
    assert told["int8"] == {
        "int8": told["int8"]["int8"],
        "kept": [],
        "tokens": told["int8"]["tokens"],
        "weight_bits": 8,
        "scales": "group",
        "group": 64,
    }
    assert sorted(told["int8"]["int8"]) == sorted(LAYERS)
    sums = depths(ir.load(openvino_bundle / FILES["fp32"]).graph)
    assert sums == (128, 192) and all(depth % told["int8"]["group"] == 0 for depth in sums)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2e-2), ("int8", 0.1)])
def test_onnx_runtime_opens_the_file_too(precision: str, bound: float, openvino_bundle: Path) -> None:
    batch = pack([token_ids(length, 8000) for length in (3, 70, 129)], multiple=1)
    want, got = (answers(openvino_bundle / FILES[name], batch) for name in ("fp32", precision))
    assert 0 < np.abs(got - want).max() <= bound


# --- what the embedded model does not have


def small(decoder: bool, weight: Array) -> ir.Model:
    """Two tables of embeddings, a layer with `weight` [N, K], and a product with the first table, or with a head."""
    rng = np.random.default_rng(3)
    words, places = (rng.normal(size=(size, weight.shape[1])).astype(np.float32) for size in (40, 20))
    head = rng.normal(size=(weight.shape[1], 5)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["a"], "model.embeddings.tok_embeddings/Gather"),
        helper.make_node("Gather", ["places", "position_ids"], ["b"], "model.embeddings.position/Gather"),
        helper.make_node("Add", ["a", "b"], ["x"], "model.embeddings/Add"),
        helper.make_node("Gemm", ["x", "layer"], ["y"], "model.layers.0.mlp.Wo/Gemm", transB=1),
        helper.make_node("Gemm", ["y", "words"], ["logits"], "decoder/Gemm", transB=1)
        if decoder
        else helper.make_node("MatMul", ["y", "head"], ["logits"], "classifier/MatMul"),
    ]
    tensors = {"words": words, "places": places, "layer": weight} | ({} if decoder else {"head": head})
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["tokens"]) for name in ("input_ids", "position_ids")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", 40 if decoder else 5])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def stored_types(model: ir.Model) -> dict[str, str]:
    values = model.graph.initializers.values()
    return {value.name or "": value.const_value.dtype.name for value in values if value.const_value is not None}


def run(model: ir.Model) -> Array:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.arange(12) * 3, "position_ids": np.arange(12)}
    return np.asarray(session.run(None, feeds)[0])


@pytest.fixture
def weight() -> Array:
    """[16, 16] with a channel of zeros."""
    made = np.random.default_rng(4).normal(size=(16, 16)).astype(np.float32)
    made[5] = 0.0
    return made


def test_embeddings_that_are_tied_to_a_decoder_are_stored_once_in_bf16(weight: Array) -> None:
    for precision in ("bf16", "int8"):
        model = small(True, weight)
        want = run(model)
        assert store_weights(model.graph, precision) == (("model.layers.0.mlp.Wo",) if precision == "int8" else ())
        types = stored_types(model)
        assert types["words.bf16"] == "BFLOAT16" and "words" not in types and "words.int8" not in types
        assert types.get("places.int8", types.get("places.bf16")) == ("INT8" if precision == "int8" else "BFLOAT16")
        # Rows are gathered first and widened then; a product's matrix is widened once.
        widened = Counter(node.op_type for node in model.graph)
        assert (widened["Cast"], widened["DequantizeLinear"]) == ((4, 0) if precision == "bf16" else (3, 1))
        gap = np.abs(run(model) - want).max() / np.abs(want).max()
        assert 0 < gap <= {"bf16": 1e-2, "int8": 2e-2}[precision]


def test_a_head_stays_fp32_and_a_channel_of_zeros_zero(weight: Array) -> None:
    model = small(False, weight)
    want = run(model)
    assert store_weights(model.graph, "int8") == ("model.layers.0.mlp.Wo",)
    types = stored_types(model)
    assert types["head"] == "FLOAT" and {types[f"{name}.int8"] for name in ("words", "places", "layer")} == {"INT8"}
    layer = model.graph.initializers["layer.int8"].const_value
    scales = model.graph.initializers["layer.scale"].const_value
    assert layer is not None and scales is not None
    assert not layer.numpy()[5].any() and scales.numpy()[5] == 1 and np.isfinite(scales.numpy()).all()
    assert np.abs(run(model) - want).max() <= 2e-2 * np.abs(want).max()


def test_fp32_changes_nothing(weight: Array) -> None:
    model = small(False, weight)
    before, want = stored_types(model), run(model)
    assert store_weights(model.graph, "fp32") == () and stored_types(model) == before
    np.testing.assert_array_equal(run(model), want)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tables"), [("bert-single", 3), ("modernbert-mlm", 0), ("bert-mlm", 2)])
def test_other_architectures(name: str, tables: int, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint(name), **CASES[name].load)
    made = {precision: write_graph(loaded, tmp_path, precision, "openvino") for precision in ("fp32", "bf16", "int8")}  # type: ignore[arg-type]
    stored = arrays(tmp_path / made["int8"].file)
    rows = [key for key, array in stored.items() if key.endswith(".int8") and "embeddings" in key]
    assert len(rows) == tables  # words, places and types of BERT; those of words are bf16 where a decoder reads them
    assert sum(key.endswith(".bf16") for key in stored) == (0 if name == "bert-single" else 1)
    batch = pack([token_ids(length) for length in (3, 70, 129)], multiple=1)
    want = answers(tmp_path / made["fp32"].file, batch)
    for precision, bound in (("bf16", 0.05), ("int8", 0.1)):
        gap = np.abs(answers(tmp_path / made[precision].file, batch) - want).max()
        assert 0 < gap <= bound * max(1.0, float(np.abs(want).max()))
