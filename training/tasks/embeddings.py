"""Embeddings: texts that belong together come near each other, by pairs, with negatives or not, or by scored pairs.

All texts of a batch ride one packed stream: the first text of every row, then the second, then those that have more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import blake2b
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from transformers.trainer_pt_utils import nested_concat

from nopad.model.head import Task as HeadTask
from nopad.runtime.errors import UsageError
from nopad.training.processes import gather, several_processes
from nopad.training.tasks.base import TARGETS, TEACHER, Array, FloatArray, Task, pack_stream
from nopad.training.tasks.ranking import CUTOFF, ranking

SCALE = 20.0  # of cosines: the inverse of the temperature, sentence-transformers' default
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")  # names of prompts, as encode_query and encode_document
NONE = -100  # where a row has fewer texts than others: what `Trainer` fills up with
_QUERIES = 1024  # compared with the corpus at once


@dataclass(frozen=True, kw_only=True)
class Embeddings(Task):
    """What pairs and scored pairs share. Columns of the data: `texts`, of each row a list of two or more."""

    head: ClassVar[HeadTask] = "embeddings"

    pooling: str | None = None
    teacher_vectors: bool = False  # a teacher's vectors themselves are learned, not their neighbours
    matryoshka: tuple[int, ...] = ()  # sizes to which embeddings may be cut: the loss is the sum over them
    prompts: Mapping[str, str] | None = None
    default_prompt_name: str | None = None

    def with_prompts(self, prompts: Mapping[str, str], default: str | None) -> Task:
        """See `Task.with_prompts`; prompts of the user's take the place of the folder's."""
        chosen = dict(prompts if self.prompts is None else self.prompts)
        return replace(self, prompts=chosen, default_prompt_name=default if default in chosen else None)

    def prompt(self, place: int) -> str:
        """What is put before a row's text: the query's before the first, else the document's; or the default one."""
        prompts = self.prompts or {}
        names = [*(QUERY if place == 0 else DOCUMENT), self.default_prompt_name or ""]
        return next((prompts[name] for name in names if prompts.get(name)), "")

    def describe(self) -> str:
        """See `Task.describe`: the prompts."""
        first, others = self.prompt(0), self.prompt(1)
        return f"prompts: {first!r} before the first text of a row, {others!r} before the others" * bool(
            first or others
        )

    def encode(self, rows: Mapping[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """The tokens of a row's texts in a row, and of each text: how many they are, also of its prompt; its identity.

        Texts that the model reads alike, but for the prompt, have the same identity.
        """

        def tokens(texts: list[str]) -> list[list[int]]:
            found: list[list[int]] = tokenizer(
                texts, truncation=True, max_length=max_length, return_attention_mask=False
            )["input_ids"]
            return found

        texts = [(place, text) for row in rows["texts"] for place, text in enumerate(row)]
        plain = tokens([text for _, text in texts])
        prompts = [self.prompt(place) for place in (0, 1)]
        before = [_prompt_length(prompt, tokenizer) for prompt in prompts]
        read = tokens([prompts[place > 0] + text for place, text in texts]) if any(prompts) else plain
        ends = np.cumsum([len(row) for row in rows["texts"]])
        parts = [slice(end - len(row), end) for row, end in zip(rows["texts"], ends.tolist(), strict=True)]
        return {
            "input_ids": [[token for ids in read[part] for token in ids] for part in parts],
            "lengths": [[len(ids) for ids in read[part]] for part in parts],
            "prompt_lengths": [[before[place > 0] for place, _ in texts[part]] for part in parts],
            "identities": [[_identity(ids) for ids in plain[part]] for part in parts],
            **{name: rows[name] for name in rows if name == "target"},
        }

    def of_all_processes(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Task.of_all_processes`: the first texts of all of them, then the second, and so on."""
        if not several_processes():
            return logits, batch
        targets = gather(batch[TARGETS])

        def together(rows: Tensor) -> Tensor:
            each = [part.split(self._columns(own)) for part, own in zip(gather(rows), targets, strict=True)]
            return torch.cat([part for column in zip_longest(*each, fillvalue=rows[:0]) for part in column])

        whole = {TARGETS: reduce(nested_concat, targets)}
        if TEACHER in batch:
            whole[TEACHER] = together(batch[TEACHER])
        return together(logits), whole

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of each text's neighbours among the batch's other texts, softened.

        As of classes (Hinton, arXiv:1503.02531), where the other texts are the classes and scaled cosines the logits:
        so the teacher's embeddings may have another size. Cuts of --matryoshka follow the whole embedding's neighbours.
        With `teacher_vectors`, the squared distance from the teacher's vector, as a share of that one's squared length
        (of vectors of length 1: two minus two cosines); the whole embedding's, of which cuts are a part.
        """
        teacher = batch[TEACHER]
        if self.teacher_vectors:
            lengths = teacher.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
            return ((logits.float() - teacher).square().sum(-1) / lengths).mean()
        theirs = _neighbours(teacher, temperature)
        losses = [
            F.kl_div(_neighbours(logits[:, :size], temperature), theirs, reduction="batchmean", log_target=True)
            for size in self._sizes(logits.shape[1])
        ]
        return torch.stack(losses).sum() * temperature**2

    def _columns(self, targets: Tensor) -> list[int]:
        """How many rows have a first text, a second, and so on: so their embeddings lie in the logits."""
        return [len(targets)] * 2

    def _sizes(self, size: int) -> list[int]:
        if any(cut >= size for cut in self.matryoshka):
            cuts = ",".join(map(str, self.matryoshka))
            raise UsageError(f"--matryoshka {cuts}: this model's embeddings have {size} elements, name fewer")
        return [size, *self.matryoshka]


@dataclass(frozen=True, kw_only=True)
class Pairs(Embeddings):
    """Rows of anchor, positive, and any number of negatives.

    Targets: which text each is, int64 [rows, texts of the longest row], `NONE` past the end of the others.
    """

    metric_names: ClassVar[Sequence[str]] = (f"ndcg@{CUTOFF}", f"mrr@{CUTOFF}", "accuracy@1")
    best_metric: ClassVar[str] = f"ndcg@{CUTOFF}"

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        columns = zip_longest(*(row["identities"] for row in rows), fillvalue=NONE)
        return {TARGETS: torch.tensor(list(columns)).T, **_pack_columns(rows, multiple=multiple)}

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """In-batch negatives: every other row's texts; label smoothing has no effect.

        sentence-transformers' `MultipleNegativesRankingLoss` in its `MatryoshkaLoss`, but texts that are known not to
        be negatives do not count: the anchor itself, its positive in other rows, and all positives of an equal anchor.
        """
        barred = _not_negatives(batch[TARGETS])
        return torch.stack([_in_batch(logits[:, :size], barred) for size in self._sizes(logits.shape[1])]).sum()

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """As all embeddings do; or a reranker's scores of anchor and text, `TEACHER` [texts, 1].

        Then the mean squared difference of two margins between the positive and each negative: that of the teacher's
        logits and that of scaled cosines (MarginMSE, S. Hofstätter et al., arXiv:2010.02666); 0 without negatives.
        """
        if batch[TEACHER].shape[1] > 1:
            return super().imitate(logits, batch, temperature=temperature)
        there = batch[TARGETS][:, 2:] != NONE
        theirs = self.judge(batch[TEACHER], batch)[0]
        vectors = self.judge(logits.float(), batch)[0].unflatten(1, (theirs.shape[1], -1))
        total = logits.new_zeros(())
        for size in self._sizes(logits.shape[1]):
            unit = F.normalize(vectors[:, :, :size], dim=-1)
            own = SCALE * (unit[:, 1:] * unit[:, :1]).sum(-1)
            apart = (own[:, :1] - own[:, 1:]) - (theirs[:, 1:2] - theirs[:, 2:])
            total = total + apart[there].square().sum() / max(int(there.sum()), 1)
        return total

    def judge(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The embeddings of a row's texts side by side, float32 [rows, texts * size], and the targets."""
        targets = batch[TARGETS]
        vectors = logits.new_zeros(*targets.T.shape, logits.shape[1])
        vectors[targets.T != NONE] = logits
        return vectors.transpose(0, 1).flatten(1), targets

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Each anchor as a query, all other texts of the evaluation rows as the corpus."""
        rows, width = targets.shape
        vectors = predictions.reshape(rows * width, -1)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        vectors = vectors.reshape(rows, width, -1)
        queries, first = np.unique(targets[:, 0], return_index=True)
        there = targets[:, 1:] != NONE
        documents, place = np.unique(targets[:, 1:][there], return_index=True)
        corpus = vectors[:, 1:][there][place]
        relevant = np.zeros((len(queries), len(documents)), dtype=bool)
        relevant[np.searchsorted(queries, targets[:, 0]), np.searchsorted(documents, targets[:, 1])] = True
        hits = [
            _best_hits(queries[part], vectors[first[part], 0], documents, corpus, relevant[part])
            for part in (slice(start, start + _QUERIES) for start in range(0, len(queries), _QUERIES))
        ]
        found = np.concatenate(hits)
        return {"accuracy@1": float(found[:, 0].mean()), **ranking(found, relevant.sum(1))}

    def _columns(self, targets: Tensor) -> list[int]:
        counts: list[int] = (targets != NONE).sum(0).tolist()
        return counts


@dataclass(frozen=True, kw_only=True)
class ScoredPairs(Embeddings):
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

    def judge(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The embeddings of a row's texts side by side, float32 [rows, 2 * size], and the targets."""
        return torch.cat(logits.chunk(2), dim=1), batch[TARGETS]

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Spearman's rank correlation of cosines and scores."""
        first, second = np.split(predictions, 2, axis=1)
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return {"spearman": float(spearmanr((first * second).sum(1) / np.maximum(norms, 1e-12), targets).statistic)}


def _pack_columns(rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
    columns = zip_longest(*map(_texts, rows))
    return pack_stream([text for column in columns for text in column if text is not None], multiple=multiple)


def _texts(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each of an encoded row's texts, in order."""
    parts = np.split(np.asarray(row["input_ids"]), np.cumsum(row["lengths"])[:-1])
    return [
        {"input_ids": ids, "prompt_length": before} for ids, before in zip(parts, row["prompt_lengths"], strict=True)
    ]


def _prompt_length(prompt: str, tokenizer: Any) -> int:
    """Its tokens, without a special one at its end: as `Encoder.prompt_length` of nopad.runtime counts them."""
    ids = tokenizer(prompt)["input_ids"] if prompt else []
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _identity(ids: Sequence[int]) -> int:
    """A number for a text as the model reads it: equal texts have equal numbers."""
    digest = blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _not_negatives(texts: Tensor) -> Tensor:
    """Which candidates do not count for an anchor: bool [rows, positives and negatives], its own positive excepted."""
    anchors, positives = texts[:, :1], texts[:, 1:2]
    candidates = texts[:, 1:].T.reshape(1, -1)
    candidates = candidates[:, candidates[0] != NONE]
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


def _neighbours(embeddings: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of all other texts by their cosines, float32 [texts, texts - 1]."""
    unit = F.normalize(embeddings.float(), dim=-1)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (SCALE / temperature * unit @ unit.T)[others].view(len(unit), -1).log_softmax(-1)


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
