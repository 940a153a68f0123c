"""SetFit folders: a sentence-transformers encoder, and beside it a pickled classifier of scikit-learn.

A logistic regression is a linear layer on the embedding, so it becomes the last module of the encoder's chain. The
pickle is opened only where the user has said that the file can be trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nopad.model.checkpoint.json_files import read_json
from nopad.model.checkpoint.sentence_transformers import Pipeline
from nopad.model.config import EmbeddingModule, EncoderConfig
from nopad.model.encoder import PackedEncoder
from nopad.model.errors import CheckpointError
from nopad.model.head import BARE, ProblemType, Task
from nopad.model.packages import install_hint

SETTINGS_FILE, HEAD_FILE = "config_setfit.json", "model_head.pkl"
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SetFitHead:
    """A SetFit model's classifier as a linear layer on its embeddings."""

    estimator: Any  # scikit-learn's own
    weight: FloatArray  # [labels, embedding size]
    bias: FloatArray  # [labels]
    labels: tuple[str, ...]
    problem_type: ProblemType
    normalize: bool  # embeddings have unit length before the classifier

    def extend(self, config: EncoderConfig, pipeline: Pipeline | None) -> EncoderConfig:
        """The configuration of the embedding model with this classifier at its end. Raises `CheckpointError`."""
        if config.embedding_size != self.weight.shape[1]:
            raise CheckpointError(
                f"{HEAD_FILE} takes embeddings of {self.weight.shape[1]}, the encoder gives {config.embedding_size}"
            )
        if pipeline is not None and (pipeline.truncate_dim is not None or pipeline.default_prompt_name is not None):
            raise CheckpointError(
                "a SetFit model whose encoder has a truncate_dim or a default prompt is not converted; --task "
                "embeddings exports the encoder alone"
            )
        count, size = self.weight.shape
        unit = (EmbeddingModule(kind="Normalize"),) if config.normalize or self.normalize else ()
        linear = EmbeddingModule(kind="Dense", in_features=size, out_features=count)
        return replace(
            config,
            task="text-classification",
            labels=self.labels,
            problem_type=self.problem_type,
            modules=(*config.modules, *unit, linear),
            normalize=False,
        )

    def fill(self, encoder: PackedEncoder) -> None:
        """Copy the layer into the last module of an encoder that `extend` configured, in fp32."""
        state = encoder.state_dict()
        last = f"chain.{len(encoder.encoder_config.modules) - 1}.linear."
        state[last + "weight"].copy_(torch.from_numpy(self.weight))
        state[last + "bias"].copy_(torch.from_numpy(self.bias))

    def decide(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Logits of embeddings [rows, size] by scikit-learn's own `decision_function`, [rows, labels]."""
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) if self.normalize else rows
        if type(self.estimator).__name__ == "MultiOutputClassifier":
            return np.stack([each.decision_function(rows) for each in self.estimator.estimators_], axis=1)
        scores: npt.NDArray[Any] = self.estimator.decision_function(rows)
        if self.problem_type == "multi_label_classification":
            return scores.reshape(len(rows), -1)
        return scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], axis=1)


def is_setfit(folder: Path) -> bool:
    """Whether a folder is a SetFit model's."""
    return any((folder / name).is_file() for name in (SETTINGS_FILE, HEAD_FILE))


def classifier_of(folder: Path, task: Task | None, allow_pickle: bool) -> tuple[SetFitHead | None, tuple[str, ...]]:
    """The classifier of a SetFit folder (None elsewhere, and where `task` wants embeddings), and a remark if left out.

    Raises `CheckpointError` without `allow_pickle`, and for a classifier that is not a logistic regression.
    """
    if not is_setfit(folder):
        return None, ()
    if task in BARE:
        remark = f"{folder} is a SetFit model: its classifier ({HEAD_FILE}) is left out, the bundle gives {task}"
        return None, (remark,)
    if task not in (None, "text-classification"):
        raise CheckpointError(f"{folder} is a SetFit model, which classifies texts; it has no {task}")
    if not allow_pickle:
        raise CheckpointError(
            f"{folder} is a SetFit model: its classifier is {HEAD_FILE}, a pickle of scikit-learn, which can run code "
            "when opened, so it is not read. --allow-pickle reads it, for files that you trust; --task embeddings "
            "exports the encoder alone, without the classifier"
        )
    return read_head(folder), ()


def read_head(folder: Path) -> SetFitHead:
    """Open the pickle, which can run code, and convert what it holds. Raises `CheckpointError`."""
    path = folder / HEAD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is a SetFit model without its classifier ({HEAD_FILE}); copy that, too")
    try:
        import joblib
        import sklearn  # noqa: F401 (its classes are what the pickle names)
    except ImportError:
        raise CheckpointError(f"{path} needs scikit-learn to be opened: {install_hint('train')}") from None
    settings = read_json(folder / SETTINGS_FILE, dict) if (folder / SETTINGS_FILE).is_file() else {}
    try:
        with warnings.catch_warnings():
            # About another version of scikit-learn: `_check` compares the probabilities.
            warnings.simplefilter("ignore")
            estimator = joblib.load(path)
    except Exception as error:  # whatever a pickle raises
        raise CheckpointError(f"{path} cannot be opened: {type(error).__name__}: {error}") from error
    head = _convert(estimator, settings, path)
    _check(head, path)
    return head


def _convert(estimator: Any, settings: Mapping[str, Any], path: Path) -> SetFitHead:
    kind = type(estimator).__name__
    parts = (
        list(getattr(estimator, "estimators_", [])) if kind in ("OneVsRestClassifier", "MultiOutputClassifier") else []
    )
    several = kind == "MultiOutputClassifier" or (kind == "OneVsRestClassifier" and bool(estimator.multilabel_))
    linear = parts if several else [estimator]
    if not linear or any(type(part).__name__ != "LogisticRegression" for part in linear):
        inner = f" of {type(parts[0]).__name__}" if parts else ""
        raise CheckpointError(
            f"{path} holds {kind}{inner}, and nopad converts LogisticRegression, alone or for each label "
            "separately (OneVsRestClassifier, MultiOutputClassifier); --task embeddings exports the encoder alone"
        )
    weight = np.concatenate([np.asarray(part.coef_, dtype=np.float64) for part in linear])
    bias = np.concatenate([np.broadcast_to(part.intercept_, len(part.coef_)).astype(np.float64) for part in linear])
    if not several and len(weight) == 1:  # two classes: the sigmoid of one score is the softmax of it and 0
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    classes = list(range(len(weight))) if several else list(estimator.classes_)
    names = settings.get("labels")
    if (
        isinstance(names, list)
        and len(names) == len(weight)
        and [str(c) for c in classes] == [str(i) for i in range(len(names))]
    ):
        classes = names
    return SetFitHead(
        estimator=estimator,
        weight=weight,
        bias=bias,
        labels=tuple(str(name) for name in classes),
        problem_type="multi_label_classification" if several else "single_label_classification",
        normalize=settings.get("normalize_embeddings") is True,
    )


def _check(head: SetFitHead, path: Path) -> None:
    """The layer must give the classifier's own probabilities: old estimators may normalise one-vs-rest scores."""
    rows = np.random.default_rng(0).normal(size=(8, head.weight.shape[1]))
    logits = replace(head, normalize=False).decide(rows)
    expected: Any = head.estimator.predict_proba(rows)
    if head.problem_type == "multi_label_classification":
        probabilities = 1 / (1 + np.exp(-logits))
        expected = np.stack([columns[:, 1] for columns in expected], axis=1) if isinstance(expected, list) else expected
    else:
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)
    same = np.allclose(logits, rows @ head.weight.T + head.bias, atol=1e-9)
    if not same or not np.allclose(probabilities, expected, atol=1e-9):
        raise CheckpointError(
            f"{path}: the probabilities of this {type(head.estimator).__name__} are not the softmax or sigmoid of its "
            "scores (one against the rest, normalised), so it is not converted; --task embeddings leaves it out"
        )
