"""What logits mean: probabilities and decisions, for training, export and runtime. numpy only; no torch, no files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Task = Literal[
    "text-classification", "token-classification", "fill-mask", "embeddings", "token-embeddings", "rerank"
]  # fmt: skip
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
FloatArray = npt.NDArray[np.float32]

TASKS: tuple[Task, ...] = get_args(Task)
# Logits are a row for each token.
PER_TOKEN: tuple[Task, ...] = ("token-classification", "fill-mask", "token-embeddings")
# Of an encoder without a head: its hidden states, pooled, or as they are.
BARE: tuple[Task, ...] = ("embeddings", "token-embeddings")
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis."""
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    out: FloatArray = exponent / exponent.sum(axis=-1, keepdims=True)
    return out


def sigmoid(logits: FloatArray) -> FloatArray:
    """Logistic function, without overflow."""
    out: FloatArray = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
    return out


def _softplus(logits: FloatArray) -> FloatArray:
    out: FloatArray = np.logaddexp(logits, np.float32(0.0))
    return out


# From logits to scores, by the names of torch.nn's classes. None of them changes the order of two scores.
SCORE_ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "Identity": lambda logits: logits,
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "ReLU": lambda logits: np.maximum(logits, np.float32(0.0)),
    "LogSigmoid": lambda logits: -_softplus(-logits),
    "Softplus": _softplus,
    "Softmax": softmax,
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """The meaning of a model's logits, by the rules of transformers' pipelines.

    Raises `ValueError` for an invalid temperature, thresholds or `abstain_below`.
    """

    task: Task
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    activation: str | None = None  # of SCORE_ACTIVATIONS, named by a cross-encoder; None: the task's default
    # Logits are divided by it (C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None  # probabilities, one for each label; None: 0.5, or the best label
    abstain_below: float | None = None  # a probability: an answer whose score is below it is no answer

    def __post_init__(self) -> None:
        """Refuse an invalid calibration."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature must be a positive number, got {self.temperature}")
        if self.problem_type == "regression" and self != self.uncalibrated:
            raise ValueError("a regression has no probabilities, so neither temperature nor thresholds")
        if self.abstain_below is not None and not (self.one_label and 0 < self.abstain_below < 1):
            raise ValueError(
                f"abstain_below must be a number between 0 and 1, for texts that have exactly one label, got "
                f"{self.abstain_below}"
            )
        if self.thresholds is not None and not (
            self.has_labels and len(self.thresholds) == len(self.labels) and all(0 < x < 1 for x in self.thresholds)
        ):
            raise ValueError(
                f"thresholds must be a number between 0 and 1 for each of the {len(self.labels)} labels, got "
                f"{self.thresholds}"
            )

    @property
    def has_labels(self) -> bool:
        """Whether logits choose a label (or a token of the vocabulary)."""
        return self.task not in (*BARE, "rerank") and self.problem_type != "regression"

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none; else it has exactly one."""
        return self.problem_type == "multi_label_classification"

    @property
    def one_label(self) -> bool:
        """Whether a text (not each of its tokens) has exactly one label."""
        return self.task == "text-classification" and self.has_labels and not self.multi_label

    @property
    def uncalibrated(self) -> Head:
        """The head as transformers knows it: without temperature and thresholds, and it never abstains."""
        plain = self.temperature == 1.0 and self.thresholds is None and self.abstain_below is None
        return self if plain else dataclasses.replace(self, temperature=1.0, thresholds=None, abstain_below=None)

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Scores of the labels, float32 as the logits [..., num_labels].

        Softmax; sigmoid for multi-label and rerank; the raw values for regression; or a cross-encoder's activation.
        """
        independent = self.multi_label or self.task == "rerank"
        default = "Identity" if self.problem_type == "regression" else "Sigmoid" if independent else "Softmax"
        scores = SCORE_ACTIVATIONS[self.activation or default]
        return scores(logits if self.temperature == 1.0 else logits / np.float32(self.temperature))

    def log_odds(self, logits: FloatArray, label: int) -> npt.NDArray[np.float64]:
        """log(p / (1 - p)) of a label's probability p, from the logits: [..., num_labels] -> [...], without rounding.

        Of a score that is no probability beside others (several labels, rerank, regression), the label's logit alone.
        """
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        if not self.one_label or len(self.labels) < 2:
            return scaled[..., label]
        others = np.delete(scaled, label, axis=-1)
        out: npt.NDArray[np.float64] = scaled[..., label] - np.logaddexp.reduce(others, axis=-1)
        return out

    def best(self, logits: FloatArray) -> npt.NDArray[np.int64]:
        """The index of the label, where a text has exactly one: [..., num_labels] -> [...].

        With thresholds, the label whose probability is the largest multiple of its threshold: of two labels with the
        thresholds t and 1 - t, the first is chosen once its probability reaches t (Z.-H. Zhou and X.-Y. Liu, "Training
        Cost-Sensitive Neural Networks", TKDE 2006: threshold moving).
        """
        scores = logits if self.thresholds is None else logits / self.temperature - np.log(self.thresholds)
        return scores.argmax(-1)

    def abstains(self, score: float) -> bool:
        """Whether an answer with this score is too uncertain to be one (C. K. Chow, "On Optimum Recognition Error and
        Reject Tradeoff", IEEE Trans. Information Theory 1970).
        """
        return self.abstain_below is not None and score < self.abstain_below

    def decide(self, logits: FloatArray) -> npt.NDArray[np.float64]:
        """The labels as zeros and ones, [..., num_labels]. Raises `ValueError` without `has_labels`."""
        if not self.has_labels:
            raise ValueError(f"{self.problem_type or self.task} has no labels to decide on")
        if self.multi_label:
            chosen = self.probabilities(logits) >= np.array(0.5 if self.thresholds is None else self.thresholds)
        else:
            chosen = np.arange(logits.shape[-1]) == self.best(logits)[..., None]
        return chosen.astype(np.float64)
