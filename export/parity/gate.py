"""The parity gate: is what the bundle answers what transformers answers with the trained checkpoint?

The reference is transformers itself (fp32, SDPA, one text at a time, so without padding). The bundle is opened from
disk and asked through the runtime, as its users will ask it. `CHECKS` are what is asked.

How a check is added:

- A check is one function, in a file of this folder that has its subject or in a new one: it gets a `Trial` (the opened
  bundle, the reference, the bounds of the precision; `trial.py`) and yields rows. `Row.at_most(check, case, value,
  bound)` is a difference and what it may be, `Row.at_least(...)` a share and what it must be; a row says itself
  whether it has passed. What does not apply to a bundle yields nothing.
- It is one line in `CHECKS`. A check of sizes or circumstances goes into `stress.CHECKS` instead, where an engine that
  fails in one check is still asked the others.
- Bounds stand in `BOUNDS` (`bounds.py`), for each precision; `scaled` makes them follow the size of the logits.
- A fault proves it: `tests/export/parity/test_gate_faults.py` has a table of them, each with the checks that must
  catch it. `Fault` (`tests/support/gate_faults.py`) says what is made wrong: the encoder's configuration, weights or
  attention, the manifest or a file of the bundle; `BrokenEngine` spoils an engine's answers. Faults of sizes and
  circumstances are in `test_stress.py`.
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
        """As the manifest stores it; a value that is not finite (shapes differ, NaN) is null, for JSON has no other."""
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
    """Compare `model` with `reference`, on `data` too if there are any.

    `longest` is the grid's longest text, in tokens. `thorough` compares a text of full length with transformers
    itself, whatever that takes. A check that cannot be computed because the engine failed counts as failed.
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
