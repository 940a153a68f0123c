"""The gate's reference for SetFit models: sentence-transformers' `encode`, then scikit-learn's own classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nopad.export.reference.transformers import Reference
from nopad.model.checkpoint.setfit import SetFitHead
from nopad.runtime.types import FloatArray, Text


class SetFitReference(Reference):
    """A SetFit model as `SetFitModel.predict_proba` computes it; `head` holds the classifier itself."""

    def __init__(self, folder: Path, head: SetFitHead | None, overrides: Mapping[str, Any]) -> None:
        super().__init__(folder, "embeddings", overrides=overrides)
        assert head is not None and self.embedder is not None
        self._head, self._body = head, self.embedder
        self.embedder = None  # the checks of embeddings do not apply
        self.task = "text-classification"
        self.labels = head.labels
        self.problem_type = head.problem_type

    def answer(self, text: Text, ids: Sequence[int], token_type_ids: Sequence[int] | None) -> FloatArray:
        """Scores of a text before their softmax or sigmoid, float32 [labels]."""
        if not isinstance(text, str):
            return self.logits(ids, token_type_ids)
        row: FloatArray = self._head.decide(self._body.encode([text]))[0].astype(np.float32)
        return row

    def _forward(self, inputs: dict[str, Any]) -> Any:
        return torch.from_numpy(self._head.decide(self._body.rows(inputs).numpy()).astype(np.float32))
