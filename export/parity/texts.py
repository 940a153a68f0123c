"""Further checks of a sentence-transformers folder: whole texts, answered as that library's users get them.

The texts show whether a folder's settings are followed: upper case, more tokens than the limit, and texts so short that
a prompt makes a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nopad.export.parity.bounds import Bounds, Row, cosine, scaled
from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.export.parity.trial import Trial
from nopad.export.reference.sentence_transformers import CrossEncoder, Embedder
from nopad.runtime.errors import NopadError
from nopad.runtime.types import FloatArray

# Where the limit is larger, a text over it would take the reference minutes; the limit itself is always compared.
_LONGEST = 1024
_FREE_PROMPT = "In other words: "


def whole_texts(trial: Trial) -> Iterator[Row]:
    """Rows for a folder of sentence-transformers; none for others."""
    if trial.reference.embedder is not None:
        yield from _embeddings(trial, trial.reference.embedder)
    if trial.reference.cross_encoder is not None:
        yield from _scores(trial, trial.reference.cross_encoder)


def _long(limit: int) -> str:
    """More than `limit` tokens: every word is at least one token."""
    words = " ".join(SAMPLES).split()
    return " ".join(words[i % len(words)] for i in range(limit + 8))


def _embeddings(trial: Trial, embedder: Embedder) -> Iterator[Row]:
    model, manifest = trial.model, trial.model.manifest
    for check, ours, theirs in (
        ("max length", manifest.max_length, embedder.max_length),
        ("prompts", dict(manifest.prompts), dict(embedder.prompts)),
        ("default prompt", manifest.default_prompt_name, embedder.default_prompt_name),
        ("similarity", manifest.similarity_fn_name, embedder.similarity_fn_name),
    ):
        note = "" if ours == theirs else f"bundle {ours!r}, sentence-transformers {theirs!r}"
        yield Row.at_most(check, "manifest", float(ours != theirs), 0.0, note)
    if model.task == "token-embeddings":  # whose vectors the library pools, so that transformers judges them
        return
    short = ["ok", "NO", SAMPLES[0], SAMPLES[0].upper()]
    cases: list[tuple[str, Sequence[str], dict[str, Any]]] = [("as it is", [*short, *SAMPLES], {})]
    if embedder.max_length <= _LONGEST:  # alone: the library would pad all others to its length
        cases.append(("a text over the limit", [_long(embedder.max_length)], {}))
    cases.append((f"prompt {_FREE_PROMPT!r}", short, {"prompt": _FREE_PROMPT}))
    cases += [(f"prompt_name {name!r}", short, {"prompt_name": name}) for name in embedder.prompts]
    for case, texts, prompt in cases:
        try:
            got = model.embed(texts, **prompt)
        except NopadError as error:
            yield Row.at_most("encode", case, float("inf"), 0.0, str(error))
            continue
        want = embedder.encode(texts, **prompt)
        yield _worst("encode", case, got, want, texts, trial.bounds)
        if trial.bounds.cosine is not None:
            yield Row.at_least("cosine", case, cosine(got, want), trial.bounds.cosine)


def _scores(trial: Trial, cross_encoder: CrossEncoder) -> Iterator[Row]:
    model, reference = trial.model, trial.reference
    pairs = [*PAIRS, ("OK", "ok"), ("ok", "NOT BAD"), *((PAIRS[0][0], sample) for sample in SAMPLES)]
    cases = [(f"{len(pairs)} pairs", pairs)]
    if model.manifest.max_length <= _LONGEST:
        long = _long(model.manifest.max_length)
        cases.append(("pairs over the limit", [(PAIRS[0][0], long), (long, PAIRS[0][1])]))
    for case, texts in cases:
        answers = model.predict(texts)
        got = np.array([[answer.scores[label] for label in model.labels] for answer in answers], dtype=np.float32)
        want = cross_encoder.predict(texts)
        yield _worst("predict", case, got, want, [f"{first} | {second}" for first, second in texts], trial.bounds)
    if model.task == "rerank":
        ranked = [answer.index for answer in model.rerank(PAIRS[0][0], SAMPLES)]
        logits = [float(row[0]) for row in reference.pair_logits(PAIRS[0][0], SAMPLES, model.manifest.max_length)]
        value = max(0.0, *(logits[b] - logits[a] for a, b in zip(ranked, ranked[1:], strict=False)))
        yield Row.at_most("rerank", "order", value, scaled(trial.bounds.logits, np.array(logits, np.float32)))


def _worst(check: str, case: str, got: FloatArray, want: FloatArray, texts: Sequence[str], bounds: Bounds) -> Row:
    """The row of the text whose answer differs most; its note names the text if the row fails."""
    bound, value = scaled(bounds.logits, want), float("inf")
    if got.shape != want.shape:
        note = f"shape {got.shape} instead of {want.shape}"
    elif not np.isfinite(got).all():
        note = "not finite"
    else:
        each = np.abs(got - want).max(axis=1)
        value = float(each.max())
        note = "" if value <= bound else f"most at {texts[int(each.argmax())][:40]!r}"
    return Row.at_most(check, case, value, bound, note)
