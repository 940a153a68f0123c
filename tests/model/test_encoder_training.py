"""The encoder in training: gradients are those of transformers, and dropout acts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference_models import (
    ATTENTIONS,
    MODERNBERT,
    TOLERANCE,
    Case,
    difference,
    disturb,
    labels,
    make_reference,
    packed_logits,
    token_ids,
)
from torch import Tensor

from nopad.model.checkpoint.read_config import read_config
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.packing import pack


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
