"""The fine-tuning recipe: every number that shapes a training run, in one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nopad.training.data import DataError

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults are the known recipe for ModernBERT on IMDb (about 95-96 % accuracy for base)."""

    learning_rate: float = 8e-5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 8e-6
    schedule: str = "linear"
    warmup_ratio: float = 0.0
    epochs: float = 2.0
    batch_size: int = 32
    eval_batch_size: int = 32
    max_length: int = 512  # tokens
    label_smoothing: float = 0.0
    gradient_accumulation: int = 1
    seed: int = 42
    bf16: bool | None = None  # None: where the hardware has it

    def __post_init__(self) -> None:
        """Refuse what cannot train, in the words of the command line."""
        for name in ("learning_rate", "epochs", "batch_size", "eval_batch_size", "gradient_accumulation"):
            if not getattr(self, name) > 0:  # a NaN too
                raise DataError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        for name, low, high in (("warmup_ratio", 0, 1), ("label_smoothing", 0, 1), ("weight_decay", 0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise DataError(f"--{name.replace('_', '-')} must be from {low} to {high}, got {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"--{name.replace('_', '-')} must be from 0 up to below 1, got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise DataError(f"--schedule {self.schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
        if self.max_length < 3:
            raise DataError(
                f"--max-length must be at least 3 (a text and its two special tokens), got {self.max_length}"
            )
