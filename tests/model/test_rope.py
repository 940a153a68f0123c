"""Rotary positions of every `rope_type` against transformers' own functions and models."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reference_models import (
    ATTENTIONS,
    EUROBERT,
    MODERNBERT,
    TOLERANCE,
    TRANSFORMERS_4,
    Case,
    difference,
    labels,
    make_reference,
    packed_logits,
    token_ids,
)

from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.save import config_json
from nopad.model.config import EncoderConfig
from nopad.model.rope import frequencies
from nopad.model.rope_config import ROPE_TYPES

needs_5 = pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4.57 has other rope types for ModernBERT, or none")

SHORT, LONG = [1.0 + 0.1 * i for i in range(16)], [2.0 + 0.5 * i for i in range(16)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# What config.json says of one kind of layer; theta is of the other keys there.
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "linear, an integer": {"rope_type": "linear", "factor": 2},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "dynamic, odd factor": {"rope_type": "dynamic", "factor": 1.7},
    "yarn": YARN,
    "yarn of its declared length": {"rope_type": "yarn", "factor": 4.0},
    "yarn, smaller than 1": {**YARN, "factor": 0.5},
    "yarn, attention": {**YARN, "attention_factor": 1.3},
    "yarn, betas": {**YARN, "beta_fast": 20.0, "beta_slow": 2},
    "yarn, mscale": {**YARN, "mscale": 1.2, "mscale_all_dim": 0.7},
    "yarn, one mscale": {**YARN, "mscale": 1.2},
    "yarn, factor null": {**YARN, "factor": None},
    "longrope": {
        "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 256,
    },
    "longrope, factor": {
        "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 2.0,
        "original_max_position_embeddings": 200,
    },
    "longrope, attention": {
        "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.1,
        "original_max_position_embeddings": 256,
    },
    "llama3": {**LLAMA3, "original_max_position_embeddings": 128},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    "proportional, whole": {"rope_type": "proportional", "factor": 2.0},
    "proportional, none": {"rope_type": "proportional", "partial_rotary_factor": 0.0},
}  # fmt: skip


def nested(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "full_attention": {"rope_theta": 70000.0, **entry},
        "sliding_attention": {"rope_theta": 5000, "rope_type": "default"},
    }


def model_config(**changes: Any) -> tuple[EncoderConfig, Any]:
    raw = {**MODERNBERT, **changes}
    return read_config(raw, task="embeddings"), transformers.AutoConfig.for_model(**raw)


def test_every_type_is_here() -> None:
    assert {entry["rope_type"] for entry in ROPES.values()} == set(ROPE_TYPES)
    if not TRANSFORMERS_4:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        assert set(ROPE_TYPES) == {"default", *ROPE_INIT_FUNCTIONS}


@needs_5
@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_those_of_transformers(name: str, head_size: int) -> None:
    from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

    entry = ROPES[name]
    if "long_factor" in entry:
        entry = {**entry, **{key: (entry[key] * 2)[: head_size // 2] for key in ("short_factor", "long_factor")}}
    ours, theirs = model_config(hidden_size=2 * head_size, rope_parameters=nested(entry))
    module: Any = ModernBertRotaryEmbedding(theirs)
    for rope, kind in ((ours.global_rope, "full_attention"), (ours.local_rope, "sliding_attention")):
        own, scale = frequencies(rope, head_size)
        assert torch.equal(own, getattr(module, f"{kind}_inv_freq"))
        assert scale == getattr(module, f"{kind}_attention_scaling")
    if "long_factor" in entry:
        original = entry["original_max_position_embeddings"]
        module(torch.zeros(1), torch.tensor([[original]]), "full_attention")  # one beyond: it takes the other factors
        assert torch.equal(frequencies(ours.global_rope, head_size, long=True)[0], module.full_attention_inv_freq)


@needs_5
@pytest.mark.parametrize("name", ROPES)
def test_the_encoder_equals_transformers(name: str, tmp_path: Path) -> None:
    config = {"rope_parameters": nested(ROPES[name]), "num_hidden_layers": 3}
    made = make_reference(Case(name="rope", architecture="modernbert", task="fill-mask", config=config), tmp_path)
    rows = [token_ids(length) for length in (1, 129, 256, 257, 600, 1024)]
    theirs = [made.logits(ids) for ids in rows]
    for attention in ATTENTIONS.values():
        assert difference(packed_logits(made.encoder(attention), rows), theirs) <= TOLERANCE


@needs_5
@pytest.mark.parametrize(
    ("architecture", "scaling"),
    [
        ("modernbert", {"rope_type": "yarn", "factor": 4.0}),
        ("modernbert", YARN),
        ("eurobert", {"rope_type": "yarn", "factor": 4.0}),
        ("eurobert", YARN),
        ("eurobert", {"type": "linear", "factor": 2.0}),  # refused for ModernBERT: test_read_config.py
    ],
)
def test_rope_scaling_is_read_as_transformers_reads_it(
    architecture: str, scaling: dict[str, Any], tmp_path: Path
) -> None:
    config = {"rope_scaling": scaling, "num_hidden_layers": 3}
    if architecture == "eurobert":
        config |= {"original_max_position_embeddings": 512}
    made = make_reference(Case(name="rope", architecture=architecture, task="fill-mask", config=config), tmp_path)
    rows = [token_ids(length) for length in (1, 129, 600)]
    theirs = [made.logits(ids) for ids in rows]
    assert difference(packed_logits(made.encoder(), rows), theirs) <= TOLERANCE


@needs_5
@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_may_keep_the_edges_of_its_ramp(truncate: bool) -> None:
    from transformers.models.eurobert.modeling_eurobert import EuroBertRotaryEmbedding

    raw = {**EUROBERT, "rope_parameters": {**YARN, "rope_theta": 3000.0, "truncate": truncate}}
    module: Any = EuroBertRotaryEmbedding(transformers.AutoConfig.for_model(**raw))
    own, scale = frequencies(read_config(raw, task="fill-mask").global_rope, 16)
    assert torch.equal(own, module.inv_freq) and scale == module.attention_scaling


@pytest.mark.parametrize("name", ROPES)
def test_a_checkpoint_keeps_its_rope(name: str) -> None:
    raw = {**MODERNBERT, "architectures": ["ModernBertModel"], "rope_parameters": nested(ROPES[name])}
    config = read_config(raw)
    assert read_config(config_json(raw, config)) == config
    scaled = {**MODERNBERT, "architectures": ["ModernBertModel"], "rope_scaling": ROPES[name]}
    config = read_config(scaled)
    assert "rope_scaling" not in config_json(scaled, config)
    assert read_config(config_json(scaled, config)) == config


@needs_5
@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "openvino", "onnx"])
@pytest.mark.parametrize("name", ["longrope", "yarn", "llama3", "proportional"])
def test_every_graph_carries_it(name: str, target: Any, tmp_path: Path) -> None:
    import onnxruntime

    from nopad.export.graph.onnx import export_graph
    from nopad.model.packing import pack

    config = {"rope_parameters": nested(ROPES[name]), "num_hidden_layers": 2, **labels(3)}
    made = make_reference(
        Case(name=name, architecture="modernbert", task="text-classification", config=config), tmp_path
    )
    graph = export_graph(made.encoder(), tmp_path / "model.onnx", target=target)
    session = onnxruntime.InferenceSession(str(graph.file), providers=["CPUExecutionProvider"])
    for lengths in ([600, 129, 1, 256, 257], [400], [5, 200]):  # on both sides of longrope's 256 tokens
        rows = [token_ids(length) for length in lengths]
        batch = pack(rows, multiple=graph.token_multiple)
        (out,) = session.run(None, {node.name: getattr(batch, node.name) for node in session.get_inputs()})
        assert difference(list(torch.from_numpy(out)), [made.logits(ids) for ids in rows]) <= TOLERANCE
