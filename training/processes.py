"""Several processes that train one model, as `torchrun` starts them. Knows nothing of training."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def first_process() -> bool:
    """Whether this process writes files and speaks to the user: the only one, or the first of all machines."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many were started to train one model."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def several_processes() -> bool:
    """Whether others train along, and can be asked."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def greatest(number: int, device: torch.device) -> int:
    """The greatest of the numbers that all processes give; `device` is what this one trains on."""
    if not several_processes():
        return number
    numbers = torch.tensor(number, device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def gather(tensor: Tensor) -> list[Tensor]:
    """The tensor of each process, in their order: of one type and number of dimensions, the sizes may differ.

    What their gradients are in all processes, summed, reaches the tensor that each of them was.
    """
    if not several_processes():
        return [tensor]
    shape = torch.tensor(tensor.shape, device=tensor.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    missing = (torch.stack(shapes).amax(0) - shape).tolist()
    # F.pad takes the last dimension first, before and after.
    filled = F.pad(tensor, [size for more in reversed(missing) for size in (0, more)])
    parts: tuple[Tensor, ...] = _AllGather.apply(filled)
    return [part[tuple(map(slice, own.tolist()))] for part, own in zip(parts, shapes, strict=True)]


class _AllGather(torch.autograd.Function):
    """`torch.distributed.all_gather` of tensors of one shape, with gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = torch.stack(gradients)
        dist.all_reduce(summed)
        return summed[dist.get_rank()]
