"""Temperature and thresholds from logits and true labels, and what they change. numpy only; no files, no engine.

The temperature is that of C. Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): the logits divided by
the T under which the true labels are likeliest.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nopad.model.head import FloatArray, Head
from nopad.model.reliability import Bin, Values, calibration_error, of_each_row, reliability
from nopad.runtime.data.labelled import Targets
from nopad.runtime.errors import InputFileError, UsageError

LEAST_TEXTS = 50  # different ones; fewer say nothing about the held-out half
# Temperatures outside are no calibration: beyond them the labels are separated, or have nothing to do with the answers.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How well probabilities and decisions fit the true labels.

    With one label for each text, `ece` is of the chosen label; with several, of every probability of every label.
    """

    nll: float  # negative log-likelihood, in nats: of a text's label; of several labels, the mean of their own
    ece: float  # expected calibration error: |probability - right| of each bin, weighted by its count
    brier: float  # squared distance of probabilities and truth, summed over one text's labels; of several, the mean
    accuracy: float  # share of texts with exactly the true labels
    f1: float | None = None  # of several labels: each label's F1, their mean
    abstained: float | None = None  # share of texts without an answer; None where there always is one
    answered_accuracy: float | None = None  # of the others


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibrated head, and how one that is fitted in the same way to half of the texts does on the other half."""

    head: Head  # fitted to all rows
    fitted_rows: int
    held_out_rows: int
    held_out_temperature: float
    before: Figures  # on the held-out rows, as those that follow
    after: Figures
    before_bins: tuple[Bin, ...]
    after_bins: tuple[Bin, ...]


def calibrate(
    logits: FloatArray,
    targets: Targets,
    texts: Sequence[str],
    head: Head,
    *,
    thresholds: bool = False,
    abstain_below: float | None = None,
) -> Calibrated:
    """Fit `head` to logits and true labels, both [rows, num_labels], and judge the fit on texts that it has not seen.

    `thresholds`: also a threshold for each label, where a text may have several. A text that occurs more than once is
    either fitted or judged, never both. Raises `InputFileError` for rows that allow no honest fit.
    """
    fitted = _fitted_rows(texts)
    _check_rows(targets, texts, fitted, head, thresholds)
    half = _fit(logits[fitted], targets[fitted], head, thresholds, abstain_below)
    other, truth = logits[~fitted], targets[~fitted]
    return Calibrated(
        head=_fit(logits, targets, head, thresholds, abstain_below),
        fitted_rows=int(fitted.sum()),
        held_out_rows=int((~fitted).sum()),
        held_out_temperature=half.temperature,
        before=figures(other, truth, head.uncalibrated),
        after=figures(other, truth, half),
        before_bins=reliability(other, truth, head.uncalibrated),
        after_bins=reliability(other, truth, half),
    )


def check_head(head: Head, *, thresholds: bool, abstain_below: float | None) -> None:
    """Refuse what has no probabilities to calibrate, or not in this way. Raises `UsageError`."""
    if head.task != "text-classification" or not head.has_labels:
        does = "regression" if head.problem_type == "regression" else head.task
        raise UsageError(f"calibration is for text-classification with labels, this bundle does {does}")
    if head.activation is not None:
        raise UsageError(
            f"the scores of this cross-encoder are its own activation's ({head.activation}), which a temperature would "
            "change against its library; it cannot be calibrated"
        )
    if thresholds and not head.multi_label:
        raise UsageError(
            "--thresholds f1 is for models whose texts may have several labels; here a text has exactly one, the best: "
            "use --abstain-below to refuse uncertain answers"
        )
    if abstain_below is not None and not head.one_label:
        raise UsageError(
            "--abstain-below is for models whose texts have exactly one label; with several, a text whose labels are "
            "all below their thresholds has none (--thresholds)"
        )


def fit_temperature(logits: FloatArray, targets: Targets, head: Head) -> float:
    """The temperature under which the labels are likeliest; `logits` and `targets` are [rows, num_labels].

    The negative log-likelihood is convex in 1/T, so its slope has one root, which is bisected. Raises `InputFileError`
    where the root is not between `LEAST_TEMPERATURE` and `MOST_TEMPERATURE`.
    """
    z = logits.astype(np.float64)
    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE  # of 1/T
    if _slope(z, targets, head, high) < 0:
        raise InputFileError(
            f"the labels of {len(z)} rows leave no error to learn a temperature from (it would be below "
            f"{LEAST_TEMPERATURE}): give more rows, and none that the model was trained on"
        )
    if _slope(z, targets, head, low) >= 0:
        raise InputFileError(
            f"the answers on {len(z)} rows have nothing to do with their labels (the temperature would be over "
            f"{MOST_TEMPERATURE:g}): is the column of the labels right (--label-field), and the bundle?"
        )
    for _ in range(60):  # each halves the interval of log(1/T): to the last bit of a float
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if _slope(z, targets, head, middle) < 0 else (low, middle)
    return 1 / float(np.sqrt(low * high))


def f1_threshold(probabilities: Values, truth: Values) -> float:
    """The threshold of one label that gives it the best F1: the middle between the two probabilities that it parts.

    Both are [rows]; at least one row must have the label. Of equally good ones the highest.
    """
    order = np.argsort(-probabilities, kind="stable")
    p, hits = probabilities[order], truth[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + hits[-1])  # of the labels that the first n rows get
    below = np.append(p[1:], 0.0)  # the next row's probability
    f1[p == below] = -1.0  # nothing parts equal probabilities
    best = int(f1.argmax())
    return float(max((p[best] + below[best]) / 2, np.finfo(np.float32).tiny))


def figures(logits: FloatArray, targets: Targets, head: Head) -> Figures:
    """What `head` makes of logits, against the truth; both [rows, num_labels]."""
    p = head.probabilities(logits).astype(np.float64)
    decided = head.decide(logits)
    right = (decided == targets).all(axis=1)
    squares = (p - targets) ** 2
    bins = reliability(logits, targets, head)
    result = Figures(
        nll=_nll(logits.astype(np.float64) / head.temperature, targets, head),
        ece=calibration_error(bins),
        brier=float(squares.mean() if head.multi_label else squares.sum(axis=1).mean()),
        accuracy=float(right.mean()),
        f1=_macro_f1(decided, targets) if head.multi_label else None,
    )
    if head.abstain_below is None:
        return result
    answered = np.array([not head.abstains(float(score)) for score in of_each_row(p, head.best(logits))])
    accuracy = float(right[answered].mean()) if answered.any() else None
    return dataclasses.replace(result, abstained=float(1 - answered.mean()), answered_accuracy=accuracy)


def _fit(logits: FloatArray, targets: Targets, head: Head, thresholds: bool, abstain_below: float | None) -> Head:
    temperature = fit_temperature(logits, targets, head)
    fitted = dataclasses.replace(head.uncalibrated, temperature=temperature, abstain_below=abstain_below)
    if not thresholds:
        return fitted
    p = fitted.probabilities(logits).astype(np.float64)
    each = tuple(f1_threshold(p[:, i], targets[:, i]) for i in range(p.shape[1]))
    return dataclasses.replace(fitted, thresholds=each)


def _fitted_rows(texts: Sequence[str]) -> Mask:
    """Which rows are fitted: about half, by a hash of the text, so that equal texts are on one side in every file.

    The hash is our own: data whose rows were chosen by a common one would all fall on one side.
    """
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    return np.array([hashlib.blake2b(text, person=b"nopad calibrate").digest()[0] % 2 == 0 for text in encoded])


def _check_rows(targets: Targets, texts: Sequence[str], fitted: Mask, head: Head, thresholds: bool) -> None:
    different = len(set(texts))
    if different < LEAST_TEXTS:
        raise InputFileError(
            f"{different} different texts are too few to calibrate on: give at least {LEAST_TEXTS} with their labels, "
            "better some hundreds"
        )
    for name, column in zip(head.labels, targets.T, strict=True):
        if not column.any():
            raise InputFileError(
                f"no row has the label {name!r}: give rows of every label, as your texts will have them"
            )
        if head.multi_label and column.all():
            raise InputFileError(f"every row has the label {name!r}: give rows without it, too")
        if thresholds and not (column[fitted].any() and column[~fitted].any()):
            raise InputFileError(
                f"{int(column.sum())} rows with the label {name!r} are too few to find its threshold and to judge it: "
                "give more, or --thresholds none"
            )


def _slope(z: Values, targets: Targets, head: Head, inverse: float) -> float:
    """The derivative of the negative log-likelihood by 1/T, at T = 1 / `inverse`; `z` are the logits."""
    return float(((_exact(z * inverse, head) - targets) * z).sum(axis=1).mean())


def _exact(z: Values, head: Head) -> Values:
    """Probabilities in float64: `Head` computes in the logits' float32."""
    if head.multi_label:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))
    exponent = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def _nll(z: Values, targets: Targets, head: Head) -> float:
    """From logits, not probabilities, which round to 0."""
    if head.multi_label:
        return float((np.logaddexp(0.0, z) - targets * z).mean())
    top = z.max(axis=1)
    normaliser = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return float((normaliser - (targets * z).sum(axis=1)).mean())


def _scores(values: Values, index: npt.NDArray[np.int64]) -> Values:
    """One value of each row."""
    return np.asarray(np.take_along_axis(values, index[:, None], axis=1)[:, 0])


def _macro_f1(decided: Targets, truth: Targets) -> float:
    """The mean of the labels' F1, without labels that are neither there nor given."""
    hits, either = (decided * truth).sum(axis=0), decided.sum(axis=0) + truth.sum(axis=0)
    return float((2 * hits[either > 0] / either[either > 0]).mean()) if either.any() else 1.0
