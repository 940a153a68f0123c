"""A run on subjects made to misbehave: what is reported of each, and whose times are discarded."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reports import subject
from runners import FakeRunner as Fake
from runners import good

from nopad.bench.measure import run as running
from nopad.bench.measure.record import Record
from nopad.bench.measure.run import Run, Settings
from nopad.bench.schema import Cell, Report
from nopad.bench.subjects.plans import SubjectPlan
from nopad.bench.subjects.spec import Spec
from nopad.bench.workloads import Texts
from nopad.model.head import Head
from nopad.runtime.errors import UsageError
from nopad.runtime.types import FloatArray


def rows(row: Any) -> Callable[[int, int], list[FloatArray]]:
    return lambda call, texts: [np.array(row, dtype=np.float32)] * texts


def fails_at(number: int, error: Exception) -> Callable[[int, int], list[FloatArray]]:
    def answer(call: int, texts: int) -> list[FloatArray]:
        if call == number:
            raise error
        return good(call, texts)

    return answer


def measured(
    fakes: dict[str, Fake],
    workload: Texts,
    monkeypatch: pytest.MonkeyPatch,
    *,
    alone: dict[str, dict[str, Any]] | None = None,
    yardstick: str = "hf-sdpa",
    **options: Any,
) -> Report:
    """A run of these subjects; `alone`: the answers of their own processes."""
    fine = {"status": "ok", "threads": 1, "version": "0", "precision": "fp32", "peak_bytes": 1000, "seconds": 0.01,
            "import_seconds": 1.0, "load_seconds": 0.5, "cold_seconds": 0.1, "loaded_bytes": 500}  # fmt: skip
    monkeypatch.setattr(running, "run_job", lambda job, **_: {**fine, **(alone or {}).get(job["spec"]["name"], {})})
    monkeypatch.setattr(running, "RUNNERS", {name: lambda spec: fakes[spec.name] for name in ("fake",)})
    monkeypatch.setattr("nopad.bench.measure.turns.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("nopad.bench.measure.turns.TURN_SECONDS", 0.0)
    monkeypatch.setattr("nopad.bench.measure.probe.REPEATS", 1)
    libraries = {"numpy": lambda: time.sleep(0.002), "torch": lambda: time.sleep(0.001)}
    monkeypatch.setattr("nopad.bench.measure.probe.products", lambda threads: {"fp32": libraries})
    plans = [
        SubjectPlan(
            subject=subject(name, status="not run"),
            spec=Spec(name=name, runner="fake", path="", task="text-classification", threads=1, max_length=9),
            yardstick=None if name == yardstick else yardstick,
        )
        for name in fakes
    ]
    record = Record(command="", threads=1, reference="hf-sdpa" if "hf-sdpa" in fakes else None, model={}, settings={},
                    workloads=[workload.workload], subjects=[plan.subject for plan in plans])  # fmt: skip
    values: dict[str, Any] = {"threads": 1, "rounds": 3, "seed": 0, "memory_limit": 10_000}
    head = Head(task="text-classification", problem_type="single_label_classification")
    run = Run(plans, [workload], record, Settings(**{**values, **options}, head=head), publish=lambda: None,
              show=lambda *_: None)  # fmt: skip
    run.measure()
    return record.report()


def cells(report: Report) -> dict[str, Cell]:
    return {cell.subject: cell for cell in report.cells}


def test_everyone_takes_a_turn_in_every_round(workload: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {"nopad-fp32": Fake(good, seconds=0.001), "hf-sdpa": Fake(good, seconds=0.003)}
    report = measured(fakes, workload, monkeypatch, rounds=5)
    for cell in report.cells:
        assert cell.status == "ok" and cell.rounds == (0, 1, 2, 3, 4) and len(cell.seconds) == 5
        assert cell.computed_tokens == 80 and cell.tokens is None and cell.peak_bytes == 1000
    mine, reference = cells(report)["nopad-fp32"], cells(report)["hf-sdpa"]
    assert mine.agreement == 1.0 and mine.logit_difference == 0.0
    assert reference.agreement is None and reference.logit_difference is None
    assert all(fake.closed for fake in fakes.values())
    assert len(report.noise.probe_seconds) == 6 and report.noise.peak_flops
    (measured_workload,) = report.workloads
    limits = {"fp32": measured_workload.tokens * report.peaks[0].flops / (measured_workload.flops or 0)}
    assert measured_workload.limits == pytest.approx(limits) and report.peaks[0].library == "torch"


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (rows([np.nan, 0.0]), "NaN or infinity for 4 of 4 texts"),
        (rows([np.inf, 0.0]), "NaN or infinity"),
        (rows([1.0, 2.0, 3.0]), "shape (3,), expected (2,)"),
        (fails_at(1, ValueError("no such thing")), "ValueError: no such thing"),
        (fails_at(6, ValueError("in a later round")), "in a later round"),
    ],
)
def test_no_time_is_reported_of_answers_that_are_not_sound(
    answer: Any, note: str, workload: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = cells(measured({"hf-sdpa": Fake(good), "nopad-fp32": Fake(answer)}, workload, monkeypatch))
    bad = results["nopad-fp32"]
    assert bad.status == "failed" and note in bad.note and bad.seconds == () and bad.rounds == ()
    assert results["hf-sdpa"].status == "ok" and len(results["hf-sdpa"].seconds) == 3


def test_other_labels_are_counted_not_hidden(workload: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = cells(measured({"hf-sdpa": Fake(good), "nopad-int8": Fake(rows([-0.5, 0.75]))}, workload, monkeypatch))
    assert wrong["nopad-int8"].agreement == 0.0 and wrong["nopad-int8"].logit_difference == pytest.approx(1.25)


def test_without_the_reference_the_others_check_each_other(workload: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {"hf-sdpa": {"status": "out of memory", "note": "killed", "peak_bytes": 99}}
    fakes = {"hf-sdpa": Fake(good), "nopad-fp32": Fake(good), "hf-eager": Fake(good)}
    results = cells(measured(fakes, workload, monkeypatch, alone=lost))
    assert results["hf-sdpa"].status == "out of memory" and fakes["hf-sdpa"].calls == 0
    assert results["hf-sdpa"].peak_bytes == 99
    assert results["nopad-fp32"].agreement == 1.0 and "hf-sdpa has no answers" in results["nopad-fp32"].note
    single = cells(measured({"hf-sdpa": Fake(good), "nopad-fp32": Fake(good)}, workload, monkeypatch, alone=lost))
    assert single["nopad-fp32"].status == "failed" and "could not be checked" in single["nopad-fp32"].note


def test_a_library_with_other_threads_ends_the_run(workload: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="openvino runs with 2 threads, not 1"):
        measured(
            {"hf-sdpa": Fake(good), "openvino": Fake(good)}, workload, monkeypatch, alone={"openvino": {"threads": 2}}
        )
    with pytest.raises(UsageError, match="openvino runs with 3 threads"):
        measured({"hf-sdpa": Fake(good), "openvino": Fake(good, threads=3)}, workload, monkeypatch)


def test_what_is_missing_has_no_cells_and_the_rest_goes_on(workload: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"openvino": {"status": "missing", "note": "openvino is not installed"}}
    report = measured({"hf-sdpa": Fake(good), "openvino": Fake(good)}, workload, monkeypatch, alone=gone)
    assert list(cells(report)) == ["hf-sdpa"]
    assert [(subject.status, subject.note) for subject in report.subjects] == [
        ("ok", ""),
        ("missing", "openvino is not installed"),
    ]


def test_those_that_do_not_fit_together_take_turns_in_groups(workload: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hf-sdpa": 4000, "nopad-fp32": 3000, "optimum": 5000, "openvino": 7000}
    alone = {name: {"peak_bytes": size} for name, size in sizes.items()}
    results = cells(measured({name: Fake(good) for name in sizes}, workload, monkeypatch, alone=alone))
    assert results["openvino"].status == "out of memory" and "beside the reference" in results["openvino"].note
    assert results["nopad-fp32"].rounds == (0, 1, 2) and results["optimum"].rounds == (3, 4, 5)
    assert results["hf-sdpa"].rounds == (0, 1, 2, 3, 4, 5)


def test_after_the_time_limit_nothing_is_begun(workload: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured({"hf-sdpa": Fake(good), "nopad-fp32": Fake(good)}, workload, monkeypatch, time_limit=1e-9)
    assert {cell.status for cell in report.cells} == {"not run"}
    assert all("time limit" in cell.note for cell in report.cells)
