"""The space of a sweep: which settings of the recipe are tried, and from which values."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from nopad.runtime.errors import UsageError
from nopad.training.recipe import Recipe

_TYPES: Mapping[str, Any] = {
    name: next(kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None))
    for name, hint in typing.get_type_hints(Recipe).items()
}
# What must be the same in all trials, so that they compare: where texts are cut, how they are judged, who teaches.
_FIXED = ("max_length", "best_metric", "eval_batch_size", "eval_steps", "patience", "teacher")


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: equally many of each magnitude."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]


Space = Mapping[str, Range | Choice]  # by the fields of `Recipe`


def contains(values: Range | Choice, value: Any) -> bool:
    """Whether a value is one of those that are tried."""
    if isinstance(values, Choice):
        return value in values.values
    return value is not None and values.low <= value <= values.high


def default_space(recipe: Recipe) -> Space:
    """What usually matters, around the values of the recipe."""
    return {
        "learning_rate": Range(low=recipe.learning_rate / 5, high=recipe.learning_rate * 5, log=True, whole=False),
        "weight_decay": Range(low=1e-6, high=0.1, log=True, whole=False),
        "warmup_ratio": Range(low=0.0, high=0.2, log=False, whole=False),
        "batch_size": Choice((max(1, recipe.batch_size // 2), recipe.batch_size, recipe.batch_size * 2)),
    }


def read_space(options: Iterable[str], recipe: Recipe) -> Space:
    """`learning-rate=1e-5..1e-3` is a range (of magnitudes, where its ends are 10 times apart or more),
    `batch-size=16,32` a choice; without any, `default_space`. Raises `UsageError`.
    """
    space: dict[str, Range | Choice] = {}
    for option in options:
        name, equals, values = option.partition("=")
        field = name.strip().removeprefix("--").replace("-", "_")
        if field not in _TYPES or field in _FIXED or not equals:
            known = ", ".join(name.replace("_", "-") for name in _TYPES if name not in _FIXED)
            raise UsageError(f"--sweep {option!r}: expected SETTING=LOW..HIGH or SETTING=A,B,... with one of {known}")
        if field in space:
            raise UsageError(f"--sweep names {name} twice")
        space[field] = _values(option, values, _TYPES[field], recipe, field)
    return space or default_space(recipe)


def _values(option: str, text: str, kind: type, recipe: Recipe, field: str) -> Range | Choice:
    def read(word: str) -> Any:
        word = word.strip()
        try:
            value = {"true": True, "false": False}[word.lower()] if kind is bool else kind(word)
            dataclasses.replace(recipe, **cast(dict[str, Any], {field: value}))  # refuses what cannot train
        except (KeyError, ValueError):
            raise UsageError(f"--sweep {option!r}: {word!r} is no value of {field.replace('_', '-')}") from None
        return value

    low, dots, high = text.partition("..")
    if not dots:
        values = tuple(map(read, text.split(",")))
        if len(set(values)) < len(values):
            raise UsageError(f"--sweep {option!r} names a value twice")
        return Choice(values)
    if kind not in (int, float):
        raise UsageError(f"--sweep {option!r}: a range is of numbers; name the values, with commas between them")
    ends = read(low), read(high)
    if not (ends[0] < ends[1] and all(map(math.isfinite, ends))):
        raise UsageError(f"--sweep {option!r}: the first number of a range must be the smaller")
    return Range(low=ends[0], high=ends[1], log=ends[0] > 0 and ends[1] >= 10 * ends[0], whole=kind is int)
