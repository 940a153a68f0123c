"""Logits -> typed answers, with the meaning that `nopad.model.head` defines. Pure functions on numpy arrays."""

from __future__ import annotations

import numpy as np

from nopad.model.head import Head
from nopad.runtime.entities import entities, read_tags
from nopad.runtime.errors import BundleError, TextError
from nopad.runtime.tokenizer import TextEncoder, Tokens
from nopad.runtime.types import AnsweredBy, Embedding, FloatArray, MaskFill, Prediction, Sparse, Tagging


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
        tokens=tokens.tokens,
        tokens_used=tokens.used,
        engine=by.engine,
        precision=by.precision,
    )


def tagging(logits: FloatArray, tokens: Tokens, head: Head, by: AnsweredBy, keep_logits: bool) -> Tagging:
    """Answer of a token-classification model; `logits` float32 [tokens_used, num_labels]."""
    _check_width(logits, head)
    if not isinstance(tokens.text, str):
        raise TextError("a tagger reads single texts, and this is a pair; give its two texts separately")
    scores, best = head.probabilities(logits), head.best(logits)
    kept = [i for i, special in enumerate(tokens.special) if not special]
    labels = [head.labels[best[i]] for i in kept]
    values = [float(scores[i, best[i]]) for i in kept]
    tags = read_tags(head.labels)
    return Tagging(
        tokens_text=tuple(tokens.pieces[i] for i in kept),
        labels=tuple(labels),
        scores=tuple(values),
        entities=entities([tags[best[i]] for i in kept], values, [tokens.offsets[i] for i in kept], tokens.text),
        logits=logits if keep_logits else None,
        tokens=tokens.tokens,
        tokens_used=tokens.used,
        engine=by.engine,
        precision=by.precision,
    )


def mask_fill(
    logits: FloatArray, tokens: Tokens, head: Head, encoder: TextEncoder, mask_id: int, by: AnsweredBy, top_k: int
) -> MaskFill:
    """Answer of a fill-mask model; `logits` float32 [tokens_used, vocab_size]."""
    masks = []
    for position in (i for i, token in enumerate(tokens.input_ids) if token == mask_id):
        scores = head.probabilities(logits[position])
        order = np.argsort(-scores, kind="stable")[:top_k]
        masks.append(tuple((encoder.decode_token(int(i)), float(scores[i])) for i in order))
    return MaskFill(
        masks=tuple(masks), tokens=tokens.tokens, tokens_used=tokens.used, engine=by.engine, precision=by.precision
    )


def embedding(logits: FloatArray, tokens: Tokens, by: AnsweredBy) -> Embedding:
    """Answer of an embedding model."""
    return Embedding(
        vector=logits, tokens=tokens.tokens, tokens_used=tokens.used, engine=by.engine, precision=by.precision
    )


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
        tokens=tokens.tokens,
        tokens_used=tokens.used,
        engine=by.engine,
        precision=by.precision,
    )
