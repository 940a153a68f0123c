"""An analysis in sentences, for the terminal and for the head of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nopad.analysis.analysis import Analysis, Result
from nopad.analysis.comparison import Comparison
from nopad.analysis.intervals import Estimate
from nopad.charts import units
from nopad.runtime.data.labels import listed

_CHANCE = 0.05  # the p above which a difference may well be chance


def share(one: Estimate) -> str:
    """A share with its interval: "89.2 % (86.1 to 91.7)"."""
    low, high = (f"{100 * end:.1f}" for end in (one.low, one.high))
    return f"{units.share(one.value)} ({low} to {high})"


def number(one: Estimate) -> str:
    """A figure with its interval: "0.412 (0.398 to 0.427)"."""
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def summary(found: Analysis) -> Iterator[str]:
    """What there is to know, a sentence each."""
    for letter, result in zip(letters(found), found.results, strict=True):
        said = figures(result, found.rows)
        yield f"{letter}{said[0].upper()}{said[1:]}"
    if found.comparison is not None:
        yield comparison(found.comparison)
    if found.train is not None:
        yield train(found)
    if found.repeats.rows:
        yield f"Texts that repeat an earlier one: {found.repeats.rows:,}{_conflicts(found.repeats.conflicts)}."
    for letter, result in zip(letters(found), found.results, strict=True):
        noise = result.classes and result.classes.noise
        if noise:
            yield f"{letter}{noise.suspects:,} labels look wrong; an estimated {units.share(noise.share)} of all are."


def letters(found: Analysis) -> Sequence[str]:
    """What the results are called: nothing where there is one."""
    return ("A: ", "B: ") if len(found.results) > 1 else ("",)


def figures(result: Result, rows: int) -> str:
    """A model's figures in one sentence."""
    if result.tags is not None:
        f1 = "" if result.tags.f1 is None else f"F1 of entities {share(result.tags.f1)}; "
        return f"{f1}every entity right in {share(result.tags.texts)} of {rows:,} texts."
    if result.numbers is not None:
        one = result.numbers.figures
        order = f", Spearman {number(one.spearman)}" if one.spearman else ""
        return f"mean absolute error {number(one.absolute)} on {rows:,} rows{order}."
    assert result.classes is not None, "either"
    parts = [f"accuracy {share(result.classes.accuracy)} on {rows:,} rows"]
    if result.classes.macro_f1 is not None:
        parts.append(f"F1 {share(result.classes.macro_f1)}, mean of the labels")
    if result.classes.calibration is not None:
        parts.append(f"calibration error {result.classes.calibration.ece:.3f}")
        if result.classes.calibration.abstained:
            parts.append(f"{units.share(result.classes.calibration.abstained)} abstained")
    return "; ".join(parts) + "."


def comparison(found: Comparison) -> str:
    """What changed, in one sentence."""
    if found.p_value is None or found.worse is None or found.better is None or found.agreement is None:
        return (
            f"B's mean absolute error less A's: {number(found.difference)}"
            f"{'' if _beside_zero(found.difference) else '; that may well be chance'}."
        )
    if not found.worse.rows + found.better.rows:
        return f"A and B are right in the same rows. They agree on {share(found.agreement)} of the rows."
    points = [f"{100 * value:+.1f}" for value in (found.difference.value, found.difference.low, found.difference.high)]
    chance = "no chance" if found.p_value < _CHANCE else "this may well be chance"
    return (
        f"B is right where A was wrong in {found.better.rows:,} rows, and wrong where A was right in "
        f"{found.worse.rows:,}: {points[0]} points ({points[1]} to {points[2]}); McNemar's exact test: p = "
        f"{found.p_value:.3g}, {chance}. They agree on {share(found.agreement)} of the rows."
    )


def train(found: Analysis) -> str:
    """What of the data is in the training data."""
    both = found.train
    assert both is not None, "the caller has looked"
    if not both.rows:
        return f"No text is among the {found.train_rows:,} training rows."
    write = number if found.results[0].numbers else share
    scores = ""
    if both.found is not None and both.others is not None:
        scores = f"; on these {write(both.found)}, on all others {write(both.others)}"
    return (
        f"Texts that are among the {found.train_rows:,} training rows, too: {both.rows:,}, {both.exact:,} exactly and "
        f"{both.near:,} nearly{_conflicts(both.conflicts)}{scores}."
    )


def unknown_labels(found: Analysis) -> Iterator[str]:
    """Labels that no bundle knows, where they stand, and what to do."""
    for label, lines in found.unknown.items():
        rows = f"{len(lines):,} row{'' if len(lines) == 1 else 's'}: {listed([f'{line:,}' for line in lines])}"
        yield (
            f"label {label!r} ({rows}) is none of the model's ({listed(found.labels)}): give these rows one of its "
            "labels, name another column with --label-field, or train a model that knows it"
        )


def _conflicts(count: int) -> str:
    return f" ({count:,} with another label)" if count else ""


def _beside_zero(one: Estimate) -> bool:
    return one.low > 0 or one.high < 0
