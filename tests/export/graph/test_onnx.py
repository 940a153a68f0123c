"""The file that torch's exporter writes: its inputs, names and operators, and nothing of the machine in it."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import onnx
import onnxruntime
import pytest
import torch
from reference_models import CASES
from torch import nn

import nopad.export.graph.onnx
from nopad.export.errors import ExportError
from nopad.export.graph.onnx import OPSET, GraphTarget, export_graph, trace
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.encoder import PackedEncoder
from nopad.model.packing import pack

Folders = Callable[[str], Path]


def encoder(checkpoint: Folders, name: str = "modernbert-single-mean") -> PackedEncoder:
    return load_checkpoint(checkpoint(name), **CASES[name].load).encoder


@pytest.mark.parametrize("target", get_args(GraphTarget))
def test_the_graph_is_dynamic_named_and_free_of_this_machine(
    target: GraphTarget, checkpoint: Folders, tmp_path: Path
) -> None:
    graph = export_graph(encoder(checkpoint), tmp_path / "model.onnx", target=target)
    model = onnx.load(str(graph.file))
    # Plain ONNX, which OpenVINO takes too, has no contrib operator and no function.
    domains = {"": OPSET, "com.microsoft": 1} if target == "cpu" else {"": OPSET}
    assert {entry.domain: entry.version for entry in model.opset_import} == domains
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert shapes == graph.inputs
    assert shapes == {
        "input_ids": ["tokens"],
        "position_ids": ["tokens"],
        "sequence_ids": ["tokens"],
        "pad_index": ["sequences", "longest"],
    }
    assert graph.outputs == {"logits": ["sequences", "3"]}
    assert (graph.opset, graph.token_multiple) == (OPSET, 64 if target == "onnx" else 1)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    for layer in range(4):
        for part in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"):
            assert any(name.startswith(f"model.layers.{layer}.{part}/") for name in names), (layer, part)
    assert {node.domain for node in model.graph.node} == set(domains) and not model.functions
    data = graph.file.read_bytes()
    for trace_of in (b"site-packages", b"nopad/model", str(Path.home()).encode(), b"Traceback"):
        assert trace_of not in data


def test_bert_takes_token_types(checkpoint: Folders, tmp_path: Path) -> None:
    graph = export_graph(encoder(checkpoint, "bert-single"), tmp_path / "model.onnx")
    assert graph.inputs["token_type_ids"] == ["tokens"]


@pytest.mark.slow
def test_large_weights_go_to_a_file_beside_the_graph(
    checkpoint: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoder(checkpoint)
    inline = export_graph(made, tmp_path / "inline.onnx").file
    monkeypatch.setattr(nopad.export.graph.onnx, "INLINE_BYTES", 0)
    split = export_graph(made, tmp_path / "split.onnx").file
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inline.onnx", "split.onnx", "split.onnx.data"]
    assert split.stat().st_size < 300_000
    batch = pack([[1, 5, 2], [1, 7, 8, 2]])
    answers = []
    for path in (inline, split):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {value.name: getattr(batch, value.name) for value in session.get_inputs()}
        answers.append(session.run(None, feeds)[0])
    assert (answers[0] == answers[1]).all()


class _Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_an_error_of_ours() -> None:
    with pytest.raises(ExportError, match=r"torch \S+ could not export this encoder: "):
        trace(_Branching(), [torch.ones(2)], [None], ["x"])
