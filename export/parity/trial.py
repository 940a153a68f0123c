"""The input of every check of the parity gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from nopad.export.parity.accuracy import Evaluation
from nopad.export.parity.bounds import Bounds, Row
from nopad.export.parity.known_texts import KnownTexts
from nopad.export.progress import Progress, silent
from nopad.export.reference.transformers import Reference
from nopad.runtime.data.labelled import LabelledTexts
from nopad.runtime.predictor import Model

# Longest length of the default grid: the reference is quadratic in it. `longest=` asks for more.
DEFAULT_LONGEST = 512


@dataclass(kw_only=True)
class Trial:
    """A bundle and its judge, in one run of the gate."""

    model: Model  # the bundle, opened as its users open it; `model.manifest` says what it is
    reference: Reference  # transformers, with the checkpoint
    bounds: Bounds  # of the bundle's precision
    data: LabelledTexts | None = None
    longest: int = DEFAULT_LONGEST  # tokens of the grid's longest text
    thorough: bool = False  # compare a text of full length with transformers itself, however long that takes
    progress: Progress = silent
    evaluation: Evaluation | None = None  # set by the check of labelled data

    @cached_property
    def known(self) -> KnownTexts:
        """Texts whose right answers are known, for batches that transformers could not answer in time."""
        return KnownTexts(self.model, self.reference, self.bounds)


Check = Callable[[Trial], Iterator[Row]]
