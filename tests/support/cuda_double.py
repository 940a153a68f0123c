"""CUDA without a GPU: device memory is host memory.

Strict where CUDA is: addresses, sizes and streams are checked, and work stays on its stream until the stream is waited
for. Has only names that cuda-python has; a test compares them.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

T4 = ("Tesla T4", 7, 5)
A10 = ("NVIDIA A10", 8, 6)


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


OK = cudaError_t.cudaSuccess


class FakeCuda(ModuleType):
    """`cuda.bindings.runtime` over host memory. `fail[name] = error` makes the next call of `name` fail."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, *gpus: tuple[str, int, int], memory: int = 1 << 30) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpus = gpus
        self.memory = memory  # of each GPU, bytes
        self.fail: dict[str, cudaError_t] = {}
        self.lost = False  # after a sticky error
        self.device: dict[int, Any] = {}  # address -> memory
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, tuple[int, list[Callable[[], None]]]] = {}  # handle -> GPU, work that waits
        self.allocations = 0
        self._last = OK
        self._next_stream = 1
        self._current = threading.local()

    @property
    def used(self) -> int:
        return sum(map(ctypes.sizeof, self.device.values()))

    def _refused(self, name: str) -> cudaError_t:
        error = self.fail.pop(name, cudaError_t.cudaErrorIllegalAddress if self.lost else OK)
        self.lost |= error == cudaError_t.cudaErrorIllegalAddress
        self._last = error or self._last
        return error

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        error = self._refused("cudaGetDeviceCount")
        return (error, None) if error else (OK, len(self.gpus))

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, 12040

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return OK, 13040

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        name, major, minor = self.gpus[device]
        return OK, SimpleNamespace(name=name.encode(), major=major, minor=minor, totalGlobalMem=self.memory)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        self._current.device = device
        return (self._refused("cudaSetDevice"),)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.memory - self.used, self.memory

    def cudaGetLastError(self) -> tuple[Any, ...]:
        last, self._last = self._last, OK
        return (last,)

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[Any, ...]:
        texts = {cudaError_t.cudaErrorMemoryAllocation: b"out of memory"}
        return OK, texts.get(error, b"an error")

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        error = self._refused("cudaMalloc")
        if not error and self.used + size > self.memory:
            error = self._last = cudaError_t.cudaErrorMemoryAllocation
        return (error, None) if error else (OK, self._allocate(self.device, size))

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        error = self._refused("cudaHostAlloc")
        return (error, None) if error else (OK, self._allocate(self.pinned, size))

    def _allocate(self, where: dict[int, Any], size: int) -> int:
        assert size > 0
        self.allocations += 1
        memory = ctypes.create_string_buffer(b"\xaa" * size, size)  # unwritten memory must not look like zeros
        address = ctypes.addressof(memory)
        where[address] = memory
        return address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.device[address]  # KeyError: never allocated, or freed twice
        return (OK,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.pinned[address]
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        error = self._refused("cudaStreamCreateWithFlags")
        if error:
            return error, None
        handle, self._next_stream = self._next_stream, self._next_stream + 1
        self.streams[handle] = (getattr(self._current, "device", 0), [])
        return OK, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.streams[stream]
        return (OK,)

    def enqueue(self, stream: int, work: Callable[[], None]) -> cudaError_t:
        gpu, queue = self.streams[stream]
        if gpu != getattr(self._current, "device", 0):
            return cudaError_t.cudaErrorInvalidResourceHandle
        queue.append(work)
        return OK

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        _, queue = self.streams[stream]
        while queue:
            queue.pop(0)()
        return (self._refused("cudaStreamSynchronize"),)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> tuple[Any, ...]:
        places = (self.pinned, self.device)
        source_side, to_side = places if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else places[::-1]
        if size > ctypes.sizeof(source_side[source]) or size > ctypes.sizeof(to_side[to]):
            return (cudaError_t.cudaErrorInvalidValue,)
        error = self._refused("cudaMemcpyAsync")
        return (error or self.enqueue(stream, lambda: ctypes.memmove(to, source, size) and None),)
