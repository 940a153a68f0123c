"""Logits -> typed answers. Pure functions on numpy arrays; the rules are those of transformers' pipelines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nopad.runtime.entities import entities, read_tags
from nopad.runtime.errors import BundleError, TextError
from nopad.runtime.manifest import Manifest
from nopad.runtime.tokenizer import TextEncoder, Tokens
from nopad.runtime.types import Embedding, FloatArray, MaskFill, Prediction, Tagging


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis."""
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    out: FloatArray = exponent / exponent.sum(axis=-1, keepdims=True)
    return out


def sigmoid(logits: FloatArray) -> FloatArray:
    """Logistic function, without overflow."""
    out: FloatArray = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
    return out


def _softplus(logits: FloatArray) -> FloatArray:
    out: FloatArray = np.logaddexp(logits, np.float32(0.0))
    return out


# SCORE_ACTIVATIONS, as torch.nn computes them.
_ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "Identity": lambda logits: logits,
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "ReLU": lambda logits: np.maximum(logits, np.float32(0.0)),
    "LogSigmoid": lambda logits: -_softplus(-logits),
    "Softplus": _softplus,
    "Softmax": softmax,
}


def probabilities(logits: FloatArray, manifest: Manifest) -> FloatArray:
    """Scores of the labels: softmax, sigmoid (several labels, rerank), the raw values (regression), or what a
    cross-encoder's folder says.
    """
    if manifest.activation is not None:
        return _ACTIVATIONS[manifest.activation](logits)
    if manifest.task == "rerank" or manifest.problem_type == "multi_label_classification":
        return sigmoid(logits)
    if manifest.problem_type == "regression":
        return logits
    return softmax(logits)


def _check_width(logits: FloatArray, manifest: Manifest) -> None:
    if logits.shape[-1] != len(manifest.labels):
        have = f"the model has {logits.shape[-1]} labels, the manifest names {len(manifest.labels)}"
        raise BundleError(f"{have}; export the bundle again")


def prediction(
    logits: FloatArray, tokens: Tokens, manifest: Manifest, engine: str, top_k: int | None, keep_logits: bool
) -> Prediction:
    """Answer of a text-classification or rerank model; `logits` float32 [num_labels]."""
    _check_width(logits, manifest)
    scores = probabilities(logits, manifest)
    order = np.argsort(-scores, kind="stable")
    best = int(order[0])
    if manifest.problem_type == "multi_label_classification":
        labels = tuple(manifest.labels[i] for i in order if scores[i] >= 0.5)
    else:
        labels = (manifest.labels[best],)
    return Prediction(
        label=manifest.labels[best],
        score=float(scores[best]),
        labels=labels,
        scores={manifest.labels[i]: float(scores[i]) for i in order[:top_k]},
        logits=logits if keep_logits else None,
        tokens=tokens.tokens,
        tokens_used=tokens.used,
        engine=engine,
    )


def tagging(logits: FloatArray, tokens: Tokens, manifest: Manifest, engine: str, keep_logits: bool) -> Tagging:
    """Answer of a token-classification model; `logits` float32 [tokens_used, num_labels]."""
    _check_width(logits, manifest)
    if not isinstance(tokens.text, str):
        raise TextError("a tagger reads one text, this is a pair; give its parts one by one")
    scores = softmax(logits)
    best = scores.argmax(axis=-1)
    kept = [i for i, special in enumerate(tokens.special) if not special]
    labels = [manifest.labels[best[i]] for i in kept]
    values = [float(scores[i, best[i]]) for i in kept]
    tags = read_tags(manifest.labels)
    return Tagging(
        tokens_text=tuple(tokens.pieces[i] for i in kept),
        labels=tuple(labels),
        scores=tuple(values),
        entities=entities([tags[best[i]] for i in kept], values, [tokens.offsets[i] for i in kept], tokens.text),
        logits=logits if keep_logits else None,
        tokens=tokens.tokens,
        tokens_used=tokens.used,
        engine=engine,
    )


def mask_fill(
    logits: FloatArray, tokens: Tokens, encoder: TextEncoder, mask_id: int, engine: str, top_k: int
) -> MaskFill:
    """Answer of a fill-mask model; `logits` float32 [tokens_used, vocab_size]."""
    masks = []
    for position in (i for i, token in enumerate(tokens.input_ids) if token == mask_id):
        scores = softmax(logits[position])
        order = np.argsort(-scores, kind="stable")[:top_k]
        masks.append(tuple((encoder.decode_token(int(i)), float(scores[i])) for i in order))
    return MaskFill(masks=tuple(masks), tokens=tokens.tokens, tokens_used=tokens.used, engine=engine)


def embedding(logits: FloatArray, tokens: Tokens, engine: str) -> Embedding:
    """Answer of an embedding model."""
    return Embedding(vector=logits, tokens=tokens.tokens, tokens_used=tokens.used, engine=engine)
