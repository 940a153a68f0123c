"""Which engines may run a bundle on this machine, and in which order. Opens none of them.

Detecting a GPU can take seconds, so it is done only where the choice depends on it.
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

# The `engine` of `load`: "auto", an engine's name, a factory, or a list of names and factories in order.
EngineChoice = str | EngineFactory | Sequence[str | EngineFactory]


def engine_order(sm: str | None) -> tuple[str, ...]:
    """Engines to try on a GPU of compute capability `sm` (None: no GPU), the fastest first."""
    if sm is None:
        return tuple(sorted((name for name, entry in ENGINES.items() if entry.cpu), key=lambda name: ENGINES[name].gpu))
    order = list(ENGINES)
    # FlashAttention-2 makes torch faster than onnx-cuda; GPUs newer than the table have it. That torch is slower than
    # onnx-cuda without it is an assumption: nobody has measured them on a T4.
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
    """The engines of `choice` that may run this bundle on this machine, in order.

    `sm` returns the compute capability of the GPU (None: no GPU). It is called at most once, and not at all where
    `choice` names only CPU engines, or only they can open the bundle's files.

    An artifact that has not passed the parity gate on an engine becomes a candidate that refuses to open, so that the
    reason is reported. Raises `BundleError` if no artifact fits, `UnverifiedError` if no fitting artifact is verified,
    `UsageError` for an unknown name.
    """
    artifacts = [a for a in bundle.manifest.artifacts if precision in (None, a.precision) and file in (None, a.file)]
    detect_sm = functools.cache(sm)
    if choice == "auto":
        for_gpus = any(artifact.target in GPU_TARGETS for artifact in artifacts)
        choices: Sequence[str | EngineFactory] = engine_order(detect_sm() if for_gpus else None)
    else:
        choices = choice if isinstance(choice, Sequence) and not isinstance(choice, str) else [choice]
    candidates: list[Candidate] = []
    verified: list[bool] = []
    for engine in choices:
        name = engine if isinstance(engine, str) else "onnx-cpu"  # the caller's factory stands in for it
        factory = engine_factory(engine) if isinstance(engine, str) else engine
        fitting = [artifact for artifact in artifacts if artifact.target in ENGINES[name].targets]
        if len(fitting) > 1:
            fitting = _by_preference(fitting, name, detect_sm() if ENGINES[name].gpu else None)
        for artifact in fitting:
            verified.append(allow_unverified or artifact.passed_on(name))
            opener = _opener(bundle, artifact, factory, options) if verified[-1] else _refusal(bundle, artifact, name)
            candidates.append(Candidate(name=name, artifact=artifact, open=opener))
    if not candidates:
        engines = f"engine {choice}" if isinstance(choice, str) else "these engines"
        raise BundleError(
            f"{bundle.path} has no file for {engines}{f' in {precision}' if precision else ''}; "
            f"it holds {_holds(bundle)}: export it with that target"
        )
    if not any(verified):
        candidates[0].open()  # raises UnverifiedError
    return candidates


def _holds(bundle: Bundle) -> str:
    """Targets and precisions, for messages."""
    kinds = [f"{a.target} {a.precision}{f' for {a.sm}' if a.sm else ''}" for a in bundle.manifest.artifacts]
    return ", ".join(sorted(set(kinds))) or "nothing"


def _by_preference(artifacts: Sequence[Artifact], engine: str, sm: str | None) -> list[Artifact]:
    """Artifacts of one engine, the best first: this GPU's before another's (which will refuse), then by precision."""
    # Half precision is fast on GPUs and slow on CPUs; this is the order for CPUs.
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
