"""The parity gate: does the bundle answer what transformers answers with the trained checkpoint?

The reference is transformers itself (fp32, SDPA, one text at a time, so without padding). The bundle is opened from
disk and asked through the runtime, as its users will ask it. CONTRIBUTING.md says how to add a check to `CHECKS`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from nopad.export.parity.accuracy import Evaluation
from nopad.export.parity.bounds import BOUNDS, Bounds, Row
from nopad.export.parity.labelled import labelled_data
from nopad.export.parity.lengths import lengths
from nopad.export.parity.sentences import sentences
from nopad.export.parity.stress import stress
from nopad.export.parity.texts import whole_texts
from nopad.export.parity.trial import DEFAULT_LONGEST, Check, Trial
from nopad.export.progress import Progress, silent
from nopad.export.reference.transformers import Reference
from nopad.runtime.data.labelled import LabelledTexts
from nopad.runtime.errors import EngineError
from nopad.runtime.predictor import Model

CHECKS: tuple[Check, ...] = (
    lengths,
    sentences,
    whole_texts,
    labelled_data,
    stress,
)


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The gate's verdict and everything it rests on."""

    passed: bool
    precision: str
    bounds: Bounds
    rows: tuple[Row, ...]
    versions: dict[str, str]
    evaluation: Evaluation | None = None

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it; a value that is not finite (shapes differ, NaN) is null, as JSON requires."""
        report = dataclasses.asdict(self)
        for row in report["rows"]:
            row["value"] = row["value"] if np.isfinite(row["value"]) else None
        return report


def run_gate(
    model: Model,
    reference: Reference,
    *,
    data: LabelledTexts | None = None,
    longest: int = DEFAULT_LONGEST,
    thorough: bool = False,
    progress: Progress = silent,
) -> ParityReport:
    """Compare `model` with `reference`, and on `data` if there are any.

    `longest` is the grid's longest text, in tokens. `thorough` compares a text of full length with transformers
    itself, however long that takes. A check that cannot be computed because the engine failed counts as failed.
    """
    precision = model.artifact.precision
    trial = Trial(
        model=model,
        reference=reference,
        bounds=BOUNDS[precision],
        data=data,
        longest=longest,
        thorough=thorough,
        progress=progress,
    )
    rows: list[Row] = []
    try:
        for check in CHECKS:
            rows += check(trial)
    except EngineError as error:
        rows.append(Row(check="engine", case="runs", value=1.0, bound=0.0, passed=False, note=str(error)))
    return ParityReport(
        passed=all(row.passed for row in rows),
        precision=precision,
        bounds=trial.bounds,
        rows=tuple(rows),
        versions=reference.versions,
        evaluation=trial.evaluation,
    )
