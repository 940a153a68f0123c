"""The GPUs of this machine, listed without a CUDA context: by cuda-python, else by nvidia-smi."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from nopad.runtime.engines.cuda import cuda_runtime, device_count, device_properties
from nopad.runtime.engines.hardware import sm_of
from nopad.runtime.errors import EngineError, EnvironmentProblem

_SECONDS = 20  # timeout of nvidia-smi


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    name: str
    sm: str  # sm75
    memory: int  # bytes in total


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA programs see, () if there are none. Raises nothing; creates no CUDA context.

    Asks cuda-python, or nvidia-smi where cuda-python is missing or does not match the driver.
    """
    try:
        cuda = cuda_runtime()
        rows = [device_properties(cuda, ordinal) for ordinal in range(device_count(cuda))]
    except (EnvironmentProblem, EngineError):
        return _ask_nvidia_smi()
    return tuple(Gpu(name=name, sm=sm, memory=memory) for name, sm, memory in rows)


def gpu_at_hand() -> str | None:
    """Compute capability of the first GPU (`sm75`); None without a GPU. May take as long as nvidia-smi."""
    return next((gpu.sm for gpu in gpus()), None)


def _ask_nvidia_smi() -> tuple[Gpu, ...]:
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
        rows = [line.rsplit(",", 2) for line in out.splitlines() if line.strip()]
        return tuple(
            Gpu(name=name.strip(), sm=sm_of(*map(int, capability.split("."))), memory=int(float(mebibytes)) << 20)
            for name, capability, mebibytes in rows
        )
    except (subprocess.SubprocessError, OSError, ValueError, TypeError):
        return ()
