"""What `--target` means on different machines, decided before anything is built."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from nopad.export.targets import TARGETS, EngineJob, Jobs, plan_jobs
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.hardware import RTX_ARCHS
from nopad.runtime.errors import EnvironmentProblem, UsageError


@pytest.fixture(autouse=True)
def both_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if both packages were installed."""
    real = importlib.util.find_spec
    have = {"tensorrt", "tensorrt_rtx"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in have else real(name))


def no_gpu() -> None:
    """A machine without one."""


def rtx(*archs: str) -> tuple[EngineJob, ...]:
    return tuple(EngineJob(target="tensorrt-rtx", sm=sm) for sm in archs)


@pytest.mark.parametrize(
    ("target", "precision", "archs", "sm", "jobs"),
    [
        ("cpu", None, [], None, Jobs(cpu=("fp32",), graphs=(), torch=None, engines=(), skipped=())),
        ("cpu", "int8", [], None, Jobs(cpu=("int8",), graphs=(), torch=None, engines=(), skipped=())),
        ("cpu", ("fp32", "int8"), [], None,
         Jobs(cpu=("fp32", "int8"), graphs=(), torch=None, engines=(), skipped=())),
        ("cpu", ("fp32", "bf16", "int8"), [], None,
         Jobs(cpu=("fp32", "int8"), openvino=("bf16",), graphs=(), torch=None, engines=(), skipped=())),
        ("openvino", None, [], None, Jobs(openvino=("fp32",), graphs=(), torch=None, engines=(), skipped=())),
        ("openvino", ("bf16", "int8"), [], None,
         Jobs(openvino=("bf16", "int8"), graphs=(), torch=None, engines=(), skipped=())),
        ("onnx", None, [], None, Jobs(graphs=("fp32",), torch=None, engines=(), skipped=())),
        ("onnx", "fp16", [], "sm75", Jobs(graphs=("fp16",), torch=None, engines=(), skipped=())),
        ("torch", None, [], None, Jobs(cpu=("fp32",), graphs=(), torch="fp16", engines=(), skipped=())),
        ("tensorrt-rtx", None, ["sm75", "sm89"], None,
         Jobs(graphs=("fp16",), torch=None, engines=rtx("sm75", "sm89"), skipped=())),
        ("tensorrt-rtx", None, [], None, Jobs(graphs=("fp16",), torch=None, engines=rtx(*RTX_ARCHS), skipped=())),
        ("tensorrt-rtx", "int8", [], "sm89", Jobs(graphs=("int8",), torch=None, engines=rtx("sm89"), skipped=())),
        ("tensorrt", "bf16", [], "sm90",
         Jobs(graphs=("bf16",), torch=None, engines=(EngineJob(target="tensorrt", sm="sm90"),), skipped=())),
        (("cpu", "openvino"), ("fp32", "bf16"), [], None,
         Jobs(cpu=("fp32",), openvino=("bf16", "fp32"), graphs=(), torch=None, engines=(), skipped=())),
        (("cpu",), None, [], None, Jobs(cpu=("fp32",), graphs=(), torch=None, engines=(), skipped=())),
        ("tensorrt", None, ["sm75"], "sm75",
         Jobs(graphs=("fp16",), torch=None, engines=(EngineJob(target="tensorrt", sm="sm75"),), skipped=())),
    ],
)  # fmt: skip
def test_jobs(target: Any, precision: Any, archs: list[str], sm: str | None, jobs: Jobs) -> None:
    assert plan_jobs(target, precision, archs, sm=lambda: sm) == jobs


@pytest.mark.parametrize(
    ("target", "precision", "archs", "sm", "error", "words"),
    [
        ("tensorrt-rtx", "fp32", ["sm75"], None, UsageError, "no fp32 on sm75.*no fp32 matrix product.*fp16"),
        ("tensorrt-rtx", "bf16", ["sm75"], None, UsageError, "Turing has no bf16"),
        ("tensorrt", "bf16", [], "sm75", UsageError, "Turing has no bf16"),
        ("tensorrt-rtx", None, ["sm90"], None, UsageError, "does not support sm90.*sm75, sm86, sm89, sm120"),
        ("tensorrt-rtx", None, ["sm61"], None, UsageError, "sm61 is unknown; nopad knows sm75"),
        ("tensorrt", None, [], None, EnvironmentProblem, "needs the GPU that it builds for.*tensorrt-rtx builds"),
        ("tensorrt", None, ["sm86"], "sm89", UsageError, "builds for the GPU at hand, sm89, alone"),
        ("onnx", "int8", [], None, UsageError, "int8 is for --target cpu, openvino, tensorrt and tensorrt-rtx"),
        ("cpu", "fp16", [], None, UsageError, "fp16 is for GPUs.*--target onnx writes it.*on CPUs is bf16"),
        ("openvino", ("fp32", "fp16"), [], None, UsageError, "fp16 is for GPUs"),
        ("openvino", ("bf16", "bf16"), [], None, UsageError, "different ones of --target cpu, openvino or onnx"),
        ("cpu", ("int8", "int8"), [], None, UsageError, "name one, or different ones"),
        ("tensorrt-rtx", ("fp16", "int8"), [], None, UsageError, "name one, or different ones"),
        (("cpu", "tensorrt"), None, [], "sm75", UsageError, "name one, or different ones of cpu, openvino, onnx"),
        (("cpu", "cpu"), None, [], None, UsageError, "name one, or different ones of cpu, openvino, onnx"),
        ("cpu", None, ["sm75"], None, UsageError, "--arch is for engines"),
        ("onnx", None, ["sm75"], None, UsageError, "--arch is for engines"),
    ],
)
def test_refusals_come_first(
    target: Any, precision: Any, archs: list[str], sm: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan_jobs(target, precision, archs, sm=lambda: sm)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        EnvironmentProblem, match=r"needs the package tensorrt_rtx: pip install 'nopad\[tensorrt-rtx\]'"
    ):
        plan_jobs("tensorrt-rtx", None, [], sm=no_gpu)
    jobs = plan_jobs("all", None, [], sm=no_gpu)
    assert (
        jobs.engines == ()
        and len(jobs.skipped) == 2
        and (jobs.cpu, jobs.graphs) == (("fp32",), ("fp16",))
        and jobs.torch == "fp16"
    )


@pytest.mark.parametrize(("target", "precision"), [("openvino", None), ("cpu", ("fp32", "bf16"))])
def test_a_graph_for_openvino_is_gated_by_it_so_it_must_be_here(
    target: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = r"--target \w+( --precision bf16)? needs OpenVINO: pip install 'nopad\[openvino\]'"
    with pytest.raises(EnvironmentProblem, match=words):
        plan_jobs(target, precision, [], sm=no_gpu)
    assert plan_jobs("cpu", ("fp32", "int8"), [], sm=no_gpu).openvino == ()


def test_all_makes_what_it_can_and_says_why_not_the_rest() -> None:
    jobs = plan_jobs("all", None, [], sm=no_gpu)
    assert jobs.engines == rtx(*RTX_ARCHS)
    assert len(jobs.skipped) == 1 and "needs the GPU that it builds for" in jobs.skipped[0]
    hopper = plan_jobs("all", None, [], sm=lambda: "sm90")
    assert EngineJob(target="tensorrt", sm="sm90") in hopper.engines and hopper.skipped == ()
    wide = plan_jobs("all", "fp32", [], sm=no_gpu)
    assert wide.graphs == ("fp32",) and "sm75" not in {job.sm for job in wide.engines}
    assert any("fp32 on sm75" in reason for reason in wide.skipped)


@pytest.mark.parametrize(
    ("target", "archs"), [("cpu", []), ("openvino", []), ("onnx", []), ("torch", []), ("tensorrt-rtx", ["sm75"])]
)
def test_a_target_for_which_the_gpu_at_hand_decides_nothing_does_not_ask_for_it(target: Any, archs: list[str]) -> None:
    def ask() -> str:
        raise AssertionError("asked for the GPU")

    assert plan_jobs(target, None, archs, sm=ask).skipped == ()


def test_all_asks_for_the_gpu_once() -> None:
    asked = []
    plan_jobs("all", None, [], sm=lambda: asked.append("sm") or "sm86")
    assert asked == ["sm"]


def test_every_target_is_opened_by_an_engine() -> None:
    assert {target for entry in ENGINES.values() for target in entry.targets} | {"all"} == set(TARGETS)
