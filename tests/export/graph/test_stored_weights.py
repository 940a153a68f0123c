"""Weights stored as bf16: which, how exactly, how small, and that any ONNX library reads them."""

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
from int8_models import small_graph
from onnx import numpy_helper
from reference_models import CASES, token_ids

from nopad.export.bundle_files import write_graph
from nopad.export.errors import ExportError
from nopad.export.graph.stored_weights import store_bf16
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import PackedBatch, pack
from nopad.runtime.bundle import DEFAULT_CHECKPOINT

Array = np.ndarray[Any, Any]
FILES = {"fp32": "model.openvino.onnx", "bf16": "model.openvino.bf16.onnx"}


def arrays(file: Path) -> dict[str, Array]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}


def answers(file: Path, batch: PackedBatch) -> Array:
    """ONNX Runtime's, which computes in fp32."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {one.name: getattr(batch, one.name) for one in session.get_inputs()})[0])


def as_bf16(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


# --- the embedded model's files


def test_a_file_has_half_of_the_bytes(openvino_bundle: Path) -> None:
    exact, half = ((openvino_bundle / FILES[name]).stat().st_size for name in ("fp32", "bf16"))
    assert 0.5 * exact <= half <= 0.53 * exact


def test_bf16_is_for_embeddings_and_layers(openvino_bundle: Path) -> None:
    exact, stored = arrays(openvino_bundle / FILES["fp32"]), arrays(openvino_bundle / FILES["bf16"])
    rounded = {name.removesuffix(".bf16"): array for name, array in stored.items() if name.endswith(".bf16")}
    matrices = {name for name, array in exact.items() if array.ndim == 2 and array.dtype == np.float32}
    kept = {name for name in matrices if name.startswith(("head.", "classifier."))}
    assert rounded.keys() == matrices - kept and len(kept) == 2
    assert len(rounded) == 1 + 7 * 4  # embeddings; q, k, v, out, two halves, down
    for name, array in rounded.items():
        np.testing.assert_array_equal(array.astype(np.float32), as_bf16(exact[name]))
    for name in exact.keys() - rounded.keys():  # norms, the head: as they were
        assert stored[name].dtype == exact[name].dtype
        np.testing.assert_array_equal(stored[name], exact[name])


def test_onnx_runtime_opens_the_file_too(openvino_bundle: Path) -> None:
    batch = pack([token_ids(length, 8000) for length in (3, 70, 129)], multiple=1)
    want, got = (answers(openvino_bundle / FILES[name], batch) for name in ("fp32", "bf16"))
    np.testing.assert_array_equal(got, want)  # the embedded weights are numbers of bf16


# --- what the embedded model does not have


def stored(model: ir.Model) -> dict[str, str]:
    """The type of every initializer."""
    values = model.graph.initializers.values()
    return {value.name or "": value.const_value.dtype.name for value in values if value.const_value is not None}


def run(model: ir.Model) -> Array:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.arange(12) * 3, "position_ids": np.arange(12)}
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("decoder", [False, True])
def test_embeddings_that_are_tied_to_a_decoder_are_stored_once(decoder: bool) -> None:
    model = ir.from_proto(small_graph(decoder=decoder))
    want = run(model)
    store_bf16(model.graph)
    types = stored(model)
    assert types == {f"{name}.bf16": "BFLOAT16" for name in ("words", "places", "layer")} | (
        {} if decoder else {"head": "FLOAT"}
    )
    # Rows are gathered first and widened then; a product's matrix is widened once.
    assert Counter(node.op_type for node in model.graph)["Cast"] == (4 if decoder else 3)
    assert 0 < np.abs(run(model) - want).max() <= 1e-2 * np.abs(want).max()


def test_only_what_a_decoder_reads() -> None:
    for decoder in (False, True):
        model = ir.from_proto(small_graph(decoder=decoder))
        want = run(model)
        store_bf16(model.graph, read_by="decoder")
        changed = {name for name, kind in stored(model).items() if kind == "BFLOAT16"}
        assert changed == ({"words.bf16"} if decoder else set())
        assert decoder == bool(np.abs(run(model) - want).max())


def test_a_graph_cannot_be_asked_for_int8(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fp32 or bf16, not int8"):
        write_graph(load_checkpoint(DEFAULT_CHECKPOINT), tmp_path, "int8", "openvino")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "matrices"), [("bert-single", 3 + 6 * 3), ("modernbert-mlm", 1 + 7 * 4)])
def test_other_architectures(name: str, matrices: int, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint(name), **CASES[name].load)
    exact, rounded = (tmp_path / write_graph(loaded, tmp_path, one, "openvino").file for one in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert sum(key.endswith(".bf16") for key in arrays(rounded)) == matrices
    batch = pack([token_ids(length) for length in (3, 70, 129)], multiple=1)
    want = answers(exact, batch)
    gap = np.abs(answers(rounded, batch) - want).max()
    assert 0 < gap <= 0.05 * max(1.0, float(np.abs(want).max()))
