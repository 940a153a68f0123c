"""The fine-tuning recipe: every number that shapes a training run, and its default, in one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nopad.runtime.errors import UsageError

EVAL_FRACTION = 0.1  # of the rows, without other data to evaluate on
LORA_LEARNING_RATE = 8e-4  # ten times that of all weights: docs/training-options.md has the figures
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults are the known recipe for ModernBERT on IMDb (about 95-96 % accuracy for base).

    Raises `UsageError` for a value that cannot train.
    """

    learning_rate: float = 8e-5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 8e-6
    schedule: str = "linear"
    warmup_ratio: float = 0.0
    epochs: float = 2.0
    batch_size: int = 32  # texts
    batch_tokens: int | None = None  # takes the place of batch_size
    eval_batch_size: int = 32
    max_length: int = 512  # tokens
    label_smoothing: float = 0.0
    gradient_accumulation: int = 1
    eval_steps: int | None = None  # evaluated and saved so often; None: every epoch
    patience: int | None = None  # evaluations without a better one that end the run
    freeze_layers: int | None = None  # with the embeddings; None: all is trained
    layer_decay: float = 1.0  # a layer's learning rate, as a share of the rate of the one above
    lora: int | None = None  # rank of the updates that are learned instead of the layers
    lora_alpha: int | None = None  # their scale times the rank; None: twice the rank
    lora_dropout: float = 0.0  # of what enters them
    lora_modules: str | None = None  # ends of names of linear layers, with commas; None: all
    gradient_checkpointing: bool = False
    seed: int = 42
    best_metric: str | None = None  # which evaluation is kept; None: by the task's own
    bf16: bool | None = None  # None: where a GPU has it
    teacher: str | None = None  # a checkpoint or bundle whose logits are learned
    teacher_weight: float = 0.5  # of the teacher's loss; the labels' has the rest
    teacher_states: float = 0.0  # weight of the distance between hidden states, beside the loss of labels and teacher
    temperature: float = 2.0  # that softens the teacher's classes and the student's

    def __post_init__(self) -> None:
        """Refuse impossible values, in the words of the command line."""
        positive = ("learning_rate", "adam_epsilon", "epochs", "batch_size", "eval_batch_size", "gradient_accumulation")
        for name in (*positive, "temperature"):
            if not 0 < getattr(self, name) < math.inf:  # refuses NaN, too
                raise UsageError(f"--{name.replace('_', '-')} must be a positive number, got {getattr(self, name)}")
        for name in ("eval_steps", "patience", "lora", "lora_alpha"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UsageError(f"--batch-tokens must be a positive number, got {self.batch_tokens}")
        if self.lora is None and (self.lora_alpha is not None or self.lora_dropout or self.lora_modules is not None):
            raise UsageError("--lora-alpha, -dropout and -modules are settings of --lora RANK, which is missing")
        shares = ("lora_dropout", "warmup_ratio", "label_smoothing", "teacher_weight")
        others = ("weight_decay", "teacher_states")
        for name, high in (*((share, 1) for share in shares), *((other, math.inf) for other in others)):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if not (0 <= value <= high and math.isfinite(value)):
                raise UsageError(f"{option} must be finite and from 0 to {high}, got {value}")
        if self.teacher_states and self.teacher is None:
            raise UsageError("--teacher-states is the weight of a teacher's; name it with --teacher, or leave it out")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"--layer-decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.freeze_layers is not None and self.freeze_layers < 0:
            raise UsageError(f"--freeze-layers must be 0 or more, got {self.freeze_layers}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed must be from 0 to {2**32 - 1}, got {self.seed}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be from 0 up to below 1, got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"--schedule {self.schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
        if self.max_length < 3:
            raise UsageError(
                f"--max-length must be at least 3 (a text and its two special tokens), got {self.max_length}"
            )
