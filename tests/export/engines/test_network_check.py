"""TensorRT's parsed network is held against the manifest and against the precision policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_builds import Graphs, build, write
from onnx import TensorProto, helper
from reference_models import CASES

from nopad.export.engines.network_check import check_network
from nopad.export.errors import ExportError
from nopad.export.graph.onnx import Graph

trt = pytest.importorskip("tensorrt_rtx", reason="needs: pip install 'nopad[tensorrt-rtx]'")


@pytest.mark.parametrize(
    ("side", "told", "message"),
    [
        (
            "inputs",
            {"pad_index": None},
            "the graph's inputs are input_ids, pad_index.*the manifest says input_ids, pos",
        ),
        ("inputs", {"token_type_ids": ["tokens"]}, "the manifest says .*token_type_ids"),
        ("inputs", {"pad_index": ["sequences"]}, r"input pad_index is INT64 \[-1, -1\].*INT64 \['sequences'\]"),
        ("outputs", {"logits": None, "scores": ["sequences", "3"]}, "outputs are logits, the manifest says scores"),
        ("outputs", {"logits": ["sequences", "5"]}, r"output logits is FLOAT \[-1, 3\]"),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(
    side: str, told: dict[str, Any], message: str, graphs: Graphs, tmp_path: Path
) -> None:
    graph = graphs("fp16")
    changed = {name: sizes for name, sizes in (getattr(graph, side) | told).items() if sizes is not None}
    with pytest.raises(ExportError, match=message):
        build(graph, tmp_path / "engine", "sm86", "fp16", **{side: changed})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "given_as", "message"),
    [
        ("fp32", "fp16", r"not typed as fp16.*Wqkv/Gemm has FLOAT, not fp16.*and 17 more.*--precision fp16"),
        ("fp16", "fp32", r"not typed as fp32.*has HALF, not fp32"),
        ("fp16", "bf16", r"not typed as bf16.*has HALF, not bf16"),
        ("bf16", "fp16", r"not typed as fp16.*has BF16, not fp16"),
        ("fp16", "int8", r"no quantized layer"),
    ],
)
def test_a_graph_of_another_precision_is_refused(
    precision: str, given_as: str, message: str, graphs: Graphs, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        build(graphs(precision), tmp_path / "engine", "sm86", given_as)
    assert not list(tmp_path.iterdir())


def test_half_precision_where_the_policy_says_fp32_is_refused(graphs: Graphs, tmp_path: Path) -> None:
    graph = graphs("fp16")
    for kind, name in (("Softmax", "attn/Softmax has HALF"), ("LayerNormalization", "LayerNormalization has HALF")):
        model = onnx.load(str(graph.file))
        index, node = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == kind)
        halves = []
        for place, tensor in enumerate(list(node.input)):
            halves.append(
                helper.make_node("Cast", [tensor], [f"half_{place}"], f"half/{place}", to=TensorProto.FLOAT16)
            )
            node.input[place] = f"half_{place}"
        for place, half in enumerate(halves):
            model.graph.node.insert(index + place, half)
        del model.graph.value_info[:]
        onnx.save(model, str(tmp_path / "changed.onnx"))
        changed = Graph(**{**vars(graph), "file": tmp_path / "changed.onnx"})
        with pytest.raises(ExportError, match=f"not typed as fp16 is: .*{name}, not fp32"):
            build(changed, tmp_path / "engine", "sm86", "fp16")
        assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in {"modernbert-mlm", "bert-single", "bert-mlm"} else pytest.mark.slow)
        for name in CASES
    ],
)
def test_every_head_is_typed_as_the_policy_says(name: str, tmp_path: Path) -> None:
    # bf16 tells layers, head and decoder apart.
    graph = write(name, "bf16", tmp_path / "model.onnx", num_hidden_layers=2)
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(graph.file))
    layers = check_network(trt, network, inputs=graph.inputs, outputs=graph.outputs, precision="bf16")
    assert layers["SOFTMAX"] == 2 and layers["MATRIX_MULTIPLY"] >= 12
