"""The gate at the model's full length.

A real text is compared with transformers; where that would take long, with the packed encoder in PyTorch (fp32, linear
in memory), once it has answered shorter texts as transformers does. Where even that would take longer than all the
other checks together, the real text is shorter, and the text of full length is one token, repeated (`known_texts.py`).
The choice depends on the model's size alone, not on the machine: the verdict is the same everywhere.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from nopad.export.parity.bounds import BOUNDS, Row, difference, scaled
from nopad.export.parity.known_texts import Ids, KnownTexts
from nopad.export.parity.trial import Trial
from nopad.export.reference.transformers import Reference
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.errors import NopadError
from nopad.model.packing import pack
from nopad.runtime.errors import UsageError
from nopad.runtime.planning.cost_model import CostModel, cost_model
from nopad.runtime.predictor import Model
from nopad.runtime.types import FloatArray

# FLOPs of one text; 2 cores do 1.5e11 a second. ModernBERT-base at 8,192 tokens has 3.5e12: a real text would take both
# runs 48 s on an AMD EPYC, and the whole gate should take less than a minute.
TRANSFORMERS_FLOPS = 5e11
PACKED_FLOPS = 1e12
ENGINE_FLOPS = 1e13
PROOFS = (65, 257)  # tokens of texts that the packed encoder must answer as transformers does before it judges
INPUTS = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids")
CHECK = "full length"


def full_length(trial: Trial) -> Iterator[Row]:
    """Rows of the texts at full length. A thorough trial asks transformers, however long it takes."""
    model, reference, texts, thorough = trial.model, trial.reference, trial.known, trial.thorough
    full, why = _longest(model, model.manifest.max_length if thorough else texts.most_tokens)
    cost = _cost(model)
    # transformers computes local layers as global ones, under a mask.
    dense = dataclasses.replace(cost, local_layers=0, global_layers=cost.local_layers + cost.global_layers)
    name, real = "transformers", full
    judge: Callable[[Ids], FloatArray] = reference.logits
    if not thorough and _longest_within(full, TRANSFORMERS_FLOPS, dense) < full:
        affordable = cost.work(full, 1, full) <= PACKED_FLOPS
        packed = _packed(model, reference, texts) if affordable else None
        if packed is not None:
            name, judge = "the packed encoder", packed
        else:
            real = _longest_within(full, PACKED_FLOPS if affordable else TRANSFORMERS_FLOPS, dense)
    trial.progress(f"parity: {real:,} tokens through {name}")
    ids = texts.real(real)
    want = judge(ids)
    trial.progress(f"parity: {real:,} tokens through the bundle")
    (got,) = texts.run([ids])
    value, bound = difference(got, want), scaled(texts.bounds.logits, want)
    note = why if real == full else f"not {full:,} tokens, to save time; --thorough asks all"
    case = f"{real:,} tokens, against {name}"
    yield Row.at_most(CHECK, case, value, bound, note)
    repeated = _longest_within(full, ENGINE_FLOPS, cost)
    if repeated > real:
        trial.progress(f"parity: {repeated:,} tokens through the bundle")
        batch = [texts.repeated(repeated)]
        yield texts.compare(CHECK, f"{repeated:,} tokens, one of them repeated", batch, texts.run(batch))


def _longest(model: Model, most: int) -> tuple[int, str]:
    """Tokens of the longest text for this engine, and why that is below the model's max length."""
    multiple, limit = model.token_multiple, model.manifest.max_length
    profile_limits = [
        min(profile.longest[2], profile.tokens[2] // multiple * multiple)
        for profile in model.profiles
        if profile.sequences[0] == 1
    ]
    bounds = {
        "no profile takes more": max(profile_limits, default=limit),
        "for the memory of its logits; --thorough asks all": most,
        "for the memory of its attention scores": _scores_fit(model, limit),
    }
    why = min(bounds, key=lambda why: bounds[why])
    full = min(limit, bounds[why])
    return full, f"not {limit:,} tokens: {why}" if full < limit else ""


def _scores_fit(model: Model, limit: int) -> int:
    """Tokens of a text whose attention takes at most half the memory: the plain graph keeps all scores on a CPU."""
    if model.artifact.target != "onnx":
        return limit
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    cost = dataclasses.replace(_cost(model), element_bytes=4)
    return next((length for length in _candidates(limit) if cost.memory(length, 1, length) <= memory), 1)


def _candidates(full: int) -> list[int]:
    """`full`, and the powers of two below."""
    return [full, *(1 << power for power in range((full - 1).bit_length() - 1, -1, -1))]


def _longest_within(full: int, flops: float, cost: CostModel) -> int:
    return next((length for length in _candidates(full) if cost.work(length, 1, length) <= flops), 1)


def _cost(model: Model) -> CostModel:
    """The cost of this architecture. A padded graph counts as a model of BERT-base's size."""
    try:
        return cost_model(model.manifest.architecture)
    except UsageError:
        base = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 12, "num_heads": 12, "local_layers": []}
        return cost_model({"model_type": "bert", **base})


def _packed(model: Model, reference: Reference, texts: KnownTexts) -> Callable[[Ids], FloatArray] | None:
    """The packed encoder of the reference's checkpoint, if there is any and it answers as transformers does."""
    overrides = model.manifest.overrides if model.task == "embeddings" else {}
    options: dict[str, Any] = {"task": model.task} | {
        name: overrides[name] for name in ("pooling", "normalize") if name in overrides
    }
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

    proofs = [texts.real(length) for length in PROOFS]
    sound = all(
        want is not None and difference(run(ids), want) <= scaled(BOUNDS["fp32"].logits, want)
        for ids, want in zip(proofs, texts.right_answers(proofs), strict=True)
    )
    return run if sound else None
