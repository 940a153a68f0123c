"""The precision policy: the dtypes of a cast encoder and of its graph, and the error that they cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from reference_models import BERT as BERT_CONFIG
from reference_models import CASES, MODERNBERT, Case, difference, labels, packed_logits, token_ids

from nopad.export.graph.onnx import export_graph
from nopad.export.graph.precision import POLICIES, Policy, cast
from nopad.model.attention import graph_attention
from nopad.model.checkpoint.read_config import read_config
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.errors import NopadError
from nopad.runtime.engines.hardware import PRECISIONS

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ONNX = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
CAST = tuple(precision for precision in PRECISIONS if precision != "int8")


def encoder(case: Case, **config: object) -> PackedEncoder:
    family = MODERNBERT if case.architecture == "modernbert" else BERT_CONFIG
    raw = {**family, **case.config, **config}
    torch.manual_seed(0)
    return build_encoder(read_config(json.loads(json.dumps(raw)), **{"task": case.task, **case.load})).eval()


def dtype_of(name: str, policy: Policy) -> str:
    """The dtype of the policy's table, looked up by parameter name."""
    if "norm" in name.lower():
        return policy.norms
    if "embedding" in name:
        return policy.embeddings
    if "decoder" in name or name == "cls.predictions.bias":
        return policy.decoder
    if name.startswith(("head.", "classifier.", "cls.")) or "pooler" in name:
        return policy.head
    return policy.layers


@pytest.mark.parametrize("precision", CAST)
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_the_dtype_of_its_part(name: str, precision: str) -> None:
    full = encoder(CASES[name])
    before = {key: (value.dtype, value.clone()) for key, value in full.state_dict().items()}
    out = cast(full, precision)  # type: ignore[arg-type]
    assert {key: value.dtype for key, value in out.state_dict().items()} == {
        key: TORCH[dtype_of(key, POLICIES[precision])] for key in before
    }
    for key, value in full.state_dict().items():  # the encoder itself is as it was
        assert value.dtype == before[key][0] and torch.equal(value, before[key][1]), key


def test_the_table_keeps_fp32_where_it_decides_accuracy_and_a_tied_decoder_with_the_embeddings() -> None:
    assert set(POLICIES) == set(PRECISIONS)
    for policy in POLICIES.values():
        assert (policy.norms, policy.softmax, policy.logits) == ("fp32", "fp32", "fp32")
        assert policy.decoder == policy.embeddings
    half = POLICIES["fp16"]
    assert {half.embeddings, half.layers, half.head, half.decoder} == {"fp16"}  # Turing: no fp32 product in RTX
    assert POLICIES["bf16"].head == "fp32"
    for name in ("modernbert-mlm", "bert-mlm"):
        out = cast(encoder(CASES[name], tie_word_embeddings=True), "fp16")
        tied = [p for p in out.parameters() if p.shape == (out.encoder_config.vocab_size, 64)]
        assert len(tied) == 1


@pytest.mark.parametrize("precision", ["int8", "fp8", "half"])
def test_what_is_no_precision_of_an_encoder_is_refused(precision: str) -> None:
    with pytest.raises(NopadError, match=f"{precision}.*fp32, fp16 or bf16"):
        cast(encoder(CASES["bert-single"]), precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", ["modernbert-single-mean", "modernbert-mlm", "bert-single", "bert-embed-cls-unit"])
def test_a_cast_encoder_answers_in_fp32_and_nearly_the_same(name: str, precision: str, bound: float) -> None:
    full = encoder(CASES[name])
    half = cast(full, precision)  # type: ignore[arg-type]
    half.attention = full.attention = graph_attention
    sequences = [token_ids(length) for length in (1, 64, 130)]
    answers, wanted = packed_logits(half, sequences), packed_logits(full, sequences)
    assert {answer.dtype for answer in answers} == {torch.float32}
    scale = max(1.0, max(float(row.abs().max()) for row in wanted))
    assert 0 < difference(answers, wanted) <= bound * scale


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    case = CASES["modernbert-single-mean"]
    full = encoder(case, num_hidden_layers=2, **labels(3))
    folder = tmp_path_factory.mktemp("graphs")
    return {p: export_graph(cast(full, p), folder / f"{p}.onnx").file for p in ("fp16", "bf16")}  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_graph_is_typed_as_the_table_says(precision: str, graphs: dict[str, Path]) -> None:
    policy = POLICIES[precision]
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(graphs[precision]))).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    seen = {"layers": 0, "head": 0, "norms": 0, "softmax": 0}
    for node in graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            part = "layers" if ".layers." in node.name else "head"
        elif node.op_type in ("LayerNormalization", "Softmax"):
            part = "softmax" if node.op_type == "Softmax" else "norms"
        else:
            continue
        seen[part] += 1
        got = {types[name] for name in (*node.input, *node.output) if name}
        assert got == {ONNX[getattr(policy, part)]}, node.name
    assert seen == {"layers": 12, "head": 2, "norms": 6, "softmax": 2}
    assert types["logits"] == ONNX[policy.logits]
    constants = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.FLOAT]
    assert min(float(values.min()) for values in constants if values.size) >= -65504  # masks too: fp16 can hold them


def test_onnx_runtime_runs_fp16_on_a_cpu_and_has_no_bf16_product(graphs: dict[str, Path]) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(graphs["fp16"]), options, providers=providers)
    shapes = {"input_ids": 64, "position_ids": 64, "sequence_ids": 64}
    inputs = {name: np.zeros(size, dtype=np.int64) for name, size in shapes.items()}
    inputs["pad_index"] = np.zeros((1, 1), dtype=np.int64)
    assert np.isfinite(session.run(None, inputs)[0]).all()
    # When this fails, bf16 graphs can be gated on CPUs.
    with pytest.raises(Exception, match="NOT_IMPLEMENTED.*Gemm"):
        onnxruntime.InferenceSession(str(graphs["bf16"]), options, providers=providers)
