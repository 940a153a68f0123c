"""`nopad doctor`: what this machine can train, export and run, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.commands.console import common_options, emit

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
        Check(name="gpu", ok=True, detail=_gpus()),
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
    checks.append(_embedded())
    return checks


def _simd() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return "instruction sets unknown"
    return " ".join(flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags) or "no AVX2"


def _gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return "none found (no nvidia-smi): engines run on the CPU"
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        return f"nvidia-smi failed: {error}"
    return "; ".join(line.strip() for line in out.splitlines() if line.strip()) or "none"


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
