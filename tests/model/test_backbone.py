"""The building blocks of the layers below the head."""

import pytest
import torch
from transformers.activations import ACT2FN

from nopad.model.backbone import Linear, Norm, activation
from nopad.model.config import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_what_transformers_has_under_that_name(name: str) -> None:
    x = torch.linspace(-6, 6, 1001)
    assert (activation(name)(x) - ACT2FN[name](x)).abs().max() <= 1e-6


def test_gelu_is_exact_and_its_new_form_is_not() -> None:
    x = torch.linspace(-3, 3, 101)
    assert 1e-4 < (activation("gelu")(x) - activation("gelu_new")(x)).abs().max() < 1e-2


def test_a_norm_and_a_heads_linear_layer_compute_in_the_dtype_of_their_weights() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 32, dtype=torch.float16)
    norm, linear = Norm(32), Linear(32, 8)
    for module in (norm, linear):
        assert module(x).dtype == torch.float16
        assert (module(x) == module(x.float()).half()).all()
