"""Embeddings: texts that belong together come near each other, by pairs, triplets or scored pairs.

All texts of a batch ride one packed stream: the first text of every row, then the second, then the third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from nopad.model.head import Task as HeadTask
from nopad.runtime.errors import UsageError
from nopad.training.tasks.base import TARGETS, Array, FloatArray, Task, pack_stream
from nopad.training.tasks.ranking import CUTOFF, ranking

SCALE = 20.0  # of cosines: the inverse of the temperature, sentence-transformers' default
_IDS = "input_ids"  # of encoded rows, after the number of the text
_QUERIES = 1024  # compared with the corpus at once


@dataclass(frozen=True, kw_only=True)
class _Embeddings(Task):
    """What pairs and scored pairs share. Columns of the data: `texts`, of each row a list of as many."""

    head: ClassVar[HeadTask] = "embeddings"

    pooling: str | None = None
    matryoshka: tuple[int, ...] = ()  # sizes to which embeddings may be cut: the loss is the sum over them

    def encode(self, rows: Mapping[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """See `Task.encode`."""
        flat = [text for texts in rows["texts"] for text in texts]
        ids = tokenizer(flat, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
        width = len(rows["texts"][0])
        columns = {f"{column}_{_IDS}": ids[column::width] for column in range(width)}
        return {**columns, **{name: rows[name] for name in rows if name == "target"}}

    def judge(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The embeddings of a row's texts side by side, float32 [rows, texts * size], and the targets."""
        return torch.cat(logits.chunk(len(logits) // len(batch[TARGETS])), dim=1), batch[TARGETS]

    def _sizes(self, size: int) -> list[int]:
        if any(cut >= size for cut in self.matryoshka):
            cuts = ",".join(map(str, self.matryoshka))
            raise UsageError(f"--matryoshka {cuts}: this model's embeddings have {size} elements, name fewer")
        return [size, *self.matryoshka]


@dataclass(frozen=True, kw_only=True)
class Pairs(_Embeddings):
    """Rows of anchor, positive, and perhaps a negative. Targets: which text each is, int64 [rows, texts]."""

    metric_names: ClassVar[Sequence[str]] = ("accuracy@1", f"mrr@{CUTOFF}", f"ndcg@{CUTOFF}")
    best_metric: ClassVar[str] = f"ndcg@{CUTOFF}"

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        targets = torch.tensor([[_identity(ids) for ids in _texts(row)] for row in rows])
        return {TARGETS: targets, **_pack_columns(rows, multiple=multiple)}

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """In-batch negatives: every other row's texts; label smoothing has no effect.

        sentence-transformers' `MultipleNegativesRankingLoss` in its `MatryoshkaLoss`, but texts that are known not to
        be negatives do not count: the anchor itself, its positive in other rows, and all positives of an equal anchor.
        """
        barred = _not_negatives(batch[TARGETS])
        return torch.stack([_in_batch(logits[:, :size], barred) for size in self._sizes(logits.shape[1])]).sum()

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Each anchor as a query, all other texts of the evaluation rows as the corpus."""
        rows, width = targets.shape
        vectors = predictions.reshape(rows * width, -1)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        vectors = vectors.reshape(rows, width, -1)
        queries, first = np.unique(targets[:, 0], return_index=True)
        documents, place = np.unique(targets[:, 1:], return_index=True)
        corpus = vectors[:, 1:].reshape(rows * (width - 1), -1)[place]
        relevant = np.zeros((len(queries), len(documents)), dtype=bool)
        relevant[np.searchsorted(queries, targets[:, 0]), np.searchsorted(documents, targets[:, 1])] = True
        hits = [
            _best_hits(queries[part], vectors[first[part], 0], documents, corpus, relevant[part])
            for part in (slice(start, start + _QUERIES) for start in range(0, len(queries), _QUERIES))
        ]
        found = np.concatenate(hits)
        return {"accuracy@1": float(found[:, 0].mean()), **ranking(found, relevant.sum(1))}


@dataclass(frozen=True, kw_only=True)
class ScoredPairs(_Embeddings):
    """Rows of two texts and how similar they are. Targets: the scores, float32 [rows]; only their order counts."""

    metric_names: ClassVar[Sequence[str]] = ("spearman",)
    best_metric: ClassVar[str] = "spearman"

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        targets = torch.tensor([row["target"] for row in rows], dtype=torch.float32)
        return {TARGETS: targets, **_pack_columns(rows, multiple=multiple)}

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """CoSENT, as sentence-transformers' `CoSENTLoss` in its `MatryoshkaLoss`; label smoothing has no effect."""
        sizes = self._sizes(logits.shape[1])
        return torch.stack([_cosent(logits[:, :size], batch[TARGETS]) for size in sizes]).sum()

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Spearman's rank correlation of cosines and scores."""
        first, second = np.split(predictions, 2, axis=1)
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return {"spearman": float(spearmanr((first * second).sum(1) / np.maximum(norms, 1e-12), targets).statistic)}


def _pack_columns(rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
    texts = [ids for column in zip(*map(_texts, rows), strict=True) for ids in column]
    return pack_stream([{"input_ids": ids} for ids in texts], multiple=multiple)


def _texts(row: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of each of a row's texts, in order."""
    return [row[name] for name in sorted(row) if name.endswith(_IDS)]


def _identity(ids: Sequence[int]) -> int:
    """A number for a text as the model reads it: equal texts have equal numbers."""
    digest = blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _not_negatives(texts: Tensor) -> Tensor:
    """Which candidates do not count for an anchor: bool [rows, rows * (texts - 1)], its own positive excepted."""
    anchors, positives = texts[:, :1], texts[:, 1:2]
    candidates = texts[:, 1:].T.reshape(1, -1)
    barred = (candidates == anchors) | (candidates == positives)
    rows = len(texts)
    barred[:, :rows] |= anchors == anchors.T
    barred[:, :rows].fill_diagonal_(False)
    return barred


def _in_batch(embeddings: Tensor, barred: Tensor) -> Tensor:
    """A. van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, by cosines."""
    rows = len(barred)
    unit = F.normalize(embeddings, dim=-1)
    scores = (SCALE * unit[:rows] @ unit[rows:].T).masked_fill(barred, -torch.inf)
    return F.cross_entropy(scores, torch.arange(rows, device=scores.device))


def _cosent(embeddings: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum of exp(cosine of i - cosine of j) over all i, j where i's score is lower): J. Su, "CoSENT", 2022."""
    first, second = embeddings.chunk(2)
    cosines = SCALE * F.cosine_similarity(first, second)
    differences = cosines[:, None] - cosines[None, :]
    differences = differences.masked_fill(scores[:, None] >= scores[None, :], -torch.inf)
    return torch.logsumexp(torch.cat([differences.new_zeros(1), differences.flatten()]), dim=0)


def _best_hits(
    queries: Array, vectors: FloatArray, documents: Array, corpus: FloatArray, relevant: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Whether each of a query's nearest texts is relevant, the nearest first: bool [queries, CUTOFF]."""
    cosines = vectors @ corpus.T
    cosines[(queries[:, None] == documents[None, :]) & ~relevant] = -np.inf  # the query itself is no answer
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :CUTOFF]
    hits = np.zeros((len(queries), CUTOFF), dtype=bool)
    hits[:, : nearest.shape[1]] = np.take_along_axis(relevant, nearest, axis=1)
    return hits
