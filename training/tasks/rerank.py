"""Reranking: how well a passage answers a query, read together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.head import Task as HeadTask
from nopad.training.tasks.base import TARGETS, TEACHER, Array, FloatArray, Task, pack_rows
from nopad.training.tasks.ranking import CUTOFF, ranking

_QUERY = "query_ids"  # of a batch: which query each row has


@dataclass(frozen=True, kw_only=True)
class Rerank(Task):
    """Rows of query, passage and label from 0 to 1; targets float32 [rows], logits [rows, 1].

    Columns of the data: `query`, `passage`, `target`, and `query_id`, equal for equal queries.
    """

    head: ClassVar[HeadTask] = "rerank"
    metric_names: ClassVar[Sequence[str]] = (f"ndcg@{CUTOFF}", f"mrr@{CUTOFF}")
    best_metric: ClassVar[str] = f"ndcg@{CUTOFF}"
    # The marks of a cross-encoder; the version is the first that wrote them.
    config_changes: ClassVar[Mapping[str, Any]] = {
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.0.0"}
    }

    def encode(self, rows: Mapping[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """Query and passage as one sequence, the longer one cut first."""
        ids = tokenizer(
            rows["query"], rows["passage"], truncation=True, max_length=max_length, return_attention_mask=False
        )
        return {**ids, "target": rows["target"], "query_id": rows["query_id"]}

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        batch = pack_rows(rows, torch.float32, multiple=multiple)
        return {**batch, _QUERY: torch.tensor([row["query_id"] for row in rows])}

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """Binary cross-entropy; label smoothing has no effect."""
        return F.binary_cross_entropy_with_logits(logits.squeeze(-1), batch[TARGETS])

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """Mean squared error of the logits; the temperature has no effect."""
        return F.mse_loss(logits.float(), batch[TEACHER])

    def judge(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, and label and query of each row, float64 [rows, 2]."""
        return logits, torch.stack([batch[TARGETS].double(), batch[_QUERY].double()], dim=1)

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Of the queries that have several passages, one with a label of 0.5 or more: how high it is ranked.

        Of passages with one score, those that do not answer come first: a model that cannot tell them apart finds none.
        """
        scores, (labels, queries) = predictions.squeeze(-1), targets.T
        order = np.lexsort((labels >= 0.5, -scores, queries))
        found = (labels >= 0.5)[order]
        groups = np.split(found, np.flatnonzero(np.diff(queries[order])) + 1)
        answered = [group for group in groups if group.any() and len(group) > 1]
        hits = np.zeros((len(answered), CUTOFF), dtype=bool)
        for row, group in zip(hits, answered, strict=True):
            row[: min(CUTOFF, len(group))] = group[:CUTOFF]
        return ranking(hits, np.array([group.sum() for group in answered]))


@dataclass(frozen=True, kw_only=True)
class LabelledPairs(Rerank):
    """The same, where most queries have one passage: there is nothing to rank."""

    metric_names: ClassVar[Sequence[str]] = ("accuracy",)
    best_metric: ClassVar[str] = "accuracy"

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Accuracy, of scores and labels cut at 0.5."""
        return {"accuracy": float(np.mean((predictions.squeeze(-1) >= 0) == (targets[:, 0] >= 0.5)))}
