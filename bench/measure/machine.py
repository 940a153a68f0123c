"""The machine of a benchmark: its description, free memory and thread settings. Reads Linux's /proc."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nopad.model.cpus import cpu_at_hand, usable_cores
from nopad.model.packages import version_of
from nopad.runtime.engines.gpus import gpus
from nopad.runtime.errors import UsageError

# Variables that set the threads of a library under test, whatever number it is given later.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
PACKAGES = ("nopad", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "optimum-onnx",
            "optimum-intel", "openvino", "sentence-transformers", "fastembed", "zentorch", "flash-attn", "tensorrt",
            "tensorrt-rtx")  # fmt: skip
# Files with the memory limit of the control group and its use: version 2, then 1.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def check_threads(threads: int, environment: Mapping[str, str]) -> None:
    """Refuse an environment that gives some library another number of threads. Raises `UsageError`."""
    if threads > usable_cores():
        raise UsageError(f"--threads {threads}: this process may use {usable_cores()} cores; ask for at most as many")
    for name in THREAD_VARIABLES:
        value = environment.get(name, "")
        if value.isdigit() and int(value) != threads:
            raise UsageError(
                f"{name}={value} in the environment contradicts --threads {threads}: every subject gets the same "
                f"number; unset it, or run with --threads {value}"
            )


def describe() -> dict[str, Any]:
    """What a reader must know about the machine, without its name."""
    return {
        "cpu": cpu_at_hand().model,
        "cores": usable_cores(),
        "isa": " ".join(cpu_at_hand().features),
        "memory_bytes": _meminfo("MemTotal"),
        "gpu": ", ".join(f"{gpu.name} ({gpu.sm}, {gpu.memory / 2**30:.0f} GiB)" for gpu in gpus()) or None,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of every package that may take part."""
    return {package: version for package in PACKAGES if (version := version_of(package)) is not None}


def available_bytes() -> int:
    """Memory that a new process may take, by the machine and by the limit of the control group."""
    free = _meminfo("MemAvailable") or 1 << 40
    for limit_file, use_file in _LIMITS:
        try:
            limit, used = (Path(name).read_text().strip() for name in (limit_file, use_file))
        except OSError:
            continue
        if limit.isdigit() and int(limit) < 1 << 60:  # version 1 writes a huge number for no limit
            free = min(free, int(limit) - int(used) + _reclaimable())
    return max(free, 0)


def _reclaimable() -> int:
    """Bytes of the control group that are cached files, which the kernel gives up before it kills."""
    for name in ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"):
        try:
            lines = Path(name).read_text().splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))
    return 0


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process now; None once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most resident memory that this process ever had."""
    return _status("VmHWM")


def age_seconds() -> float:
    """Seconds since this process was started (to a hundredth of a second, as the kernel counts)."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
