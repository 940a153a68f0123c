"""What `--target` means on this machine: which graphs to write, which engines to build, and why not the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nopad.model.packages import importable, install_hint
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.hardware import RTX_ARCHS, Precision, refusal
from nopad.runtime.engines.tensorrt_library import LIBRARIES
from nopad.runtime.errors import EnvironmentProblem, UsageError

Target = Literal["cpu", "openvino", "onnx", "torch", "tensorrt", "tensorrt-rtx", "all"]
TARGETS: tuple[Target, ...] = get_args(Target)
_GRAPHS: tuple[Target, ...] = ("cpu", "openvino", "onnx")  # of which a bundle may hold several


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """One engine to build."""

    target: str  # of `tensorrt_library.LIBRARIES`
    sm: str


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Everything that goes into a bundle. Engines are built from the last of `graphs`."""

    cpu: tuple[Precision, ...] = ()  # of the graphs in ONNX Runtime's own CPU operators
    openvino: tuple[Precision, ...] = ()  # of the graphs for OpenVINO
    graphs: tuple[Precision, ...]  # in plain ONNX
    torch: Precision | None  # of the torch engine's weights on a GPU; None: without them
    engines: tuple[EngineJob, ...]
    skipped: tuple[str, ...]  # engines that nobody named and that cannot be built here, with the reason


def plan_jobs(
    target: Target | Sequence[Target],
    precision: Precision | Sequence[Precision] | None,
    archs: Sequence[str],
    *,
    sm: Callable[[], str | None],
) -> Jobs:
    """Jobs of one export on this machine.

    `sm` returns the compute capability of the machine's GPU, None without a GPU; it is called only where an engine's
    target needs it. Only graphs may have several precisions, and several targets: an engine has a single one.

    A target or GPU that was named and cannot be built for raises `UsageError` (never possible) or `EnvironmentProblem`
    (possible elsewhere), before anything is done; with `all` it is skipped, with the reason.
    """
    if not isinstance(target, str):
        return _merged([plan_jobs(name, precision, archs, sm=sm) for name in _graph_targets(target)])
    precisions: tuple[Precision, ...] = (precision,) if isinstance(precision, str) else tuple(precision or ())
    if "int8" in precisions and target not in ("cpu", "openvino", *LIBRARIES):
        raise UsageError("--precision int8 is for --target cpu, openvino, tensorrt and tensorrt-rtx")
    if "fp16" in precisions and target in ("cpu", "openvino"):
        raise UsageError("--precision fp16 is for GPUs, where --target onnx writes it; half precision on CPUs is bf16")
    if len(set(precisions)) < len(precisions) or len(precisions) > 1 and target not in _GRAPHS:
        raise UsageError(
            f"--precision {','.join(precisions)}: name one, or different ones of --target cpu, openvino or onnx"
        )
    if archs and target not in ("all", *LIBRARIES):
        raise UsageError(f"--arch is for engines, and --target {target} has none")
    if target in ("cpu", "openvino"):
        return _for_cpus(target, precisions or ("fp32",))
    if target == "onnx":
        return Jobs(graphs=precisions or ("fp32",), torch=None, engines=(), skipped=())
    half: Precision = precisions[0] if precisions else "fp16"
    if target == "torch":  # the graph is for machines without torch, which have no GPU either
        return Jobs(cpu=("fp32",), graphs=(), torch=half, engines=(), skipped=())
    gpu = functools.cache(sm)
    engines: list[EngineJob] = []
    skipped: list[str] = []
    for kind in LIBRARIES if target == "all" else (target,):
        if target == "all":
            try:
                jobs, reasons = _engines(kind, half, archs if kind == "tensorrt-rtx" else (), gpu)
            except (UsageError, EnvironmentProblem) as error:
                jobs, reasons = [], [str(error)]
        else:
            jobs, reasons = _engines(kind, half, archs, gpu)
        engines += jobs
        skipped += reasons
    return Jobs(
        cpu=("fp32",) if target == "all" else (),
        graphs=(half,),
        torch=half if target == "all" else None,
        engines=tuple(engines),
        skipped=tuple(skipped),
    )


def _graph_targets(targets: Sequence[Target]) -> Sequence[Target]:
    if len(targets) > 1 and (len(set(targets)) < len(targets) or any(target not in _GRAPHS for target in targets)):
        raise UsageError(f"--target {','.join(targets)}: name one, or different ones of {', '.join(_GRAPHS)}")
    return targets


def _merged(jobs: Sequence[Jobs]) -> Jobs:
    """The jobs of several targets as one; what two of them name is written once."""

    def every(field: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(name for job in jobs for name in getattr(job, field)))

    return Jobs(
        cpu=every("cpu"),
        openvino=every("openvino"),
        graphs=every("graphs"),
        torch=next((job.torch for job in jobs if job.torch), None),
        engines=every("engines"),
        skipped=every("skipped"),
    )


def _for_cpus(target: Target, precisions: Sequence[Precision]) -> Jobs:
    """ONNX Runtime has no bf16 kernels for x86, so OpenVINO's graph stands in for `--target cpu --precision bf16`."""
    openvino = tuple(name for name in precisions if target == "openvino" or name == "bf16")
    need = ENGINES["openvino"].need
    if openvino and not all(map(importable, need.modules)):
        why = "" if target == "openvino" else " --precision bf16"
        raise EnvironmentProblem(f"--target {target}{why} needs OpenVINO: {install_hint(need.extra)}")
    cpu = tuple(name for name in precisions if name not in openvino)
    return Jobs(cpu=cpu, openvino=openvino, graphs=(), torch=None, engines=(), skipped=())


def _engines(
    target: str, precision: str, archs: Sequence[str], gpu: Callable[[], str | None]
) -> tuple[list[EngineJob], list[str]]:
    """Engines to build for one target, and why none for its other GPUs. Raises `UsageError` or `EnvironmentProblem`."""
    if not importable(LIBRARIES[target]):
        hint = install_hint(ENGINES[target].need.extra)
        raise EnvironmentProblem(f"--target {target} needs the package {LIBRARIES[target]}: {hint}")
    if target == "tensorrt":
        here = gpu()
        if here is None:
            raise EnvironmentProblem(
                "--target tensorrt needs the GPU that it builds for, and there is none; --target tensorrt-rtx builds "
                "without one"
            )
        if any(arch != here for arch in archs):
            raise UsageError(f"--arch {','.join(archs)}: TensorRT builds for the GPU at hand, {here}, alone")
        sms: Sequence[str] = [here]
    else:
        sms = archs or _rtx_archs(gpu())
    reasons = {sm: refusal(target, sm, precision) for sm in sms}
    fatal = [reason for sm, reason in reasons.items() if reason and (sm in archs or target == "tensorrt")]
    if fatal:
        raise UsageError(fatal[0])
    refused = [reason for reason in reasons.values() if reason]
    if len(refused) == len(reasons):
        raise UsageError("; ".join(refused))
    return [EngineJob(target=target, sm=sm) for sm, reason in reasons.items() if reason is None], refused


def _rtx_archs(here: str | None) -> Sequence[str]:
    return [here] if here in RTX_ARCHS else RTX_ARCHS
