"""Which engines may answer for a bundle on this machine, and in which order. Opens none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import TARGETS, Engine, EngineFactory, EngineOptions, engine_factory
from nopad.runtime.engines.chain import Candidate
from nopad.runtime.engines.hardware import CAPABILITIES, CPU_ENGINES, DEFAULT_ENGINES
from nopad.runtime.errors import BundleError, UnverifiedError
from nopad.runtime.manifest import Artifact

# What `load` takes: "auto", an engine's name, a factory of your own, or several in order.
EngineChoice = str | EngineFactory | Sequence[str | EngineFactory]


def engine_order(sm: str | None) -> tuple[str, ...]:
    """Engines to try on a GPU of compute capability `sm` (None: without a GPU), the fastest first."""
    if sm is None:
        return CPU_ENGINES
    return CAPABILITIES[sm].engines if sm in CAPABILITIES else DEFAULT_ENGINES


def find_candidates(
    bundle: Bundle,
    choice: EngineChoice,
    options: EngineOptions,
    *,
    sm: str | None,
    precision: str | None = None,
    file: str | None = None,
    allow_unverified: bool = False,
) -> list[Candidate]:
    """What `choice` means for this bundle on a machine with a GPU of compute capability `sm`, in order.

    An artifact that has not passed the parity gate on an engine is a candidate that refuses to open, so that its
    reason is seen. Raises `BundleError` if no artifact fits, `UnverifiedError` if none of those that fit is verified,
    `UsageError` for an unknown name.
    """
    if choice == "auto":
        choices: Sequence[str | EngineFactory] = engine_order(sm)
    else:
        choices = choice if isinstance(choice, Sequence) and not isinstance(choice, str) else [choice]
    artifacts = [a for a in bundle.manifest.artifacts if precision in (None, a.precision) and file in (None, a.file)]
    found: list[tuple[bool, Candidate]] = []
    for one in choices:
        name = one if isinstance(one, str) else "onnx-cpu"  # a factory of your own stands in for it
        factory = engine_factory(one) if isinstance(one, str) else one
        fitting = [artifact for artifact in artifacts if artifact.target in TARGETS[name]]
        for artifact in sorted(fitting, key=lambda artifact: _preference(artifact, name, sm)):
            verified = allow_unverified or artifact.passed_on(name)
            opener = _opener(bundle, artifact, factory, options) if verified else _refusing(bundle, artifact, name)
            found.append((verified, Candidate(name=name, artifact=artifact, open=opener)))
    if not found:
        wanted = f"engine {choice}" if isinstance(choice, str) else "these engines"
        raise BundleError(
            f"{bundle.path} has no file for {wanted}{f' in {precision}' if precision else ''}; "
            f"it holds {_holds(bundle)}: export it with that target"
        )
    if not any(verified for verified, _ in found):
        found[0][1].open()  # says that it is unverified
    return [candidate for _, candidate in found]


def _holds(bundle: Bundle) -> str:
    """Targets and precisions, for messages."""
    kinds = [f"{a.target} {a.precision}{f' for {a.sm}' if a.sm else ''}" for a in bundle.manifest.artifacts]
    return ", ".join(sorted(set(kinds))) or "nothing"


def _preference(artifact: Artifact, engine: str, sm: str | None) -> tuple[bool, int, int]:
    # This GPU's engine before another's (which will say so); half precision is fast on GPUs and slow on CPUs.
    order: Sequence[str] = ("fp32", "int8", "fp16", "bf16")
    if engine != "onnx-cpu" and sm is not None:
        order = CAPABILITIES[sm].precisions if sm in CAPABILITIES else ("fp16", "bf16", "fp32", "int8")
    known = artifact.precision in order
    precision = order.index(artifact.precision) if known else len(order)
    return artifact.sm not in (None, sm), precision, TARGETS[engine].index(artifact.target)


def _opener(bundle: Bundle, artifact: Artifact, factory: EngineFactory, options: EngineOptions) -> Callable[[], Engine]:
    return lambda: factory(bundle.file(artifact.file), artifact, options)


def _refusing(bundle: Bundle, artifact: Artifact, engine: str) -> Callable[[], Engine]:
    def refuse() -> Engine:
        raise UnverifiedError(
            f"{bundle.path} has not passed the parity gate ({artifact.file} is unverified on engine {engine}): run "
            f"nopad parity --engine {engine}, or open it with allow_unverified=True (--allow-unverified)"
        )

    return refuse
