"""What the gate asks of a sentence-transformers folder besides: whole texts, answered as that library's users get them.

Texts show what a folder may say: upper case, more tokens than any limit, a text so short that a prompt shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.export.reference.transformers import Reference
from nopad.runtime.errors import NopadError
from nopad.runtime.predictor import Model
from nopad.runtime.types import FloatArray

# A text over a limit beyond this would take the reference minutes; the limit itself is compared in any case.
_LONGEST = 1024
_FREE_PROMPT = "In other words: "


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One comparison; `scale` is the largest value of the reference, 0.0 where nothing may differ."""

    check: str
    case: str
    value: float
    scale: float = 0.0
    note: str = ""


def compare_texts(model: Model, reference: Reference) -> Iterator[Difference]:
    """Nothing for folders that are not sentence-transformers'."""
    if reference.embedder is not None:
        yield from _embeddings(model, reference)
    if reference.cross_encoder is not None:
        yield from _scores(model, reference)


def _long(limit: int) -> str:
    """More than `limit` tokens: every word is one at least."""
    words = " ".join(SAMPLES).split()
    return " ".join(words[i % len(words)] for i in range(limit + 8))


def _embeddings(model: Model, reference: Reference) -> Iterator[Difference]:
    embedder, manifest = reference.embedder, model.manifest
    assert embedder is not None
    for check, ours, theirs in (
        ("max length", manifest.max_length, embedder.max_length),
        ("prompts", dict(manifest.prompts), dict(embedder.prompts)),
        ("default prompt", manifest.default_prompt_name, embedder.default_prompt_name),
        ("similarity", manifest.similarity_fn_name, embedder.similarity_fn_name),
    ):
        note = "" if ours == theirs else f"bundle {ours!r}, sentence-transformers {theirs!r}"
        yield Difference(check=check, case="manifest", value=float(ours != theirs), note=note)
    short = ["ok", "NO", SAMPLES[0], SAMPLES[0].upper()]
    asked: list[tuple[str, Sequence[str], dict[str, str]]] = [("as it is", [*short, *SAMPLES], {})]
    if embedder.max_length <= _LONGEST:  # alone: the library would fill up all others to its length
        asked.append(("a text over the limit", [_long(embedder.max_length)], {}))
    asked.append((f"prompt {_FREE_PROMPT!r}", short, {"prompt": _FREE_PROMPT}))
    asked += [(f"prompt_name {name!r}", short, {"prompt_name": name}) for name in embedder.prompts]
    for case, texts, named in asked:
        try:
            got = model.embed(texts, **named)
        except NopadError as error:
            yield Difference(check="encode", case=case, value=float("inf"), note=str(error))
            continue
        want = embedder.encode(texts, **named)
        value, note = _worst(got, want, texts)
        yield Difference(check="encode", case=case, value=value, scale=float(np.abs(want).max()), note=note)


def _scores(model: Model, reference: Reference) -> Iterator[Difference]:
    crosses = reference.cross_encoder
    assert crosses is not None
    pairs = [*PAIRS, ("OK", "ok"), ("ok", "NOT BAD"), *((PAIRS[0][0], sample) for sample in SAMPLES)]
    asked = [(f"{len(pairs)} pairs", pairs)]
    if model.manifest.max_length <= _LONGEST:
        long = _long(model.manifest.max_length)
        asked.append(("pairs over the limit", [(PAIRS[0][0], long), (long, PAIRS[0][1])]))
    for case, given in asked:
        answers = model.predict(given)
        got = np.array([[answer.scores[label] for label in model.labels] for answer in answers], dtype=np.float32)
        want = crosses.predict(given)
        value, note = _worst(got, want, [f"{one} | {other}" for one, other in given])
        yield Difference(check="predict", case=case, value=value, scale=float(np.abs(want).max()), note=note)
    if model.task == "rerank":
        ranked = [one.index for one in model.rerank(PAIRS[0][0], SAMPLES)]
        logits = [float(row[0]) for row in reference.pair_logits(PAIRS[0][0], SAMPLES, model.manifest.max_length)]
        value = max(0.0, *(logits[b] - logits[a] for a, b in zip(ranked, ranked[1:], strict=False)))
        yield Difference(check="rerank", case="order", value=value, scale=max(map(abs, logits)))


def _worst(got: FloatArray, want: FloatArray, texts: Sequence[str]) -> tuple[float, str]:
    if got.shape != want.shape:
        return float("inf"), f"shape {got.shape} instead of {want.shape}"
    if not np.isfinite(got).all():
        return float("inf"), "not finite"
    each = np.abs(got - want).max(axis=1)
    worst = int(each.argmax())
    return float(each[worst]), f"most at {texts[worst][:40]!r}"
