"""`nopad doctor`: what this machine can train, export and run, and what to do about the rest."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.table import Table

from nopad.model.cpus import Cpu, cpu_at_hand, usable_cores
from nopad.model.packages import COMMAND_NEEDS, PACKAGES, Need, Package, install_hint, missing, version_of
from nopad.runtime.console import common_options, emit
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.cpu_speeds import speeds_of
from nopad.runtime.engines.gpus import Gpu, gpus
from nopad.runtime.engines.hardware import CAPABILITIES
from nopad.runtime.engines.onnx_gpu import PROVIDERS
from nopad.runtime.engines.selection import engine_order
from nopad.runtime.errors import NopadError

BUNDLE = "self-check"  # of the bundle that was given


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str


def run_checks(bundle: str | None = None) -> list[Check]:
    """Everything that `doctor` reports, also about `bundle`. Heavy packages are imported only to run an engine."""
    checks = [
        Check(name="python", ok=True, detail=f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        *_cpu(cpu_at_hand()),
    ]
    devices = gpus()
    checks += [_gpu(gpu) for gpu in devices] or [
        Check(name="gpu", ok=True, detail="none found (no CUDA driver, no nvidia-smi): engines run on the CPU")
    ]
    checks += [_package(package) for package in PACKAGES.values() if package.purpose]
    checks += [_command(name, need) for name, need in COMMAND_NEEDS.items()]
    checks += [_engine(place, name) for place, name in enumerate(engine_order(devices[0].sm if devices else None), 1)]
    checks.append(_embedded())
    if bundle is not None:
        checks.append(_bundle(bundle))
    return checks


def _cpu(cpu: Cpu) -> list[Check]:
    """The CPU, whether bf16 is for it, and how fast each engine and precision is on its kind."""
    row = speeds_of(cpu)
    order = sorted(row.speeds, key=lambda pair: -row.speeds[pair])
    figures = ", ".join(f"{engine} {precision} {row.speeds[engine, precision]:g}" for engine, precision in order)
    bf16 = "no instructions for it: fp32 is taken in its place"
    if cpu.bf16:
        bf16 = "yes, where a bundle holds it: by --precision bf16 or auto, never unasked"
    return [
        Check(name="cpu", ok=True, detail=f"{cpu}; {usable_cores()} of {os.cpu_count()} cores"),
        Check(name="bf16", ok=True, detail=bf16),
        Check(
            name="cpu speeds",
            ok=True,
            detail=f"times onnx-cpu in fp32, {row.cpus}: {figures} ({row.source}); nopad tune measures your own",
        ),
    ]


def _gpu(gpu: Gpu) -> Check:
    capability = CAPABILITIES.get(gpu.sm)
    abilities = "unknown to this nopad"
    if capability:
        abilities = f"{', '.join(capability.precisions)}; {capability.attention} attention"
    return Check(name="gpu", ok=True, detail=f"{gpu.name}, {gpu.sm}, {gpu.memory / 2**30:.0f} GiB: {abilities}")


def _package(package: Package) -> Check:
    version = version_of(package.name)
    return Check(name=package.name, ok=version is not None, detail=f"{version or 'not installed'} ({package.purpose})")


def _command(name: str, need: Need) -> Check:
    packages = [PACKAGES[module].name for module in need.modules]
    lacks = [package for package in packages if version_of(package) is None]
    detail = f"no: {install_hint(need.extra)} (lacks {', '.join(lacks)})" if lacks else "yes"
    return Check(name=f"can {name}", ok=not lacks, detail=detail)


def _engine(place: int, name: str) -> Check:
    """One engine; `place` is its position in the order in which `load` tries engines here."""
    obstacle = _obstacle(name)
    return Check(
        name=f"engine {place}: {name}", ok=obstacle is None, detail=f"no: {obstacle}" if obstacle else "can run"
    )


def _obstacle(engine: str) -> str | None:
    """Why an engine cannot run here; None if no obstacle is known."""
    need = ENGINES[engine].need
    if lacks := missing(need.modules):
        speeds = speeds_of(cpu_at_hand()).speeds
        precision, best = max(
            ((precision, speed) for (name, precision), speed in speeds.items() if name == engine),
            key=lambda figure: figure[1],
            default=("", 0.0),
        )
        gain = f" ({precision}: {best:g} times onnx-cpu in fp32)" if best > 1 else ""
        return f"lacks {', '.join(lacks)}: {install_hint(need.extra)}{gain}"
    if engine in PROVIDERS:
        import onnxruntime

        if PROVIDERS[engine] not in onnxruntime.get_available_providers():
            return f"onnxruntime {onnxruntime.__version__} has no {PROVIDERS[engine]}; install onnxruntime-gpu"
    return None


def _embedded() -> Check:
    from nopad.runtime.predictor import load

    try:
        with load() as model:
            answer = model.predict(["a dull hour of my life that I want back"])[0]
    except Exception as error:  # a failure is a finding here, not the end of the report
        return Check(name="embedded model", ok=False, detail=f"{type(error).__name__}: {error}")
    return Check(
        name="embedded model",
        ok=True,
        detail=f"answers {answer.label!r} ({answer.score:.2f}) on engine {answer.engine}",
    )


def _bundle(path: str) -> Check:
    """Whether a bundle answers here as it was verified."""
    from nopad.runtime.predictor import load
    from nopad.runtime.selfcheck import self_check

    try:
        with load(path) as model:
            found = self_check(model)
    except NopadError as error:
        return Check(name=BUNDLE, ok=False, detail=str(error))
    return Check(name=BUNDLE, ok=True, detail=found.note)


@click.command()
@click.argument("bundle", required=False)
@common_options
def doctor(bundle: str | None, as_json: bool, quiet: bool) -> int:
    """Show what this machine can train, export and run, and whether BUNDLE answers here as transformers did.

    The answers to the probes in its manifest are compared under the parity gate's bounds. Exit code 4 if this machine
    cannot predict, or BUNDLE does not answer so.
    """
    checks = run_checks(bundle)
    if as_json:
        for check in checks:
            emit(asdict(check))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for style in ("", "bold", ""):
            table.add_column(style=style, overflow="fold")
        for check in checks:
            table.add_row("[green]ok[/]" if check.ok else "[yellow]--[/]", check.name, check.detail.replace("[", r"\["))
        Console(highlight=False).print(table)
    return 0 if all(check.ok for check in checks if check.name in ("can predict", "embedded model", BUNDLE)) else 4
