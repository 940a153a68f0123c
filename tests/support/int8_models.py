"""What the tests of int8 for TensorRT and for CPUs share: fp graphs, random batches, answers as users get them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from reference_models import CASES, token_ids

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
    """By name, the graph of the embedded checkpoint or of a small random one, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = DEFAULT_CHECKPOINT if name == "embedded" else checkpoint(name)
            load = {} if name == "embedded" else CASES[name].load
            made[name] = folders.mktemp(name) / f"{precision}.onnx"
            export_graph(cast(load_checkpoint(folder, **load).encoder, precision), made[name], cpu=cpu)
        return made[name]

    return get


def batches(rows: int = 128, vocab_size: int = 200, token_budget: int = 1024) -> list[PackedBatch]:
    """Random ids, `rows` sequences of 4 to 67 tokens."""
    ids = [token_ids(4 + row % 64, vocab_size, seed=row) for row in range(rows)]
    plan = plan_batches([len(one) for one in ids], token_budget=token_budget, max_sequences=64)
    return [pack([ids[i] for i in members]) for members in plan]


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """As users open it: nothing but the number of threads is set."""
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
