"""Small reports with known times, for tests. Helpers, no tests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nopad.bench.schema import Cell, Noise, Peak, Report, Subject, Workload


def subject(name: str, **fields: Any) -> Subject:
    values: dict[str, Any] = {
        "name": name,
        "family": name.split("-")[0],
        "model": "modernbert",
        "precision": "fp32",
        "engine": "onnx-cpu",
        "padded": not name.startswith("nopad"),
        "threads": 1,
        "version": "1.0",
    }
    return Subject(**{**values, **fields})


def workload(name: str = "imdb-32", **fields: Any) -> Workload:
    values: dict[str, Any] = {
        "name": name,
        "kind": "ragged",
        "texts": 2,
        "tokens": 150,
        "padded_tokens": 200,
        "longest": 100,
        "source": "imdb/test.jsonl",
        "batch": 2,
        "lengths": (100, 50),
        "sha256": "00",
    }
    return Workload(**{**values, **fields})


def cell(name: str, seconds: tuple[float, ...], on: str = "imdb-32", **fields: Any) -> Cell:
    values: dict[str, Any] = {"status": "ok", "rounds": tuple(range(len(seconds))), "computed_tokens": 200}
    return Cell(subject=name, workload=on, seconds=seconds, **{**values, **fields})


def report(times: Mapping[str, tuple[float, ...]], probe: tuple[float, ...] = (0.01,) * 8, **fields: Any) -> Report:
    """One workload, one cell for each entry of `times`."""
    values: dict[str, Any] = {
        "command": "nopad bench",
        "created": "2026-01-01T00:00:00+00:00",
        "complete": True,
        "threads": 1,
        "reference": "hf-sdpa" if "hf-sdpa" in times else None,
        "machine": {"cpu": "a cpu", "cores": 2, "isa": "avx2", "gpu": None},
        "versions": {"nopad": "1.0"},
        "noise": Noise(probe_seconds=probe, peak_flops=1e11, spread=0.01, verdict="quiet"),
        "subjects": tuple(subject(name) for name in times),
        "workloads": (workload(),),
        "cells": tuple(cell(name, seconds) for name, seconds in times.items()),
    }
    return Report(**{**values, **fields})


def noisy(mean: float, share: float, seed: int, rounds: int = 9) -> tuple[float, ...]:
    """Times around `mean` with a relative deviation of `share`."""
    choose = random.Random(seed)
    return tuple(mean * choose.lognormvariate(0, share) for _ in range(rounds))


def changed(old: Report, **fields: Any) -> Report:
    return replace(old, **fields)


def full_report() -> Report:
    """A report with everything that a report can have."""
    small = report({"hf-sdpa": (2.0, 2.2, 2.1), "nopad-fp32": (1.0, 1.1, 1.0)})
    lost = Cell(subject="hf-eager", workload="imdb-32", status="out of memory", note="needs 9 GB", peak_bytes=9 * 10**9)
    fields: dict[str, Any] = {
        "subjects": (*small.subjects, subject("hf-eager"), subject("hf-fa2", status="missing", note="no | GPU")),
        "cells": (*small.cells, lost),
        "workloads": (workload(limits={"fp32": 300.0, "bf16": 900.0}),),
        "peaks": (
            Peak(precision="fp32", library="torch", flops=1e11),
            Peak(precision="bf16", library="torch", flops=3e11),
        ),
        "extra": {"of_a_newer_nopad": [1, {"a": None}]},
        "forecasts": ({"gpu": "t4", "forecast": True},),
    }
    return replace(small, **fields)
