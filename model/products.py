"""Matrix products on CPUs: faster fp32 ones where PyTorch's are slow, and who has bfloat16.

PyTorch multiplies fp32 matrices with MKL, which keeps its AVX-512 kernels for Intel's CPUs: on an AMD EPYC it reaches
less than half the rate of oneDNN, which PyTorch brings, too (docs/training-speed.md). `fast_products` sends
linear layers there, forward and backward; modules, parameters and state dicts stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Multiplications from which on a product pays for its kernel, which oneDNN makes for each new shape (about 0.5 ms).
WORTH = 1 << 25


@contextmanager
def fast_products() -> Iterator[None]:
    """Within it, large fp32 linear layers on the CPU are computed by oneDNN where that is the faster; gradients too.

    The backward pass of what was computed within is fast, too, and need not be within. Changes nothing on other CPUs,
    on other devices, in other dtypes, under autocast and while a graph is traced.
    """
    if not _faster_here():
        yield
        return
    with _LinearByOneDNN():
        yield


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512_BF16 or AMX)."""
    capabilities = _capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@functools.cache
def _capabilities() -> dict[str, Any]:
    find = getattr(torch.cpu, "get_capabilities", None)  # new in PyTorch 2.12
    return {} if find is None else dict(find())


def _faster_here() -> bool:
    capabilities = _capabilities()
    wide = bool(capabilities.get("avx512_f")) and "Intel" not in capabilities["cpu_name"]
    return wide and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _LinearByOneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _suits(args[0], args[1]):
            return _Linear.apply(*args, *(None,) * (3 - len(args)))
        return func(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor) -> bool:
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    large = plain and x.numel() * weight.shape[0] >= WORTH
    return large and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x @ weight.T + bias; `weight` may be a transposed view, of such an `x` a copy would be made."""
    out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    assert isinstance(out, Tensor)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[..., in], [out, in], [out] or None -> [..., out]."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)  # of frozen layers nothing asks for x
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if of_x else None,
            _outer(rows, x.flatten(0, -2)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _outer(rows: Tensor, inputs: Tensor) -> Tensor:
    """The product rows.T @ inputs. Its first factor is copied where it is transposed: the narrower of the two."""
    wide = rows.shape[1] > inputs.shape[1]
    return _product(inputs.t(), rows.t()).t() if wide else _product(rows.t(), inputs.t())
