"""GPU memory, streams and copies through cuda-python: without torch; CUDA is touched only when a device is opened.

Thin on purpose: a failed CUDA call raises a `CudaError` with CUDA's name of the error. Knows no engine.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.runtime.engines.hardware import sm_of
from nopad.runtime.errors import EngineError, EnvironmentProblem

# Errors after which the process has lost its CUDA context: every later call fails (CUDA runtime API, cudaError_t).
_STICKY = frozenset(
    (
        "cudaErrorAssert",
        "cudaErrorECCUncorrectable",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalAddress",
        "cudaErrorIllegalInstruction",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorMisalignedAddress",
    )
)


class CudaError(EngineError):
    """A CUDA call failed. `name`: the error's (`cudaErrorIllegalAddress`); `sticky`: this process has lost CUDA."""

    def __init__(self, name: str, doing: str, reason: str) -> None:
        self.name = name
        self.sticky = name in _STICKY
        end = "; this process cannot use CUDA any more: restart it" if self.sticky else ""
        super().__init__(f"{doing}: {name} ({reason}){end}")


class OutOfDeviceMemoryError(CudaError):
    """The GPU (or page-locked host memory) is full."""


def cuda_runtime() -> Any:
    """The CUDA runtime's Python bindings. Raises `EnvironmentProblem` where cuda-python is missing."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EnvironmentProblem(f"CUDA needs the package cuda-python ({error}): pip install cuda-python") from None


def device_count(cuda: Any) -> int:
    """Number of GPUs that CUDA sees, at least 1. Raises `EnvironmentProblem` without a GPU or a recent driver."""
    error, count = cuda.cudaGetDeviceCount()
    if error == cuda.cudaError_t.cudaSuccess and count > 0:
        return int(count)
    if error == cuda.cudaError_t.cudaErrorInsufficientDriver:
        _, driver = cuda.cudaDriverGetVersion()  # 0 without a driver; 12040 is CUDA 12.4
        _, runtime = cuda.cudaRuntimeGetVersion()
        if not driver:
            raise EnvironmentProblem("no NVIDIA driver on this machine (cudaErrorInsufficientDriver): install it")
        raise EnvironmentProblem(
            f"the NVIDIA driver is for CUDA {_version(driver)}, cuda-python for {_version(runtime)}: update the "
            f"driver, or pip install 'cuda-python=={driver // 1000}.*'"
        )
    name = "" if error == cuda.cudaError_t.cudaSuccess else f" ({error.name})"
    raise EnvironmentProblem(f"no GPU that CUDA can use on this machine{name}; is CUDA_VISIBLE_DEVICES right?")


def device_properties(cuda: Any, ordinal: int) -> tuple[str, str, int]:
    """Name, compute capability (`sm75`) and bytes of memory of a GPU. Raises `CudaError`; makes no CUDA context."""
    properties = _value_of(cuda, cuda.cudaGetDeviceProperties(ordinal), "reading the GPU")
    return _text(properties.name), sm_of(properties.major, properties.minor), int(properties.totalGlobalMem)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _text(value: bytes | str) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text.rstrip("\0")


def _value_of(cuda: Any, result: tuple[Any, ...], doing: str) -> Any:
    """The value of a CUDA call, which returns (error, value). Raises `CudaError`."""
    error, *values = result
    if error == cuda.cudaError_t.cudaSuccess:
        return values[0] if values else None
    cuda.cudaGetLastError()  # else CUDA reports it again at the next call
    _, reason = cuda.cudaGetErrorString(error)
    kind = OutOfDeviceMemoryError if error == cuda.cudaError_t.cudaErrorMemoryAllocation else CudaError
    raise kind(error.name, doing, _text(reason))


class Device:
    """One opened GPU. CUDA keeps the current device per thread: call `use` first in every thread."""

    def __init__(self, ordinal: int) -> None:
        """Raises `EnvironmentProblem` (no cuda-python, driver or GPU) or `CudaError`."""
        self.cuda = cuda_runtime()
        device_count(self.cuda)
        self.ordinal = ordinal
        self.name, self.sm, _ = device_properties(self.cuda, ordinal)

    def check(self, result: tuple[Any, ...], doing: str) -> Any:
        """The value of a CUDA call's result. Raises `CudaError`, `OutOfDeviceMemoryError`; `doing` names the work."""
        return _value_of(self.cuda, result, doing)

    def use(self) -> None:
        """Make it the calling thread's device."""
        self.check(self.cuda.cudaSetDevice(self.ordinal), f"opening {self.name}")

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all."""
        free, total = self.cuda.cudaMemGetInfo()[1:]
        return int(free or 0), int(total or 0)

    def last_error(self) -> str | None:
        """Return, and clear, CUDA's name of this thread's last error; None if there is none."""
        (error,) = self.cuda.cudaGetLastError()
        return None if error == self.cuda.cudaError_t.cudaSuccess else str(error.name)

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size: int, stream: Stream) -> None:
        """Enqueue a copy of `size` bytes to the device."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        result = self.cuda.cudaMemcpyAsync(target.pointer, source.pointer, size, kind, stream.handle)
        self.check(result, "copying inputs to the GPU")

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size: int, stream: Stream) -> None:
        """Enqueue a copy of `size` bytes from the device."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        result = self.cuda.cudaMemcpyAsync(target.pointer, source.pointer, size, kind, stream.handle)
        self.check(result, "copying outputs from the GPU")


class Stream:
    """A queue of GPU work that does not synchronise with the default stream."""

    def __init__(self, device: Device) -> None:
        self._device = device
        flags = device.cuda.cudaStreamNonBlocking
        self._stream: Any = device.check(device.cuda.cudaStreamCreateWithFlags(flags), "creating a stream")

    @property
    def handle(self) -> int:
        """The address of the stream, as TensorRT expects it."""
        return int(self._stream)

    def wait(self) -> None:
        """Wait for all enqueued work. Raises `CudaError` if any of it failed."""
        self._device.check(self._device.cuda.cudaStreamSynchronize(self._stream), "running on the GPU")

    def close(self) -> None:
        """Release it; a second call does nothing. Errors are ignored: nothing can be done about them."""
        if self._stream is not None:
            self._device.cuda.cudaStreamDestroy(self._stream)
        self._stream = None


class DeviceBuffer:
    """Bytes on the GPU."""

    def __init__(self, device: Device, size: int) -> None:
        """Raises `OutOfDeviceMemoryError`."""
        self._device = device
        self.size = size
        doing = f"allocating {size / 1e6:.1f} MB on {device.name}"
        self.pointer = int(device.check(device.cuda.cudaMalloc(size), doing))

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self.pointer:
            self._device.cuda.cudaFree(self.pointer)
        self.pointer = 0


class PinnedBuffer:
    """Page-locked bytes on the host, from and to which the GPU copies asynchronously."""

    def __init__(self, device: Device, size: int) -> None:
        """Raises `OutOfDeviceMemoryError`."""
        self._device = device
        self.size = size
        doing = f"page-locking {size / 1e6:.1f} MB of host memory"
        self.pointer = int(device.check(device.cuda.cudaHostAlloc(size, device.cuda.cudaHostAllocDefault), doing))

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Its first bytes as an array, not a copy: use it only before `close`."""
        count = int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_uint8 * self.size).from_address(self.pointer)
        return np.frombuffer(memoryview(memory), dtype=dtype, count=count).reshape(shape)

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self.pointer:
            self._device.cuda.cudaFreeHost(self.pointer)
        self.pointer = 0
