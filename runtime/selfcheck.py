"""Does an opened bundle, here and now, answer its probes as the reference did?

The bounds are those by which the parity gate judged the file; they stand in its report in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nopad.runtime.errors import EngineError, TextError
from nopad.runtime.inference import PROBE
from nopad.runtime.model import Model
from nopad.runtime.nearness import cosine, difference, scaled
from nopad.runtime.probes import Probe
from nopad.runtime.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What a self-check that passed has compared."""

    probes: int  # texts; 0: the bundle has nothing to compare with, and only a short text was run
    worst: float | None  # the largest difference, as a share of its bound; None without probes
    note: str  # for people


def self_check(model: Model) -> SelfCheck:
    """Run the bundle's probes on the chosen engine, past the scheduler, and compare.

    A probe that does not fit the engine's profiles is left out. Raises `EngineError` if an answer is further from the
    reference's than the gate allows, if the engine fails, and if another engine had to answer for it.
    """
    engine, artifact = model.status().engine, model.artifact
    bounds = _bounds(model)
    encoded = zip(model.manifest.probes, model.encode([probe.text for probe in model.manifest.probes]), strict=True)
    fitting = [probe for probe, tokens in encoded if isinstance(tokens, TextError) or model.takes([tokens.used])]
    if not fitting or bounds is None:
        model.logits([PROBE])
        _require_own_answer(model)
        missing = "no probes" if bounds else "no parity report"
        note = f"{model.bundle.path} has {missing} to compare with: a short text was run, nothing was compared"
        return SelfCheck(probes=0, worst=None, note=note)
    try:
        answers = model.logits([probe.text for probe in fitting])
    except TextError as error:
        raise EngineError(f"self-check: a probe cannot be read ({error}); export the bundle again") from None
    _require_own_answer(model)
    worst = max(_share(probe, got, bounds, model) for probe, got in zip(fitting, answers, strict=True))
    note = f"{len(fitting)} probes answered as transformers does by {engine} in {artifact.precision}"
    return SelfCheck(probes=len(fitting), worst=worst, note=f"{note}: at most {worst:.0%} of the parity gate's bound")


def _bounds(model: Model) -> Mapping[str, Any] | None:
    """The bounds of the chosen file's precision: each engine's report has the same."""
    parity = model.artifact.parity
    report = parity.get(model.status().engine) or next(iter(parity.values()), {})
    bounds = report.get("bounds")
    return bounds if isinstance(bounds, Mapping) and isinstance(bounds.get("logits"), float) else None


def _share(probe: Probe, got: FloatArray, bounds: Mapping[str, Any], model: Model) -> float:
    """How much of the bound the difference takes, 0 to 1. Raises `EngineError` above."""
    shown = repr(probe.text if len(str(probe.text)) < 40 else f"{str(probe.text)[:37]}...")
    if got.shape != probe.shape:
        raise EngineError(
            f"self-check: {shown} gave an answer of shape {got.shape}, the reference's has {probe.shape}; "
            f"{model.bundle.path} does not answer as it was verified"
        )
    ours, wanted = probe.part(got), probe.wanted
    value, bound = difference(ours, wanted), scaled(bounds["logits"], wanted)
    least = bounds.get("cosine") if model.task == "embeddings" else None  # of tokens, a probe keeps single elements
    near = 1.0 if least is None else cosine(ours, wanted)
    if value > bound or (least is not None and near < least):
        measured = f"differs by {value:.2e} (bound {bound:.2e})" if value > bound else f"has cosine {near:.4f}"
        raise EngineError(
            f"self-check: the answer of {model.status().engine} to {shown} {measured} from transformers'; "
            f"{model.bundle.path} does not answer here as it was verified"
        )
    return value / bound


def _require_own_answer(model: Model) -> None:
    """Raise the chosen engine's failure, where the next engine of the chain hid it."""
    status = model.status()
    if status.degraded:
        reason = next((each.reason for each in status.engines if each.name == status.engine and each.reason), "")
        raise EngineError(f"{status.engine} failed and another engine answered: {reason}")
