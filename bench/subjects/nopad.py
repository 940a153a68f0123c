"""nopad's engines as subjects."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from nopad.bench.subjects.spec import Spec
from nopad.model.packing import round_up
from nopad.runtime.types import FloatArray, Text


class NopadRunner:
    """An engine of a bundle, as `nopad.runtime.load` opens it."""

    def __init__(self, spec: Spec) -> None:
        from nopad.runtime.predictor import load

        self._spec = spec
        self._model: Any = load(
            spec.path,
            engine=spec.engine,
            precision=spec.precision,
            file=spec.file,
            threads=spec.threads,
            fallback=False,
            allow_unverified=spec.allow_unverified,
        )
        self.version = importlib.metadata.version("nopad")
        self.precision = self._model.artifact.precision

    def threads(self) -> int:
        """Threads of the engine; those it was opened with where it uses none of the CPU."""
        return int(self._model.threads or self._spec.threads)

    def run(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Logits of each text."""
        logits: list[FloatArray] = self._model.logits(texts)
        return logits

    def tokens(self, texts: Sequence[Text]) -> tuple[int, int]:
        """Real and computed tokens: streams are filled up to whole attention blocks."""
        lengths = [item.used for item in self._model.encode(texts)]
        multiple, padded = self._model.token_multiple, self._model.artifact.layout == "padded"
        computed = 0
        for batch in self._model.plan(lengths):
            members = [lengths[index] for index in batch]
            computed += len(members) * max(members) if padded else round_up(sum(members), multiple)
        return sum(lengths), computed

    def close(self) -> None:
        """Close the model."""
        self._model.close()
