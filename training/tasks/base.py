"""The protocol of training tasks, and what several of them share. Knows nothing of `Trainer` and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch import Tensor

from nopad.model.head import Task as HeadTask
from nopad.model.packing import pack

TARGETS = "labels"  # of a batch: transformers' name
ROW = "row"  # of encoded rows: their place in the data
DRAW = "draw"  # of encoded rows in a batch to train on: seed and epoch, from which their random numbers are drawn
# Of data and encoded rows: a teacher's answers to a row's texts, one after the other, float32 [texts * size]; of
# batches: float32 [texts, size], in the order of the logits.
TEACHER = "teacher"
CHOSEN = "chosen"  # of a batch whose tokens are learned: those of the stream that have a target
# Of data and encoded rows: the teacher's answers to a row's texts (of data whose words have labels: to its words), one
# after the other, float32 [answers * size]; of batches: float32 [answers, size], one for each row of the logits.
TEACHER = "teacher"
# Of a batch: the encoder's own.
STREAM = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids", "prompt_lengths")
SMALLER_IS_BETTER = frozenset({"loss", "mae", "mse", "perplexity"})  # of the metrics of all tasks
FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class Task(Protocol):
    """How rows become batches, what is minimised, and what an evaluation says.

    The methods that have a body are those of a text with one target; a task of another kind replaces them. What a user
    may choose (weights, temperatures) are fields of the task, which goes into the checkpoint's record as it is.
    """

    head: ClassVar[HeadTask]  # of the encoder
    metric_names: ClassVar[Sequence[str]]  # in the order in which they are shown
    best_metric: ClassVar[str]  # decides which epoch is kept, unless the user names another
    config_changes: ClassVar[Mapping[str, Any]] = {}  # keys of config.json that tell what the model is for
    pooling: str | None = None  # of the encoder, where the user has chosen
    prompts: Mapping[str, str] | None = None  # put before texts, by name; None: those of the model's folder
    default_prompt_name: str | None = None

    def with_tokenizer(self, tokenizer: Any) -> Task:
        """The task, with what it must know of the model's tokenizer. Raises `CheckpointError` if that cannot do."""
        return self

    def with_prompts(self, prompts: Mapping[str, str], default: str | None) -> Task:
        """The task, with the prompts of the model's folder and the name of its default one."""
        return self

    def describe(self) -> str:
        """What the user should know of the task once its model is known; mostly nothing."""
        return ""

    def encode(self, rows: Mapping[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """Columns of the data -> the columns that `collate` takes.

        Where a text is divided there are more rows, and `ROW` says which row of the data each of them was.
        """
        ids = tokenizer(
            rows["text"], rows.get("text_pair"), truncation=True, max_length=max_length, return_attention_mask=False
        )
        return {**ids, "target": rows["target"]}

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """Encoded rows -> one packed batch: its `TARGETS` first (their length is the batch's size), and the `STREAM`.

        `CHOSEN`, where they are there, are the tokens whose logits the loss needs.
        The stream's length is a multiple of `multiple`.
        """

    def of_all_processes(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What the loss of a training step is of: a task that compares rows with each other gathers all processes'."""
        return logits, batch

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """The loss that transformers' own classes use; a scalar, the mean over `items` of the batch."""

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """How far the logits of a batch are from its `TEACHER`: a scalar, the mean over the texts.

        Both [texts, labels]; of embeddings [texts, size], and the sizes may differ; of tokens [tokens, labels].
        """

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """Of how many items the loss is the mean: batches are weighted by it."""
        return len(batch[TARGETS])

    def judge(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What `metrics` needs of an evaluation batch: predictions and targets, a row for each row of the batch.

        Rows of several batches are put together; where their second dimension differs, it is filled up with -100.
        """
        return logits, batch[TARGETS]

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """The metrics of all evaluation rows at once, from what `judge` kept; those that are undefined are left out."""


def pack_rows(rows: Sequence[Mapping[str, Any]], dtype: torch.dtype, *, multiple: int) -> dict[str, Tensor]:
    """Rows of `input_ids` (and `token_type_ids`), each with a `target` -> a packed batch."""
    # Trainer takes the batch size from the first tensor.
    targets = torch.tensor([row["target"] for row in rows], dtype=dtype)
    return {TARGETS: targets, **pack_stream(rows, multiple=multiple)}


def pack_stream(rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
    """Rows of `input_ids` (and `token_type_ids`, `prompt_length`) -> the `STREAM` of a batch."""
    types = [row["token_type_ids"] for row in rows] if "token_type_ids" in rows[0] else None
    prompts = [row.get("prompt_length", 0) for row in rows]
    batch = pack([row["input_ids"] for row in rows], types, multiple=multiple, prompt_lengths=prompts)
    return {name: torch.from_numpy(getattr(batch, name)) for name in STREAM}


def decision_metrics(targets: Array, decisions: Array) -> dict[str, float]:
    """Accuracy and F1 of class indices [rows], or of zeros and ones [rows, labels]: for accuracy, whole rows count.

    `f1` weighs each class by its rows, for `macro_f1` all classes are equal.
    """
    # A single column of zeros and ones would be taken for two classes; it is one label, as each of several is.
    labels = [1] if targets.shape[1:] == (1,) else None
    weighted, macro = (
        f1_score(targets, decisions, labels=labels, average=average, zero_division=0)
        for average in ("weighted", "macro")
    )
    return {
        "accuracy": float(accuracy_score(targets, decisions)),
        "f1": float(weighted),
        "macro_f1": float(macro),
    }


def area_under_curve(targets: Array, scores: FloatArray) -> dict[str, float]:
    """`auc`, the area under the ROC curve, of one label [rows]; of several [rows, labels] the mean of theirs.

    Labels that no row has, or all rows have, have no curve; empty if none has.
    """
    truths, columns = targets.reshape(len(targets), -1).astype(bool), scores.reshape(len(scores), -1)
    areas = [
        roc_auc_score(truths[:, label], columns[:, label])
        for label in range(truths.shape[1])
        if truths[:, label].any() and not truths[:, label].all()
    ]
    return {"auc": float(np.mean(areas))} if areas else {}
