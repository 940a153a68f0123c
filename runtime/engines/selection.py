"""Which engines may answer for a bundle on this machine, and in which order. Opens none of them.

Asking a machine for its GPU can take seconds, so it is asked only where the answer decides something.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import ENGINES, GPU_TARGETS, Engine, EngineFactory, EngineOptions, engine_factory
from nopad.runtime.engines.chain import Candidate
from nopad.runtime.engines.hardware import CAPABILITIES
from nopad.runtime.errors import BundleError, UnverifiedError
from nopad.runtime.manifest import Artifact

# What `load` takes: "auto", an engine's name, a factory of your own, or several in order.
EngineChoice = str | EngineFactory | Sequence[str | EngineFactory]


def engine_order(sm: str | None) -> tuple[str, ...]:
    """Engines to try on a GPU of compute capability `sm` (None: without a GPU), the fastest first."""
    if sm is None:
        return tuple(sorted((name for name, entry in ENGINES.items() if entry.cpu), key=lambda name: ENGINES[name].gpu))
    order = list(ENGINES)
    # FlashAttention-2 makes torch faster than onnx-cuda; GPUs that are newer than the table have it. That torch is the
    # slower of the two without it is an assumption: nobody has measured them on a T4.
    if sm not in CAPABILITIES or CAPABILITIES[sm].attention == "flash":
        order.remove("torch")
        order.insert(order.index("onnx-cuda"), "torch")
    return tuple(order)


def find_candidates(
    bundle: Bundle,
    choice: EngineChoice,
    options: EngineOptions,
    *,
    sm: Callable[[], str | None],
    precision: str | None = None,
    file: str | None = None,
    allow_unverified: bool = False,
) -> list[Candidate]:
    """What `choice` means for this bundle on this machine, in order.

    `sm` says the compute capability of its GPU (None: without a GPU). It is called once at most, and not at all where
    only engines for CPUs are named, or only they can open what the bundle holds.

    An artifact that has not passed the parity gate on an engine is a candidate that refuses to open, so that its
    reason is seen. Raises `BundleError` if no artifact fits, `UnverifiedError` if none of those that fit is verified,
    `UsageError` for an unknown name.
    """
    artifacts = [a for a in bundle.manifest.artifacts if precision in (None, a.precision) and file in (None, a.file)]
    ask = functools.cache(sm)
    if choice == "auto":
        for_gpus = any(artifact.target in GPU_TARGETS for artifact in artifacts)
        choices: Sequence[str | EngineFactory] = engine_order(ask() if for_gpus else None)
    else:
        choices = choice if isinstance(choice, Sequence) and not isinstance(choice, str) else [choice]
    candidates: list[Candidate] = []
    verified: list[bool] = []
    for engine in choices:
        name = engine if isinstance(engine, str) else "onnx-cpu"  # a factory of your own stands in for it
        factory = engine_factory(engine) if isinstance(engine, str) else engine
        fitting = [artifact for artifact in artifacts if artifact.target in ENGINES[name].targets]
        if len(fitting) > 1:
            fitting = _by_preference(fitting, name, ask() if ENGINES[name].gpu else None)
        for artifact in fitting:
            verified.append(allow_unverified or artifact.passed_on(name))
            opener = _opener(bundle, artifact, factory, options) if verified[-1] else _refusal(bundle, artifact, name)
            candidates.append(Candidate(name=name, artifact=artifact, open=opener))
    if not candidates:
        wanted = f"engine {choice}" if isinstance(choice, str) else "these engines"
        raise BundleError(
            f"{bundle.path} has no file for {wanted}{f' in {precision}' if precision else ''}; "
            f"it holds {_holds(bundle)}: export it with that target"
        )
    if not any(verified):
        candidates[0].open()  # says that it is unverified
    return candidates


def _holds(bundle: Bundle) -> str:
    """Targets and precisions, for messages."""
    kinds = [f"{a.target} {a.precision}{f' for {a.sm}' if a.sm else ''}" for a in bundle.manifest.artifacts]
    return ", ".join(sorted(set(kinds))) or "nothing"


def _by_preference(artifacts: Sequence[Artifact], engine: str, sm: str | None) -> list[Artifact]:
    """What an engine opens, the best first: this GPU's before another's (which will say so), then by precision."""
    # Half precision is fast on GPUs and slow on CPUs.
    order: Sequence[str] = ("fp32", "int8", "fp16", "bf16")
    if sm is not None:
        order = CAPABILITIES[sm].precisions if sm in CAPABILITIES else ("fp16", "bf16", "fp32", "int8")

    def rank(artifact: Artifact) -> tuple[bool, int, int]:
        precision = order.index(artifact.precision) if artifact.precision in order else len(order)
        return artifact.sm not in (None, sm), precision, ENGINES[engine].targets.index(artifact.target)

    return sorted(artifacts, key=rank)


def _opener(bundle: Bundle, artifact: Artifact, factory: EngineFactory, options: EngineOptions) -> Callable[[], Engine]:
    return lambda: factory(bundle.file(artifact.file), artifact, options)


def _refusal(bundle: Bundle, artifact: Artifact, engine: str) -> Callable[[], Engine]:
    def refuse() -> Engine:
        raise UnverifiedError(
            f"{bundle.path} has not passed the parity gate ({artifact.file} is unverified on engine {engine}): run "
            f"nopad parity --engine {engine}, or open it with allow_unverified=True (--allow-unverified)"
        )

    return refuse
