"""CUDA and TensorRT without a GPU: device memory is host memory, and an engine runs its ONNX graph on the CPU.

Strict where the real ones are: addresses, sizes and streams are checked, work waits on its stream until somebody waits
for it, two contexts cannot share a profile. The libraries' doubles offer only names that the real ones have; a test
compares them.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile

VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}
# A short and a long one; a batch whose longest sequence has more than 128 tokens needs the second.
PROFILES = (
    ShapeProfile(tokens=(64, 128, 512), sequences=(1, 2, 4), longest=(1, 32, 128)),
    ShapeProfile(tokens=(64, 512, 1024), sequences=(1, 2, 3), longest=(1, 256, 512)),
)
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
        memory = ctypes.create_string_buffer(b"\xaa" * size, size)  # what nobody wrote must not look like zeros
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


def write_engine(path: Path, graph: Path, artifact: Artifact) -> None:
    """An engine file of the doubles: it names the ONNX graph that it stands for."""
    head = {
        "graph": str(graph),
        "inputs": {name: list(sizes) for name, sizes in artifact.inputs.items()},
        "outputs": {name: list(sizes) for name, sizes in artifact.outputs.items()},
        "profiles": [vars(profile) for profile in artifact.profiles],
    }
    body = json.dumps(head).encode() + b"\n" + b"weights " * 200
    path.write_bytes(b"ENGINE %08d " % len(body) + body)


class FakeLibrary(ModuleType):
    """`tensorrt` or `tensorrt_rtx`. Switches inject what goes wrong; `runs` are the input shapes it was given."""

    def __init__(self, name: str, cuda: FakeCuda) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # others look for it: torch, transformers
        self.__version__ = VERSIONS[name]
        self.runs: list[dict[str, tuple[int, ...]]] = []
        self.running = 0
        self.most_running = 0
        self.strategies: list[str] = []
        self.host_code_allowed = False  # by a Runtime
        self.no_context = False  # create_execution_context gives None
        self.no_run: str | None = None  # execute_async_v3 gives False, with this message
        self.no_profile: str | None = None  # set_optimization_profile_async gives False, with this message
        self.raises: Exception | None = None  # out of execute_async_v3
        self.cuda = cuda
        for one in _classes(self, name):
            setattr(self, one.__name__, one)


def _classes(library: FakeLibrary, kind: str) -> list[type]:
    cuda, rtx = library.cuda, kind == "tensorrt_rtx"
    taken: set[int] = set()  # profiles that a context has selected

    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        INTERNAL_ERROR = Severity.INTERNAL_ERROR
        ERROR = Severity.ERROR
        WARNING = Severity.WARNING

        def log(self, severity: Severity, message: str) -> None:
            raise NotImplementedError

    class DataType(enum.Enum):
        FLOAT = 0
        HALF = 1
        INT32 = 3
        INT64 = 8

    class TensorIOMode(enum.Enum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class TensorLocation(enum.Enum):
        DEVICE = 0
        HOST = 1

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC = 0
        ON_PROFILE_CHANGE = 1
        USER_MANAGED = 2

    class CudaGraphStrategy(enum.Enum):
        DISABLED = 0
        WHOLE_GRAPH_CAPTURE = 1

    class IRuntimeCache:
        def __init__(self) -> None:
            self._blob = b""

        def serialize(self) -> bytes:
            return self._blob or b"compiled"

        def deserialize(self, blob: bytes) -> bool:
            if blob.startswith(b"compiled"):
                self._blob = blob
            return bool(self._blob)

    class IRuntimeConfig:
        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            library.strategies.append(strategy.name)

    if rtx:

        def create_runtime_cache(self: Any) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self: Any, cache: IRuntimeCache) -> bool:
            library.cache = cache
            return True

        def set_graphs(self: Any, strategy: CudaGraphStrategy) -> None:
            library.strategies.append(strategy.name)

        IRuntimeConfig.create_runtime_cache = create_runtime_cache  # type: ignore[attr-defined]
        IRuntimeConfig.set_runtime_cache = set_runtime_cache  # type: ignore[attr-defined]
        IRuntimeConfig.cuda_graph_strategy = property(None, set_graphs)  # type: ignore[attr-defined]

    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._profile: int | None = None
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def __del__(self) -> None:
            taken.discard(self._profile)  # type: ignore[arg-type]

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            assert stream in cuda.streams
            if library.no_profile is not None or index in taken:
                self._engine._log.log(Severity.ERROR, library.no_profile or "the profile is in use")
                return False
            taken.add(index)
            self._profile = index
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
            if len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                self._shapes[name] = tuple(shape)
                return True
            self._engine._log.log(Severity.ERROR, f"{name}: {shape} is not within {low}..{high}")
            return False

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._shapes:
                return self._shapes[name]
            sizes = {
                size: length
                for tensor, shape in self._shapes.items()
                for size, length in zip(self._engine._head["inputs"][tensor], shape, strict=True)
            }
            return tuple(sizes.get(size, int(size) if size.isdigit() else -1) for size in self._engine._sizes(name))

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return address in cuda.device

        def execute_async_v3(self, stream: int) -> bool:
            if library.raises is not None:
                raise library.raises
            if library.no_run is not None:
                self._engine._log.log(Severity.ERROR, library.no_run)
                if "memory" in library.no_run:
                    cuda._last = cudaError_t.cudaErrorMemoryAllocation
                return False
            shapes = {name: self.get_tensor_shape(name) for name in self._addresses}
            return not cuda.enqueue(stream, lambda: self._run(shapes))

        def _run(self, shapes: dict[str, tuple[int, ...]]) -> None:
            library.running += 1
            library.most_running = max(library.most_running, library.running)
            library.runs.append({name: shapes[name] for name in self._engine._head["inputs"]})
            feeds = {name: self._memory(name, np.int64, shapes[name]).copy() for name in library.runs[-1]}
            (output,) = self._engine._head["outputs"]
            self._memory(output, np.float32, shapes[output])[...] = self._engine._session.run([output], feeds)[0]
            library.running -= 1

        def _memory(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
            memory = cuda.device[self._addresses[name]]
            return np.frombuffer(memory, dtype=dtype, count=int(np.prod(shape))).reshape(shape)

    class ICudaEngine:
        def __init__(self, head: dict[str, Any], log: Any) -> None:
            self._head, self._log = head, log
            self._names = [*head["inputs"], *head["outputs"]]
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(head["graph"], settings, providers=["CPUExecutionProvider"])

        num_io_tensors = property(lambda self: len(self._names))
        num_optimization_profiles = property(lambda self: len(self._head["profiles"]))

        def _sizes(self, name: str) -> list[str]:
            return (self._head["inputs"] | self._head["outputs"])[name]  # type: ignore[no-any-return]

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self._head["inputs"] else TensorIOMode.OUTPUT

        def get_tensor_location(self, name: str) -> TensorLocation:
            return TensorLocation.DEVICE

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType.INT64 if name in self._head["inputs"] else DataType.FLOAT

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            profile = self._head["profiles"][profile_index]
            return [tuple(profile[size][place] for size in self._sizes(name)) for place in range(3)]

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

        def create_execution_context(self, settings: Any) -> IExecutionContext | None:
            if isinstance(settings, ExecutionContextAllocationStrategy):
                library.strategies.append(settings.name)
            if library.no_context:
                self._log.log(Severity.ERROR, "something inside")
                return None
            return IExecutionContext(self)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self._log = logger

        @property
        def engine_host_code_allowed(self) -> bool:
            return library.host_code_allowed

        @engine_host_code_allowed.setter
        def engine_host_code_allowed(self, allowed: bool) -> None:
            library.host_code_allowed = allowed

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            self._log.log(Severity.VERBOSE, "reading")
            body = serialized_engine[16:]
            if serialized_engine[:7] != b"ENGINE " or int(serialized_engine[7:15]) != len(body):
                self._log.log(Severity.ERROR, "header.size == blobSize failed")
                return None
            return ICudaEngine(json.loads(body.split(b"\n")[0]), self._log)

    classes = [ILogger, DataType, TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy]
    classes += [IRuntimeConfig, IExecutionContext, ICudaEngine, Runtime]
    return [*classes, CudaGraphStrategy, IRuntimeCache] if rtx else classes


class GpuOnnxRuntime(ModuleType):
    """`onnxruntime-gpu` whose sessions run on the CPU. `active`: what sessions say they run on; `sessions`: what opened
    them; `stray`: operators that the provider leaves to the CPU.
    """

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, *available: str) -> None:
        super().__init__("onnxruntime")
        self.__spec__ = ModuleSpec("onnxruntime", None)
        self.available = [*available, "CPUExecutionProvider"]
        self.active: list[str] | None = None
        self.stray: tuple[str, ...] = ("Shape",)
        self.sessions: list[tuple[list[tuple[str, dict[str, str]]], dict[str, Any]]] = []
        self.fails_to_open: str | None = None
        self.fails_to_run: str | None = None

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9")

    def InferenceSession(self, path: str, settings: Any, providers: Any, **more: Any) -> Any:
        self.sessions.append((list(providers), more))
        if self.fails_to_open is not None:
            raise RuntimeError(self.fails_to_open)
        real = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        active = self.active or [*(name for name, _ in providers), "CPUExecutionProvider"]

        def run(names: Any, feeds: Any) -> Any:
            if self.fails_to_run is not None:
                raise RuntimeError(self.fails_to_run)
            return real.run(names, feeds)

        def assignment() -> list[Any]:
            nodes = [node for group in real.get_provider_graph_assignment_info() for node in group.get_nodes()]
            stray = [node for node in nodes if node.op_type in self.stray]
            groups = ((active[0], [node for node in nodes if node not in stray]), ("CPUExecutionProvider", stray))
            return [SimpleNamespace(ep_name=name, get_nodes=lambda held=held: held) for name, held in groups]

        return SimpleNamespace(
            get_inputs=real.get_inputs,
            get_session_options=real.get_session_options,
            get_providers=lambda: active,
            get_provider_graph_assignment_info=assignment,
            run=run,
        )
