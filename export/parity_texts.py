"""What the gate asks of a sentence-transformers folder besides: whole texts, answered as that library's users get them.

Texts show what a folder may say: upper case, more tokens than any limit, a text so short that a prompt shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nopad.export.reference import Reference
from nopad.export.samples import PAIRS, SAMPLES
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


def _telling(limit: int) -> list[str]:
    texts = [*SAMPLES[:4], "ok", "NO", SAMPLES[0].upper(), *(sample for sample in SAMPLES[4:] if not sample.isascii())]
    if limit <= _LONGEST:  # every word is a token at least
        words = " ".join(SAMPLES).split()
        texts.append(" ".join(words[i % len(words)] for i in range(limit + 8)))
    return texts


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
    texts = _telling(embedder.max_length)
    asked: list[dict[str, str]] = [{}, {"prompt": _FREE_PROMPT}, *({"prompt_name": name} for name in embedder.prompts)]
    for named in asked:
        case = "without a word on prompts" if not named else " ".join(f"{key} {text!r}" for key, text in named.items())
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
    long = " ".join(SAMPLES)
    pairs = [*PAIRS, ("OK", "ok"), ("ok", "NOT BAD"), *((PAIRS[0][0], sample) for sample in SAMPLES)]
    pairs += [(PAIRS[0][0], long), (long, PAIRS[0][1])] if model.manifest.max_length <= _LONGEST else []
    answers = model.predict(pairs)
    got = np.array([[answer.scores[label] for label in model.labels] for answer in answers], dtype=np.float32)
    want = crosses.predict(pairs)
    value, note = _worst(got, want, [f"{one} | {other}" for one, other in pairs])
    yield Difference(
        check="predict", case=f"{len(pairs)} pairs", value=value, scale=float(np.abs(want).max()), note=note
    )
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
