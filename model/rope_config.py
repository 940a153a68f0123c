"""Rotary positions as `config.json` describes them: `Rope`, and its reader. Pure: no torch, no files.

The formulas that the values go into are in `nopad.model.rope`. Both spellings are transformers': `rope_parameters`
(version 5) and `rope_scaling` (version 4), with the kind of scaling as `rope_type` or, older, as `type`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from nopad.model.errors import CheckpointError

RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]
ROPE_TYPES: tuple[RopeType, ...] = get_args(RopeType)

# Without a value, transformers takes max_position_embeddings as the length that the model was pre-trained on.
_HAS_ORIGINAL = ("yarn", "longrope", "llama3")
_NEEDS: dict[RopeType, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions of one kind of layer. Fields are named as in transformers' `rope_parameters`."""

    rope_theta: float
    rope_type: RopeType = "default"
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As transformers 5 writes it into `rope_parameters`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def read_rope(entry: Mapping[str, Any], *, where: str, theta: Any, positions: int, head_size: int) -> Rope:
    """One object of `rope_parameters`, completed as transformers completes it.

    `where` names it in messages; `theta` is the default of `rope_theta`; `positions` is `max_position_embeddings`.
    Raises `CheckpointError` for an unsupported `rope_type`, and for missing or impossible values.
    """
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise CheckpointError(
            f"config.json: rope_type {kind!r} of {where} is not supported; nopad has {', '.join(ROPE_TYPES)}"
        )
    kind = cast(RopeType, kind)
    missing = [name for name in _NEEDS.get(kind, ()) if entry.get(name) is None]
    if missing:
        raise CheckpointError(f"config.json: rope_type {kind!r} of {where} lacks {' and '.join(missing)}")
    values: dict[str, Any] = {"rope_type": kind, "rope_theta": float(entry.get("rope_theta", theta))}
    if kind != "default":
        values |= _numbers(entry)
    if kind in _HAS_ORIGINAL:
        original = values["original_max_position_embeddings"] = int(
            entry.get("original_max_position_embeddings") or positions
        )
        _positive(where, "original_max_position_embeddings", original)
        if kind != "llama3":
            values.setdefault("factor", positions / original)
    rope = Rope(**values)
    for name in ("rope_theta", "factor", "attention_factor"):
        if getattr(rope, name) is not None:
            _positive(where, name, getattr(rope, name))
    _check(rope, where, head_size)
    return rope


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `entry` that `Rope` has a field for, except theta and type."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(Rope):
        value = entry.get(field.name)
        if value is None or field.name in ("rope_theta", "rope_type"):
            continue
        if field.name in ("short_factor", "long_factor"):
            out[field.name] = tuple(float(factor) for factor in value)
        elif field.name == "truncate":
            out[field.name] = bool(value)
        else:
            out[field.name] = float(value)
    return out


def _positive(where: str, name: str, value: float) -> None:
    if not 0 < value <= 2**40:  # refuses NaN, too; far beyond it, arithmetic in fp32 has no meaning
        raise CheckpointError(f"config.json: {name} of {where} must be positive and at most 2**40, got {value}")


def _check(rope: Rope, where: str, head_size: int) -> None:
    part = rope.partial_rotary_factor
    if part is not None and part != 1.0 and rope.rope_type != "proportional":
        # transformers' encoders rotate whole heads, and fail on angles for a part of a head.
        raise CheckpointError(
            f"config.json: partial_rotary_factor {part} of {where} is not supported with rope_type {rope.rope_type!r}, "
            "only with 'proportional'"
        )
    if part is not None and not 0 <= part <= 1:
        raise CheckpointError(f"config.json: partial_rotary_factor of {where} must be between 0 and 1, got {part}")
    for name in ("short_factor", "long_factor"):
        factors = getattr(rope, name)
        if rope.rope_type == "longrope" and (len(factors) != head_size // 2 or not all(f > 0 for f in factors)):
            raise CheckpointError(
                f"config.json: {name} of {where} must be {head_size // 2} positive numbers, one for each pair of a "
                f"head's {head_size} elements; it has {len(factors)}"
            )
    if rope.rope_type == "llama3":
        low, high = rope.low_freq_factor, rope.high_freq_factor
        if low is None or high is None or not 0 < low < high:
            raise CheckpointError(
                f"config.json: high_freq_factor {high} of {where} must be larger than low_freq_factor {low}, and both "
                "positive"
            )
    if rope.rope_type == "yarn" and rope.rope_theta == 1:  # every frequency is the same: there is no ramp
        raise CheckpointError(f"config.json: rope_theta of {where} must not be 1 for rope_type 'yarn'")
