"""The gate at the model's full length, within `SECONDS` on the machine at hand.

A real text is compared with transformers; where that would take long, with the packed encoder in PyTorch (fp32, linear
in memory), after this has answered as transformers does at shorter lengths. Where even that would take too long
(ModernBERT-base, 8,192 tokens on 2 cores), the real text is the longest power of two that fits, and at full length the
engine is asked a repeated token (`nopad.export.known_texts`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nopad.export.bounds import BOUNDS, Row, difference, scaled
from nopad.export.known_texts import Ids, KnownTexts
from nopad.export.progress import Progress
from nopad.export.reference import Reference
from nopad.model.checkpoint import load_checkpoint
from nopad.model.errors import NopadError
from nopad.model.packing import pack
from nopad.runtime.costmodel import CostModel, cost_model
from nopad.runtime.errors import UsageError
from nopad.runtime.predictor import Model
from nopad.runtime.types import FloatArray

SECONDS = 30.0  # for the engine and the reference together
TRANSFORMERS_SECONDS = 5.0  # else the packed encoder is asked
TIMED = 257  # tokens: the speed of all three is measured with such a text
INPUTS = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids")
CHECK = "full length"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Somebody who answers a text, and what that costs."""

    name: str
    run: Callable[[Ids], FloatArray]
    seconds: Callable[[int], float]  # of a text of so many tokens


def full_length(
    model: Model, reference: Reference, texts: KnownTexts, most: int, *, thorough: bool, progress: Progress
) -> Iterator[Row]:
    """Rows of the texts at full length. `most` bounds their tokens, but `thorough` asks transformers, however long."""
    full, why = _longest(model, model.manifest.max_length if thorough else most)
    engine, judge = _speeds(model, reference, texts, full, thorough)
    real = full if thorough else _longest_within(full, SECONDS, engine, judge)
    if real < full and engine.seconds(full) < SECONDS:
        real = _longest_within(full, SECONDS - engine.seconds(full), engine, judge)
    if real:
        progress(f"parity: {real:,} tokens through {judge.name}")
        ids = texts.real(real)
        want = judge.run(ids)
        progress(f"parity: {real:,} tokens through the bundle")
        value, bound = difference(engine.run(ids), want), scaled(texts.bounds.logits, want)
        case = f"{real:,} tokens, against {judge.name}"
        yield Row(check=CHECK, case=case, value=value, bound=bound, passed=value <= bound, note=why)
    repeated = _longest_within(full, SECONDS, engine)
    if repeated > real:
        progress(f"parity: {repeated:,} tokens through the bundle")
        batch = [texts.repeated(repeated)]
        yield texts.compare(CHECK, f"{repeated:,} tokens, one of them repeated", batch, texts.run(batch))


def _longest(model: Model, most: int) -> tuple[int, str]:
    """The longest text that the engine is asked, and why it is not the model's."""
    multiple, limit = model.token_multiple, model.manifest.max_length
    taken = [
        min(one.longest[2], one.tokens[2] // multiple * multiple) for one in model.profiles if one.sequences[0] == 1
    ]
    bounds = {
        "no profile takes more": max(taken, default=limit),
        "for the memory of its logits; --thorough asks all": most,
        "for the memory of its attention scores": _scores_fit(model, limit),
    }
    why = min(bounds, key=lambda why: bounds[why])
    full = min(limit, bounds[why])
    return full, f"not {limit:,} tokens: {why}" if full < limit else ""


def _scores_fit(model: Model, limit: int) -> int:
    """Tokens of a text whose attention takes at most half the memory: all graphs but that for CPUs keep the scores."""
    if model.artifact.target not in ("cpu", "onnx"):
        return limit
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    cost = dataclasses.replace(_cost(model), element_bytes=4, keeps_scores=model.artifact.target == "onnx")
    return next((n for n in _candidates(limit) if cost.memory(n, 1, n) <= memory), 1)


def _candidates(full: int) -> list[int]:
    """`full`, and the powers of two below."""
    return [full, *(1 << power for power in range((full - 1).bit_length() - 1, -1, -1))]


def _longest_within(full: int, seconds: float, *asked: _Asked) -> int:
    return next((n for n in _candidates(full) if sum(one.seconds(n) for one in asked) <= seconds), 0)


def _cost(model: Model) -> CostModel:
    """What a text costs this architecture. A padded graph is taken for a model of BERT-base's size."""
    try:
        return cost_model(model.manifest.architecture)
    except UsageError:
        base = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 12, "num_heads": 12, "local_layers": []}
        return cost_model({"model_type": "bert", **base})


def _speeds(model: Model, reference: Reference, texts: KnownTexts, full: int, thorough: bool) -> tuple[_Asked, _Asked]:
    """The engine, and who judges it."""
    cost = _cost(model)
    # transformers computes local layers as global ones, under a mask.
    dense = dataclasses.replace(cost, local_layers=0, global_layers=cost.local_layers + cost.global_layers)
    ids = texts.real(min(TIMED, full))
    engine = _timed("the engine", lambda ids: texts.run([ids])[0], ids, cost)
    transformers = _timed("transformers", reference.logits, ids, dense)
    if thorough or transformers.seconds(full) <= TRANSFORMERS_SECONDS:
        return engine, transformers
    packed = _packed(model, reference)
    if packed is None:
        return engine, transformers
    for proof in (texts.real(min(65, full)), ids):
        (want,) = texts.right([proof])
        if want is None or difference(packed(proof), want) > scaled(BOUNDS["fp32"].logits, want):
            return engine, transformers
    return engine, _timed("the packed encoder", packed, ids, cost)


def _timed(name: str, run: Callable[[Ids], FloatArray], ids: Ids, cost: CostModel) -> _Asked:
    start = time.perf_counter()
    run(ids)
    rate = (time.perf_counter() - start) / cost.work(len(ids), 1, len(ids))
    return _Asked(name=name, run=run, seconds=lambda length: rate * cost.work(length, 1, length))


def _packed(model: Model, reference: Reference) -> Callable[[Ids], FloatArray] | None:
    """The packed encoder of the reference's checkpoint, if there is one."""
    manifest = model.manifest
    options: dict[str, Any] = {"task": model.task}
    if model.task == "embeddings":
        options |= {"pooling": manifest.pooling, "normalize": manifest.normalize}
    try:
        encoder = load_checkpoint(reference.folder, **options).encoder
    except NopadError:
        return None

    def run(ids: Ids) -> FloatArray:
        batch = pack([ids], multiple=encoder.encoder_config.block)
        with torch.inference_mode():
            logits = encoder(**{name: torch.from_numpy(getattr(batch, name)) for name in INPUTS}).numpy()
        out: FloatArray = logits[0] if len(logits) == 1 else logits[: len(ids)]
        return out

    return run
