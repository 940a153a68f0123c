"""What the tests of int8 for TensorRT and for CPUs share: fp graphs, random batches, answers as users get them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from reference_models import CASES, token_ids
from tokenizers import Tokenizer

from nopad.export.graph.onnx import export_graph
from nopad.export.graph.precision import cast
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import PackedBatch, pack, plan_batches
from nopad.runtime.bundle import DEFAULT_CHECKPOINT

MODERNBERT = ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")
BERT = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
Graphs = Callable[[str], Path]
Array = np.ndarray[Any, Any]


def graphs(folders: pytest.TempPathFactory, checkpoint: Graphs, *, precision: str, cpu: bool) -> Graphs:
    """By name, the graph of the embedded checkpoint or of a small random one, built once."""
    paths: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in paths:
            folder = DEFAULT_CHECKPOINT if name == "embedded" else checkpoint(name)
            load = {} if name == "embedded" else CASES[name].load
            paths[name] = folders.mktemp(name) / f"{precision}.onnx"
            export_graph(
                cast(load_checkpoint(folder, **load).encoder, precision), paths[name], target="cpu" if cpu else "onnx"
            )
        return paths[name]

    return get


def batches(rows: int = 128, vocab_size: int = 200, token_budget: int = 1024) -> list[PackedBatch]:
    """Random ids, `rows` sequences of 4 to 67 tokens."""
    ids = [token_ids(4 + row % 64, vocab_size, seed=row) for row in range(rows)]
    plan = plan_batches([len(sequence) for sequence in ids], token_budget=token_budget, max_sequences=64)
    return [pack([ids[i] for i in members]) for members in plan]


def layer_graph(
    operator: str, weight: Array, other: Array | None = None, rank: int = 2, **attributes: Any
) -> onnx.ModelProto:
    """x @ weight (+ other) as one layer of an encoder; a matrix to add is an input."""
    width = weight.shape[1] if attributes.get("transB") else weight.shape[0]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * (rank - 1) + [width])]
    constants = [numpy_helper.from_array(weight, "w")]
    if other is not None and other.ndim == 1:
        constants.append(numpy_helper.from_array(other, "c"))
    elif other is not None:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [None, other.shape[1]]))
    names = ["x", "w", *(["c"] if other is not None else [])]
    node = helper.make_node(operator, names, ["y"], f"model.layers.0.mlp.Wo/{operator}", **attributes)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)]
    graph = helper.make_graph([node], "layer", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def small_graph(decoder: bool = False) -> onnx.ModelProto:
    """Two tables of embeddings, a layer [16, 16] with a channel of zeros, and a product with the first table (the
    decoder that is tied to it), or with a head."""
    rng = np.random.default_rng(3)
    shapes = {"words": (40, 16), "places": (20, 16), "layer": (16, 16)} | ({} if decoder else {"head": (16, 5)})
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["layer"][5] = 0.0
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["a"], "model.embeddings.tok_embeddings/Gather"),
        helper.make_node("Gather", ["places", "position_ids"], ["b"], "model.embeddings.position/Gather"),
        helper.make_node("Add", ["a", "b"], ["x"], "model.embeddings/Add"),
        helper.make_node("Gemm", ["x", "layer"], ["y"], "model.layers.0.mlp.Wo/Gemm", transB=1),
        helper.make_node("Gemm", ["y", "words"], ["logits"], "decoder/Gemm", transB=1)
        if decoder
        else helper.make_node("MatMul", ["y", "head"], ["logits"], "classifier/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["tokens"]) for name in ("input_ids", "position_ids")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", 40 if decoder else 5])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """A session as users open it: only the number of threads is set."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: Iterable[PackedBatch]) -> Array:
    """Logits, real rows only."""
    opened = session(path)
    per_token = opened.get_outputs()[0].shape[0] == "tokens"
    out = []
    for batch in feeds:
        logits = opened.run(None, {value.name: getattr(batch, value.name) for value in opened.get_inputs()})[0]
        out.append(logits[: batch.num_tokens] if per_token else logits)
    return np.concatenate(out)


def by_label(logits: Array) -> Array:
    """The label of each row, for tasks with a single label."""
    labels: Array = logits.argmax(-1)
    return labels


def read_imdb(imdb: Path, file: str, limit: int, *, max_length: int) -> tuple[list[PackedBatch], list[Array]]:
    """Reviews in batches for the embedded checkpoint, and their labels."""
    tokenizer = Tokenizer.from_file(str(DEFAULT_CHECKPOINT / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    with (imdb / file).open() as lines:
        rows = [json.loads(line) for line in islice(lines, limit)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch([row["text"] for row in rows])]
    plan = plan_batches([len(text) for text in ids], token_budget=2048, max_sequences=64)
    labels = np.array([row["label"] for row in rows])
    return [pack([ids[i] for i in members]) for members in plan], [labels[members] for members in plan]
