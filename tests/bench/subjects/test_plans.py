"""The bundle's own subjects: every file on every engine of this machine, by names that tell them apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nopad.bench.subjects.plans import SubjectPlan, plan_engines
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.errors import UsageError

PASSED = {"passed": True}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopad.bench.subjects.plans.gpu_at_hand", lambda: None)


def holding(*files: tuple[str, str, str, tuple[str, ...]]) -> Bundle:
    """The embedded bundle with other files: name, target, precision, and the engines on which it passed the gate."""
    opened = open_bundle()
    (artifact,) = opened.manifest.artifacts
    artifacts = tuple(
        replace(artifact, file=file, target=target, precision=precision, parity=dict.fromkeys(engines, PASSED))
        for file, target, precision, engines in files
    )
    return replace(opened, manifest=replace(opened.manifest, artifacts=artifacts))


def named(plans: list[SubjectPlan]) -> dict[str, tuple[str, str | None]]:
    return {plan.name: (plan.spec.engine, plan.spec.file) for plan in plans}


EVERYTHING = (
    ("model.cpu.onnx", "cpu", "fp32", ("onnx-cpu",)),
    ("model.cpu.int8.onnx", "cpu", "int8", ("onnx-cpu",)),
    ("model.onnx", "onnx", "fp32", ("onnx-cpu", "openvino")),
    ("model.openvino.bf16.onnx", "openvino", "bf16", ("openvino",)),
    ("weights", "torch", "bf16", ("torch",)),
)


def test_every_file_on_every_engine_that_was_gated() -> None:
    assert named(plan_engines(holding(*EVERYTHING), threads=1)) == {
        "nopad-fp32-cpu": ("onnx-cpu", "model.cpu.onnx"),
        "nopad-int8": ("onnx-cpu", "model.cpu.int8.onnx"),
        "nopad-fp32-openvino": ("openvino", "model.onnx"),
        "nopad-fp32-onnx-cpu-model": ("onnx-cpu", "model.onnx"),
        "nopad-bf16-openvino": ("openvino", "model.openvino.bf16.onnx"),
        "nopad-bf16-torch": ("torch", "weights"),
    }


def test_an_engine_without_a_verdict_takes_part_only_where_it_is_asked_for() -> None:
    bundle = holding(("model.onnx", "onnx", "fp32", ("onnx-cpu",)))
    assert named(plan_engines(bundle, threads=1)) == {"nopad-fp32": ("onnx-cpu", "model.onnx")}
    for options in ({"engines": ("openvino", "onnx-cpu")}, {"allow_unverified": True}):
        asked: Any = options
        assert {engine for engine, _ in named(plan_engines(bundle, threads=1, **asked)).values()} == {
            "openvino",
            "onnx-cpu",
        }
    unverified = holding(("model.cpu.onnx", "cpu", "fp32", ()))  # it will be refused, with the reason
    assert named(plan_engines(unverified, threads=1)) == {"nopad-fp32": ("onnx-cpu", "model.cpu.onnx")}


def test_engines_and_precisions_choose() -> None:
    bundle = holding(*EVERYTHING)
    assert list(named(plan_engines(bundle, threads=1, engines=("openvino",)))) == ["nopad-fp32", "nopad-bf16"]
    assert list(named(plan_engines(bundle, threads=1, precisions=("int8",)))) == ["nopad-int8"]
    with pytest.raises(UsageError, match="nothing for that engine and precision"):
        plan_engines(bundle, threads=1, engines=("torch",), precisions=("int8",))


def test_a_files_export_is_timed_once(tmp_path: Path) -> None:
    plans = plan_engines(holding(*EVERYTHING), threads=1, timed_from=tmp_path)
    timed = [plan.timed_build["target"] for plan in plans if plan.timed_build is not None]
    assert timed == ["cpu", "onnx"]
