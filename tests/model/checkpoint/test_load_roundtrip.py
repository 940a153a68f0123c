"""nopad -> transformers: saved checkpoints open there with the same logits, and gradients agree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from reference_models import (
    ATTENTIONS,
    BERT,
    CASES,
    MODERNBERT,
    TOLERANCE,
    Case,
    Reference,
    difference,
    disturb,
    labels,
    make_reference,
    packed_logits,
    token_ids,
)
from torch import Tensor

from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.save import config_json, write_checkpoint
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.packing import pack

GetReference = Callable[[str], Reference]
SAVED = ("modernbert-single-mean", "modernbert-multi-cls", "modernbert-regression-cls", "modernbert-token")
SAVED += ("modernbert-mlm", "modernbert-mlm-untied", "modernbert-embed-mean-unit", "modernbert-rerank")
SAVED += ("bert-single", "bert-multi", "bert-regression", "bert-token", "bert-mlm", "bert-mlm-untied", "bert-rerank")


@pytest.mark.parametrize("name", SAVED)
def test_saved_checkpoint_opens_in_transformers(name: str, reference: GetReference, tmp_path: Path) -> None:
    made = reference(name)
    checkpoint = load_checkpoint(made.folder, **made.case.load)
    write_checkpoint(checkpoint.encoder, checkpoint.raw_config, tmp_path)
    theirs, info = type(made.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    opened = Reference(made.case, theirs.eval(), tmp_path)
    rows = [token_ids(length) for length in (1, 65, 129)]
    expected = [made.logits(ids) for ids in rows]
    for key, tensor in made.model.state_dict().items():
        if (name, key) == ("bert-mlm-untied", "cls.predictions.bias"):
            continue  # transformers 5 keeps it beside decoder.bias and does not use it
        assert torch.equal(theirs.state_dict()[key], tensor), key
    # The weights are equal to the bit; their alignment in memory still moves sums by an ulp.
    assert difference([opened.logits(ids) for ids in rows], expected) <= 1e-6
    assert difference(packed_logits(opened.encoder(), rows), expected) <= TOLERANCE
    assert opened.encoder().encoder_config == checkpoint.config
    if checkpoint.config.labels:
        assert theirs.config.id2label == dict(enumerate(checkpoint.config.labels))
        assert theirs.config.problem_type == checkpoint.config.problem_type


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_both_config_spellings_are_written(every: int, tmp_path: Path) -> None:
    raw = {**MODERNBERT, "architectures": ["ModernBertForSequenceClassification"], **labels(2)}
    raw |= {"global_attn_every_n_layers": every, "global_rope_theta": 90000.0, "local_rope_theta": 400.0}
    written = config_json(raw, read_config(raw))
    old = {key: value for key, value in written.items() if key not in ("layer_types", "rope_parameters")}
    gone = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    new = {key: value for key, value in written.items() if key not in gone}
    assert read_config(old) == read_config(new) == read_config(raw)
    assert json.loads(json.dumps(written)) == written


def test_unknown_config_keys_are_kept(reference: GetReference, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(reference("bert-single").folder)
    write_checkpoint(checkpoint.encoder, {**checkpoint.raw_config, "ours": {"a": 1}}, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ours"] == {"a": 1}


@pytest.mark.parametrize("name", ["modernbert-single-cls", "bert-single", "modernbert-mlm"])
def test_random_initialisation_is_that_of_transformers(name: str) -> None:
    # By spread per parameter: the draws themselves differ. Wide layers, so that the estimate is sharp.
    case = CASES[name]
    wide = {"vocab_size": 2000, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2}
    raw = {**(MODERNBERT if case.architecture == "modernbert" else BERT), **case.config, **wide}
    config = transformers.AutoConfig.for_model(**raw)
    auto = (
        transformers.AutoModelForMaskedLM
        if case.task == "fill-mask"
        else (transformers.AutoModelForSequenceClassification)
    )
    torch.manual_seed(0)
    theirs = dict(auto.from_config(config).named_parameters())
    ours = build_encoder(read_config(raw, task=case.task))  # type: ignore[arg-type]
    initialize(ours)
    compared = dict(ours.named_parameters())
    assert set(theirs) == set(compared) or case.architecture == "bert"
    for key, tensor in compared.items():
        expected = theirs[key]
        if expected.ndim == 1:
            assert torch.equal(tensor, expected), key
        else:
            spread = expected.std().item()
            assert abs(tensor.std().item() - spread) <= 5 * spread / expected.numel() ** 0.5 + 1e-4, key


def _nopad_gradients(encoder: PackedEncoder, rows: list[list[int]], targets: Tensor) -> dict[str, Tensor]:
    batch = pack(rows, multiple=encoder.encoder_config.block)
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids")
    logits = encoder(**{name: torch.from_numpy(getattr(batch, name)) for name in names})
    F.cross_entropy(logits, targets).backward()
    return {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}


GRADIENT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert-cls": ("modernbert", {"classifier_pooling": "cls"}),
    "modernbert-mean": ("modernbert", {"classifier_pooling": "mean"}),
    "modernbert-biases": ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    "bert": ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_loss_gradients_equal_transformers(name: str, attention: str, tmp_path: Path) -> None:
    architecture, changes = GRADIENT_CASES[name]
    case = Case(name=name, architecture=architecture, task="text-classification", config={**labels(3), **changes})
    made = make_reference(case, tmp_path)
    rows = [token_ids(length) for length in (1, 2, 63, 65, 129, 200)]
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    padded = torch.zeros(len(rows), 200, dtype=torch.int64)
    for i, ids in enumerate(rows):
        padded[i, : len(ids)] = torch.tensor(ids)
    made.model.train()
    made.model(input_ids=padded, attention_mask=(padded != 0).long(), labels=targets).loss.backward()
    theirs = {name: parameter.grad for name, parameter in made.model.named_parameters()}
    ours = _nopad_gradients(made.encoder(ATTENTIONS[attention]).train(), rows, targets)
    assert set(ours) == set(theirs)
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    worst = 0.0
    for key, gradient in theirs.items():
        # BERT's key bias has the gradient 0 (softmax cancels it): what stands there is rounding of the whole.
        scale = largest if key.endswith("key.bias") else gradient.norm().item()
        gap = (ours[key] - gradient).norm().item() / scale
        worst = max(worst, gap)
        assert gap <= 1e-5, f"{key}: {gap:.1e}"
    print(f"max gradient difference {worst:.1e}")


def test_dropout_acts_in_training_only(tmp_path: Path) -> None:
    config = {**labels(3), "attention_dropout": 0.5, "mlp_dropout": 0.5, "embedding_dropout": 0.5}
    made = make_reference(
        Case(name="d", architecture="modernbert", task="text-classification", config=config), tmp_path
    )
    encoder, ids = made.encoder(), token_ids(129)
    assert not encoder.training
    assert difference(packed_logits(encoder, [ids]), [made.logits(ids)]) <= TOLERANCE
    encoder.train()
    assert difference(packed_logits(encoder, [ids]), packed_logits(encoder, [ids])) > 1e-2


@pytest.mark.parametrize("kind", ["embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"])
def test_each_dropout_is_applied(kind: str, tmp_path: Path) -> None:
    raw = {**MODERNBERT, **labels(3), kind: 0.5}
    encoder = build_encoder(read_config(raw, task="text-classification"))
    disturb(encoder)
    encoder.train()
    ids = token_ids(129)
    torch.manual_seed(0)
    first = packed_logits(encoder, [ids])
    assert difference(first, packed_logits(encoder, [ids])) > 1e-4
    torch.manual_seed(0)
    assert difference(first, packed_logits(encoder, [ids])) == 0.0
