"""Which engines may run a bundle on this machine, and in which order. Opens none of them.

On a CPU the order is that of the measured table, `nopad.runtime.engines.cpu_speeds`; a precision is never lowered
unless the caller asks. Detecting a GPU can take seconds, so it is done only where the choice depends on it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nopad.model.cpus import Cpu, cpu_at_hand
from nopad.model.packages import missing
from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import ENGINES, GPU_TARGETS, Engine, EngineFactory, EngineOptions, engine_factory
from nopad.runtime.engines.chain import Candidate
from nopad.runtime.engines.cpu_speeds import CpuSpeeds, speeds_of
from nopad.runtime.engines.hardware import CAPABILITIES, PRECISIONS
from nopad.runtime.errors import BundleError, EnvironmentProblem, UnverifiedError
from nopad.runtime.manifest import Artifact

# The `engine` of `load`: "auto", an engine's name, a factory, or a list of names and factories in order.
EngineChoice = str | EngineFactory | Sequence[str | EngineFactory]
log = logging.getLogger("nopad")


def engine_order(sm: str | None, cpu: Cpu | None = None) -> tuple[str, ...]:
    """Engines to try on a GPU of compute capability `sm` (None: no GPU) and this CPU, the fastest first.

    `cpu` None: the machine's own. On CPUs the order is that of fp32; an engine that is not installed comes last.
    """
    speeds = speeds_of(cpu or cpu_at_hand())
    on_cpu = [name for name, entry in ENGINES.items() if entry.cpu and (sm is None or not entry.gpu)]
    on_cpu.sort(key=lambda name: (bool(missing(ENGINES[name].need.modules)), -speeds.speed(name, "fp32")))
    if sm is None:
        return tuple(on_cpu)
    on_gpu = [name for name, entry in ENGINES.items() if entry.gpu]
    # FlashAttention-2 makes torch faster than onnx-cuda; GPUs newer than the table have it. That torch is slower than
    # onnx-cuda without it is an assumption: nobody has measured them on a T4.
    if sm not in CAPABILITIES or CAPABILITIES[sm].attention == "flash":
        on_gpu.remove("torch")
        on_gpu.insert(on_gpu.index("onnx-cuda"), "torch")
    return (*on_gpu, *on_cpu)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """An engine of the caller's choice and a file that it opens."""

    place: int  # of the engine in the choice
    name: str
    factory: EngineFactory
    artifact: Artifact
    sm: str | None  # of the GPU that it computes on; None: it computes on the CPU, or nothing depends on it
    spare: bool  # fp32, where the caller asked for bf16
    verified: bool  # on the engine, or the caller takes it unverified
    obstacle: str | None  # why the CPU cannot run it


def find_candidates(
    bundle: Bundle,
    choice: EngineChoice,
    options: EngineOptions,
    *,
    sm: Callable[[], str | None],
    precision: str | None = None,
    file: str | None = None,
    allow_unverified: bool = False,
    verify: bool = False,
) -> list[Candidate]:
    """The engines of `choice` that may run this bundle on this machine, in order.

    `precision`: of the files. None: on a CPU the most exact first, on a GPU the fastest; "auto": on a CPU the fastest
    of the measured table that is verified, installed and in this CPU's instructions, then the most exact; "bf16": on a
    CPU the bundle's fp32 files stand in where bf16 cannot run (no such instructions) or fails.
    `sm` returns the compute capability of the GPU (None: no GPU). It is called at most once, and not at all where
    `choice` names only CPU engines, or only they can open the bundle's files.

    `verify`: compare each artifact's files with their digests before an engine opens them.

    An artifact that has not passed the parity gate on an engine becomes a candidate that refuses to open, so that the
    reason is reported. Raises `BundleError` if no artifact fits, `UnverifiedError` if no fitting artifact is verified,
    `UsageError` for an unknown name.
    """
    named = precision if precision != "auto" else None
    speeds = speeds_of(cpu_at_hand())
    pairs = _pairs(bundle, choice, sm, named, file, allow_unverified)
    if all(pair.spare for pair in pairs):
        engines = f"engine {choice}" if isinstance(choice, str) else "these engines"
        raise BundleError(
            f"{bundle.path} has no file for {engines}{f' in {named}' if named else ''}; "
            f"it holds {_holds(bundle)}: export it with that target"
        )
    first = _fastest(pairs, speeds) if precision == "auto" else named
    pairs.sort(key=lambda pair: _rank(pair, first, speeds, mixed=choice == "auto"))
    candidates = [Candidate(name=p.name, artifact=p.artifact, open=_opener(bundle, p, options, verify)) for p in pairs]
    if not any(pair.verified for pair in pairs):
        candidates[0].open()  # raises UnverifiedError
    return candidates


def _pairs(
    bundle: Bundle,
    choice: EngineChoice,
    sm: Callable[[], str | None],
    precision: str | None,
    file: str | None,
    allow_unverified: bool,
) -> list[_Pair]:
    """Every engine of `choice` with every file of this precision and name that it opens, engine by engine."""
    cpu, detect_sm = cpu_at_hand(), functools.cache(sm)
    spare = "fp32" if precision == "bf16" else None  # of engines for CPUs, where bf16 cannot run or answers NaN
    artifacts = [artifact for artifact in bundle.manifest.artifacts if file in (None, artifact.file)]
    asked = [artifact for artifact in artifacts if precision in (None, artifact.precision)]
    if choice == "auto":
        for_gpus = any(artifact.target in GPU_TARGETS for artifact in asked)
        choices: Sequence[str | EngineFactory] = engine_order(detect_sm() if for_gpus else None)
    else:
        choices = choice if isinstance(choice, Sequence) and not isinstance(choice, str) else [choice]
    pairs: list[_Pair] = []
    for place, engine in enumerate(choices):
        name = engine if isinstance(engine, str) else "onnx-cpu"  # the caller's factory stands in for it
        factory = engine_factory(engine) if isinstance(engine, str) else engine
        fitting = [artifact for artifact in asked if artifact.target in ENGINES[name].targets]
        gpu = detect_sm() if ENGINES[name].gpu and fitting and (choice == "auto" or len(fitting) > 1) else None
        if not ENGINES[name].gpu:
            fitting += [a for a in artifacts if a.precision == spare and a.target in ENGINES[name].targets]
        for artifact in fitting:
            verified = allow_unverified or artifact.passed_on(name)
            obstacle = _obstacle(cpu, bundle, artifact) if isinstance(engine, str) and not ENGINES[name].gpu else None
            pairs.append(
                _Pair(
                    place=place,
                    name=name,
                    factory=factory,
                    artifact=artifact,
                    sm=gpu,
                    spare=artifact.precision == spare,
                    verified=verified,
                    obstacle=obstacle,
                )
            )
    return pairs


def _holds(bundle: Bundle) -> str:
    """Targets and precisions, for messages."""
    kinds = [f"{a.target} {a.precision}{f' for {a.sm}' if a.sm else ''}" for a in bundle.manifest.artifacts]
    return ", ".join(sorted(set(kinds))) or "nothing"


def _obstacle(cpu: Cpu, bundle: Bundle, artifact: Artifact) -> str | None:
    """Why an engine for CPUs cannot run a file here."""
    if artifact.precision != "bf16" or cpu.bf16:
        return None
    exact = any(other.precision == "fp32" for other in bundle.manifest.artifacts)
    todo = "its fp32 file is for this CPU" if exact else "export the bundle with --precision fp32 too"
    return f"{artifact.file} is in bf16, and this CPU has no bf16 instructions: {cpu}; {todo}"


def _fastest(pairs: Sequence[_Pair], speeds: CpuSpeeds) -> str | None:
    """The precision that the table calls the fastest of what can run on this CPU; None if the table knows none."""
    able = [p for p in pairs if p.verified and p.obstacle is None and not missing(ENGINES[p.name].need.modules)]
    best = max(able, key=lambda pair: speeds.speed(pair.name, pair.artifact.precision), default=None)
    return best.artifact.precision if best and speeds.speed(best.name, best.artifact.precision) else None


def _rank(pair: _Pair, first: str | None, speeds: CpuSpeeds, mixed: bool) -> tuple[Any, ...]:
    """The place of a pair: engine by engine on GPUs and in an order of the caller's, else by precision and speed.

    Of one engine, files for this GPU come before those for another, which it will refuse.
    """
    artifact, engine = pair.artifact, ENGINES[pair.name]
    foreign, target = artifact.sm not in (None, pair.sm), engine.targets.index(artifact.target)
    if pair.sm is not None:
        order = CAPABILITIES[pair.sm].precisions if pair.sm in CAPABILITIES else ("fp16", "bf16", "fp32", "int8")
        return False, False, pair.place, foreign, _place(artifact.precision, order), target
    exactness = artifact.precision != first, _place(artifact.precision, PRECISIONS)
    slowness = -speeds.speed(pair.name, artifact.precision)
    return pair.spare, mixed, 0 if mixed else pair.place, foreign, *exactness, slowness, pair.place, target


def _place(precision: str, order: Sequence[str]) -> int:
    return order.index(precision) if precision in order else len(order)


def _opener(bundle: Bundle, pair: _Pair, options: EngineOptions, verify: bool) -> Callable[[], Engine]:
    def open_engine() -> Engine:
        if not pair.verified:
            raise UnverifiedError(
                f"{bundle.path} has not passed the parity gate ({pair.artifact.file} is unverified on engine "
                f"{pair.name}): run nopad parity --engine {pair.name}, or open it with allow_unverified=True "
                "(--allow-unverified)"
            )
        if pair.obstacle is not None:
            log.warning("%s", pair.obstacle)
            raise EnvironmentProblem(pair.obstacle)
        if verify:
            bundle.check(bundle.files_of(pair.artifact))
        return pair.factory(bundle.file(pair.artifact.file), pair.artifact, options)

    return open_engine
