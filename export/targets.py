"""What `--target` means on this machine: which graphs to write, which engines to build, and why not the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nopad.export.graph.precision import Precision
from nopad.model.packages import ENGINE_NEEDS, importable, install_hint
from nopad.runtime.engines.hardware import RTX_ARCHS, refusal
from nopad.runtime.engines.tensorrt_library import LIBRARIES
from nopad.runtime.errors import EnvironmentProblem, UsageError

Target = Literal["cpu", "onnx", "torch", "tensorrt", "tensorrt-rtx", "all"]
TARGETS: tuple[Target, ...] = get_args(Target)
ENGINE_TARGETS = tuple(LIBRARIES)


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """One engine to build."""

    target: str  # tensorrt, tensorrt-rtx
    sm: str


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Everything that goes into a bundle. Engines are built from the last of `graphs`."""

    cpu: tuple[Precision, ...] = ()  # of the graphs in ONNX Runtime's own CPU operators
    graphs: tuple[Precision, ...]  # in plain ONNX
    torch: Precision | None  # of the torch engine's weights on a GPU; None: without them
    engines: tuple[EngineJob, ...]
    skipped: tuple[str, ...]  # what was not asked for by name and cannot be built here, with the reason


def plan_jobs(
    target: Target, precision: Precision | Sequence[Precision] | None, archs: Sequence[str], *, sm: str | None
) -> Jobs:
    """Jobs of one export on a machine with a GPU of compute capability `sm` (None: without a GPU).

    Several precisions are for graphs alone: an engine is of one.

    What was asked for by name and cannot be built raises `UsageError` (it never can) or `EnvironmentProblem` (it can
    elsewhere), before anything is done; of `all` it is skipped with the reason.
    """
    wanted: tuple[Precision, ...] = (precision,) if isinstance(precision, str) else tuple(precision or ())
    if "int8" in wanted and target not in ("cpu", *ENGINE_TARGETS):
        raise UsageError("--precision int8 is for --target cpu, tensorrt and tensorrt-rtx")
    for one in wanted:
        if one in ("fp16", "bf16") and target == "cpu":
            raise UsageError(
                f"--precision {one} is for GPUs, a CPU computes it in fp32: --target onnx writes it for them"
            )
    if len(set(wanted)) < len(wanted) or len(wanted) > 1 and target not in ("cpu", "onnx"):
        raise UsageError(f"--precision {','.join(wanted)}: name one, or different ones of --target cpu or onnx")
    if archs and target not in ("all", *ENGINE_TARGETS):
        raise UsageError(f"--arch is for engines, and --target {target} has none")
    if target == "cpu":
        return Jobs(cpu=wanted or ("fp32",), graphs=(), torch=None, engines=(), skipped=())
    if target == "onnx":
        return Jobs(graphs=wanted or ("fp32",), torch=None, engines=(), skipped=())
    half: Precision = wanted[0] if wanted else "fp16"
    if target == "torch":  # the graph is for machines without torch, which have no GPU either
        return Jobs(cpu=("fp32",), graphs=(), torch=half, engines=(), skipped=())
    engines: list[EngineJob] = []
    skipped: list[str] = []
    for kind in ENGINE_TARGETS if target == "all" else (target,):
        if target == "all":
            try:
                found, why = _engines(kind, half, archs if kind == "tensorrt-rtx" else (), sm)
            except (UsageError, EnvironmentProblem) as error:
                found, why = [], [str(error)]
        else:
            found, why = _engines(kind, half, archs, sm)
        engines += found
        skipped += why
    return Jobs(
        cpu=("fp32",) if target == "all" else (),
        graphs=(half,),
        torch=half if target == "all" else None,
        engines=tuple(engines),
        skipped=tuple(skipped),
    )


def _engines(target: str, precision: str, archs: Sequence[str], sm: str | None) -> tuple[list[EngineJob], list[str]]:
    if not importable(LIBRARIES[target]):
        hint = install_hint(ENGINE_NEEDS[target].extra)
        raise EnvironmentProblem(f"--target {target} needs the package {LIBRARIES[target]}: {hint}")
    if target == "tensorrt":
        if sm is None:
            raise EnvironmentProblem(
                "--target tensorrt needs the GPU that it builds for, and there is none; --target tensorrt-rtx builds "
                "without one"
            )
        if any(arch != sm for arch in archs):
            raise UsageError(f"--arch {','.join(archs)}: TensorRT builds for the GPU at hand, {sm}, alone")
        wanted: Sequence[str] = [sm]
    else:
        wanted = archs or ([sm] if sm in RTX_ARCHS else RTX_ARCHS)
    reasons = {one: refusal(target, one, precision) for one in wanted}
    named = [reason for one, reason in reasons.items() if reason and (one in archs or target == "tensorrt")]
    if named:
        raise UsageError(named[0])
    able = [EngineJob(target=target, sm=one) for one, reason in reasons.items() if reason is None]
    if not able:
        raise UsageError("; ".join(reason for reason in reasons.values() if reason))
    return able, [reason for reason in reasons.values() if reason]
