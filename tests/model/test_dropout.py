"""Dropout by 16 bits: its rate, its scale, its gradient, its seed."""

import pytest
import torch

from nopad.model.dropout import Dropout, drop


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_rate_and_mean_are_those_asked_for(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)  # no multiple of the four elements of a random word
    out = drop(x, probability)
    dropped = (out == 0).float().mean().item()
    # Five standard deviations of a million draws.
    assert abs(dropped - probability) <= 5 * (probability * (1 - probability) / 1e6) ** 0.5 + 1 / 131072
    assert out.max().item() == pytest.approx(1 / (1 - probability), rel=2e-4)
    assert out.mean().item() == pytest.approx(1, abs=5 * (probability / (1 - probability) / 1e6) ** 0.5)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out)
    rows, columns = (out == 0).float().mean(1), (out == 0).float().mean(0)
    spread = (probability * (1 - probability) / 1000) ** 0.5
    for part in (rows, columns):
        assert part.std().item() == pytest.approx(spread, rel=0.2)


def test_seeds_repeat_it_and_evaluation_is_without() -> None:
    x, layer = torch.randn(7, 9), Dropout(0.5)
    torch.manual_seed(1)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert layer.eval()(x) is x and drop(x, 0.0) is x and not drop(x, 1.0).any()
