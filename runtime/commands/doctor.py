"""`nopad doctor`: what this machine can train, export and run, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.console import common_options, emit
from nopad.runtime.engines.gpus import Gpu, gpus
from nopad.runtime.engines.hardware import CAPABILITIES
from nopad.runtime.engines.selection import engine_order

# package -> what it is for; the extra that brings it stands in nopad.runtime.cli.EXTRAS.
_PACKAGES = {
    "numpy": "runtime",
    "tokenizers": "runtime",
    "onnxruntime": "runtime: engine onnx-cpu",
    "torch": "train, export",
    "transformers": "train, export, parity",
    "safetensors": "train, export",
    "onnx": "export",
    "onnxscript": "export",
    "accelerate": "train",
    "datasets": "train",
    "scikit-learn": "train",
    "optimum-onnx": "export --exporter optimum",
}
# engine -> the modules it imports, and the extra that brings them.
_NEEDS = {
    "tensorrt": ("tensorrt", "cuda"),
    "tensorrt-rtx": ("tensorrt_rtx", "cuda"),
    "onnx-tensorrt": ("onnxruntime",),
    "onnx-cuda": ("onnxruntime",),
    "torch": ("torch", "safetensors"),
    "onnx-cpu": ("onnxruntime",),
}
_EXTRAS = (
    {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx", "torch": "export"}
    | dict.fromkeys(("onnx-tensorrt", "onnx-cuda"), "onnx-gpu")
    | {"onnx-cpu": "cpu"}
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str


def run_checks() -> list[Check]:
    """Everything `doctor` reports. Imports no heavy package but the engine it tries."""
    checks = [
        Check(name="python", ok=True, detail=f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        Check(name="cpu", ok=True, detail=f"{os.cpu_count()} cores; {_simd()}"),
    ]
    found = gpus()
    checks += [_gpu(gpu) for gpu in found] or [
        Check(name="gpu", ok=True, detail="none found (no CUDA driver, no nvidia-smi): engines run on the CPU")
    ]
    for package, purpose in _PACKAGES.items():
        try:
            detail, ok = f"{importlib.metadata.version(package)} ({purpose})", True
        except importlib.metadata.PackageNotFoundError:
            detail, ok = f"not installed ({purpose})", False
        checks.append(Check(name=package, ok=ok, detail=detail))
    for name, able in {"can train": "accelerate datasets scikit-learn torch transformers", "can export":
                       "onnx onnxscript torch transformers", "can predict": "onnxruntime"}.items():  # fmt: skip
        missing = [check.name for check in checks if check.name in able.split() and not check.ok]
        extra = {"can train": "train", "can export": "export", "can predict": "cpu"}[name]
        detail = f"no: pip install 'nopad[{extra}]' (lacks {', '.join(missing)})" if missing else "yes"
        checks.append(Check(name=name, ok=not missing, detail=detail))
    checks += _engines(found[0].sm if found else None)
    checks.append(_embedded())
    return checks


def _simd() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return "instruction sets unknown"
    return " ".join(flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags) or "no AVX2"


def _gpu(gpu: Gpu) -> Check:
    known = CAPABILITIES.get(gpu.sm)
    able = f"{', '.join(known.precisions)}; {known.attention} attention" if known else "unknown to this nopad"
    return Check(name="gpu", ok=True, detail=f"{gpu.name}, {gpu.sm}, {gpu.memory / 2**30:.0f} GiB: {able}")


def _importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook that forbids it
        return False


def _engines(sm: str | None) -> list[Check]:
    """The engines in the order in which `load` tries them here, and what each lacks."""
    checks = []
    for place, name in enumerate(engine_order(sm), 1):
        lacks = [package for package in _NEEDS[name] if not _importable(package)]
        detail = f"no: lacks {', '.join(lacks)}: pip install 'nopad[{_EXTRAS[name]}]'" if lacks else "can run"
        if not lacks and name in ("onnx-cuda", "onnx-tensorrt"):
            import onnxruntime

            provider = "CUDAExecutionProvider" if name == "onnx-cuda" else "TensorrtExecutionProvider"
            if provider not in onnxruntime.get_available_providers():
                detail = f"no: onnxruntime {onnxruntime.__version__} has no {provider}; install onnxruntime-gpu"
        checks.append(Check(name=f"engine {place}: {name}", ok=detail == "can run", detail=detail))
    return checks


def _embedded() -> Check:
    from nopad.runtime.predictor import load

    try:
        with load() as model:
            answer = model.predict(["an hour of my life I want back"])[0]
    except Exception as error:  # a report must not fail with what it reports
        return Check(name="embedded model", ok=False, detail=f"{type(error).__name__}: {error}")
    return Check(
        name="embedded model",
        ok=True,
        detail=f"answers {answer.label!r} ({answer.score:.2f}) on engine {answer.engine}",
    )


@click.command()
@common_options
def doctor(as_json: bool, quiet: bool, threads: int | None) -> int:
    """Show what this machine can train, export and run. Exit code 4 if it cannot predict."""
    checks = run_checks()
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
    return 0 if all(check.ok for check in checks if check.name in ("can predict", "embedded model")) else 4
