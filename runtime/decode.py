"""Logits -> typed answers, with the meaning that `nopad.model.head` defines. Pure functions on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.model.head import Head
from nopad.runtime.aggregation import aggregate
from nopad.runtime.entities import entities, read_tags
from nopad.runtime.errors import BundleError, TextError, UsageError
from nopad.runtime.tokenizer import TextEncoder, Tokens
from nopad.runtime.types import (
    STRATEGIES,
    AnsweredBy,
    Embedding,
    Entity,
    FloatArray,
    MaskFill,
    Prediction,
    Sparse,
    Strategy,
    Tagging,
    TokenEmbeddings,
)

Grouping = Callable[
    [Tokens, FloatArray, npt.NDArray[np.int64]], tuple[Entity, ...]
]  # tokens, their scores, their best labels


def _usage(tokens: Tokens, by: AnsweredBy) -> dict[str, Any]:
    return {
        "tokens": tokens.tokens,
        "tokens_used": tokens.used,
        "windows": len(tokens.windows) or 1,
        "engine": by.engine,
        "precision": by.precision,
    }


def _check_width(logits: FloatArray, head: Head) -> None:
    if logits.shape[-1] != len(head.labels):
        counts = f"the model has {logits.shape[-1]} labels, the manifest names {len(head.labels)}"
        raise BundleError(f"{counts}; export the bundle again")


def prediction(
    logits: FloatArray, tokens: Tokens, head: Head, by: AnsweredBy, top_k: int | None, keep_logits: bool
) -> Prediction:
    """Answer of a text-classification or rerank model; `logits` float32 [num_labels]."""
    _check_width(logits, head)
    scores = head.probabilities(logits)
    order = np.argsort(-logits, kind="stable")  # the scores' order, also where sigmoid rounds several to 1.0
    if head.multi_label:
        best, chosen = int(order[0]), head.decide(logits)
        labels = tuple(head.labels[i] for i in order if chosen[i])
    else:
        best = int(head.best(logits))
        labels = (head.labels[best],)
    return Prediction(
        label=head.labels[best],
        score=float(scores[best]),
        labels=labels,
        scores={head.labels[i]: float(scores[i]) for i in order[:top_k]},
        abstained=head.abstains(float(scores[best])),
        logits=logits if keep_logits else None,
        **_usage(tokens, by),
    )


def own_entities(head: Head, tokens: Tokens, scores: FloatArray, best: npt.NDArray[np.int64]) -> tuple[Entity, ...]:
    """Entities by the model's own tag scheme; `scores` float32 [tokens_used, labels], `best` label of each token."""
    tags, kept = read_tags(head.labels), [i for i, special in enumerate(tokens.special) if not special]
    values = [float(scores[i, best[i]]) for i in kept]
    return entities([tags[best[i]] for i in kept], values, [tokens.offsets[i] for i in kept], str(tokens.text))


def grouping(encoder: TextEncoder, head: Head, strategy: Strategy | None, ignore_labels: Iterable[str]) -> Grouping:
    """How tagged tokens become entities; those of `ignore_labels` are left out. Raises `UsageError`."""
    if isinstance(ignore_labels, str):
        raise UsageError("ignore_labels is a list of labels; put a single one in brackets")
    if strategy not in (None, *STRATEGIES):
        raise UsageError(f"a strategy for entities is one of {', '.join(STRATEGIES)}, not {strategy!r}")
    ignored = frozenset(ignore_labels)

    def group(tokens: Tokens, scores: FloatArray, best: npt.NDArray[np.int64]) -> tuple[Entity, ...]:
        found: Iterable[Entity]
        if strategy is None:
            found = own_entities(head, tokens, scores, best)
        else:
            found = aggregate(tokens, scores, head.labels, strategy, encoder.words, encoder.spelled)
        return tuple(entity for entity in found if entity.label not in ignored)

    return group


def tagging(
    logits: FloatArray, tokens: Tokens, head: Head, by: AnsweredBy, keep_logits: bool, group: Grouping | None = None
) -> Tagging:
    """Answer of a token-classification model; `logits` float32 [tokens_used, num_labels]. `group` None: by its tags."""
    _check_width(logits, head)
    if not isinstance(tokens.text, str):
        raise TextError("a tagger reads single texts, and this is a pair; give its two texts separately")
    scores, best = head.probabilities(logits), head.best(logits)
    kept = [i for i, special in enumerate(tokens.special) if not special]
    labels = [head.labels[best[i]] for i in kept]
    return Tagging(
        tokens_text=tuple(tokens.pieces[i] for i in kept),
        labels=tuple(labels),
        scores=tuple(float(scores[i, best[i]]) for i in kept),
        entities=group(tokens, scores, best) if group else own_entities(head, tokens, scores, best),
        logits=logits if keep_logits else None,
        **_usage(tokens, by),
    )


def target_ids(targets: Sequence[str], encoder: TextEncoder) -> list[int]:
    """Ids of the tokens that alone may fill a mask, each once: as the vocabulary spells them, else as a text does.

    Raises `UsageError` for none, and for one that is not a single token.
    """
    if isinstance(targets, str) or not targets:
        raise UsageError("targets is a list of at least one token")
    found = [encoder.single_token(target) for target in targets]
    for target, token_id in zip(targets, found, strict=True):
        if token_id is None:
            raise UsageError(f"the target {target!r} is not one token of this model's vocabulary; give another word")
    return list(dict.fromkeys(token_id for token_id in found if token_id is not None))


def mask_fill(
    logits: FloatArray,
    tokens: Tokens,
    head: Head,
    encoder: TextEncoder,
    mask_id: int,
    by: AnsweredBy,
    top_k: int,
    among: Sequence[int] | None,
) -> MaskFill:
    """Answer of a fill-mask model; `logits` float32 [tokens_used, vocab_size]; `among`: ids of the candidates."""
    masks, ids = [], []
    for position in (i for i, token in enumerate(tokens.input_ids) if token == mask_id):
        scores = head.probabilities(logits[position])
        if among is None:
            order = np.argsort(-scores, kind="stable")[:top_k]
        else:
            order = np.array(among)[np.argsort(-scores[among], kind="stable")[:top_k]]
        masks.append(tuple((encoder.decode_token(int(i)), float(scores[i])) for i in order))
        ids.append(tuple(int(i) for i in order))
    return MaskFill(masks=tuple(masks), token_ids=tuple(ids), **_usage(tokens, by))


def embedding(logits: FloatArray, tokens: Tokens, by: AnsweredBy) -> Embedding:
    """Answer of an embedding model."""
    return Embedding(vector=logits, **_usage(tokens, by))


def token_embeddings(logits: FloatArray, tokens: Tokens, by: AnsweredBy) -> TokenEmbeddings:
    """Answer of a model for token-embeddings; `logits` float32 [tokens_used, hidden_size]."""
    return TokenEmbeddings(tokens_text=tuple(tokens.pieces), vectors=logits, **_usage(tokens, by))


def splade(logits: FloatArray, tokens: Tokens, by: AnsweredBy) -> Sparse:
    """A fill-mask model's logits, float32 [tokens_used, vocab_size], as a sparse embedding.

    Of each entry of the vocabulary the greatest log(1 + max(0, logit)) of any token, special ones included: SPLADE v2
    with max pooling (Formal et al., arXiv 2109.10086), as text-embeddings-inference and sentence-transformers have it.
    """
    weights = np.log1p(np.maximum(logits.max(axis=0), np.float32(0)))
    indices = np.flatnonzero(weights)
    return Sparse(
        indices=indices,
        values=weights[indices],
        **_usage(tokens, by),
    )
