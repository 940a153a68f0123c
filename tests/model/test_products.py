"""Linear layers by oneDNN: PyTorch's own results and gradients, for the products that go there and only for those."""

import pytest
import torch
from torch import Tensor, nn

from nopad.model import products
from nopad.model.products import fast_products


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU where oneDNN is the faster."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "_faster_here", lambda: True)
    monkeypatch.setattr(products, "WORTH", 0)


def run(layer: nn.Linear, x: Tensor, gradient: Tensor, fast: bool) -> tuple[list[Tensor], str]:
    """Output and gradients, and the name of the node that will compute the latter."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    if fast:
        with fast_products():
            out = layer(x)
    else:
        out = layer(x)
    out.backward(gradient)
    assert x.grad is not None and out.grad_fn is not None
    results = [out.detach(), x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]
    return results, out.grad_fn.name()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 5), (70, 5), (3, 40, 5), (64, 300)])
def test_results_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    for outputs in (1, 7, 130):
        layer, x = nn.Linear(shape[-1], outputs, bias=bias), torch.randn(shape)
        gradient = torch.randn(*shape[:-1], outputs)
        theirs, _ = run(layer, x, gradient, fast=False)
        for given in (gradient, gradient.transpose(0, -1).contiguous().transpose(0, -1)):
            ours, node = run(layer, x, given, fast=True)
            assert node == "_LinearBackward" and len(ours) == 3 + bias
            for mine, right in zip(ours, theirs, strict=True):
                assert mine.shape == right.shape
                assert (mine - right).norm() <= 1e-6 * right.norm()


def test_a_frozen_layer_keeps_nothing_of_what_enters_it() -> None:
    layer, x, gradient = nn.Linear(5, 7), torch.randn(3, 5), torch.randn(3, 7)
    layer.requires_grad_(False)
    x.requires_grad_()
    with fast_products():
        out = layer(x)
    kept = out.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert kept[0] is None and torch.equal(kept[1], layer.weight)
    out.backward(gradient)
    assert x.grad is not None and torch.allclose(x.grad, gradient @ layer.weight)


def test_what_it_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)

    def node(x: Tensor = x, layer: nn.Module = layer) -> str:
        with fast_products():
            out = layer(x)
        return str(out.grad_fn.name())

    assert node() == "_LinearBackward"
    assert node(x.double(), nn.Linear(4, 4).double()) != "_LinearBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert node() != "_LinearBackward"
    monkeypatch.setattr(products, "WORTH", 3 * 4 * 4 + 1)
    assert node() != "_LinearBackward"
    monkeypatch.setattr(products, "_faster_here", lambda: False)
    monkeypatch.setattr(products, "WORTH", 0)
    assert node() != "_LinearBackward"
