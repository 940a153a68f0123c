"""TensorRT without a GPU: an engine runs its ONNX graph on the CPU, over the memory of `cuda_double`.

Strict where the real libraries are: two contexts cannot share a profile, shapes are held against it. Offers only names
that both have; a test compares them.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import platform
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from cuda_double import FakeCuda, cudaError_t
from reference_models import token_ids

from nopad.model.packing import PackedBatch, pack
from nopad.runtime.engines.base import EngineOptions, engine_factory
from nopad.runtime.engines.tensorrt import TensorRTEngine
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
HERE = f"{platform.system()}-{platform.machine()}"
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}
# A short and a long profile; a batch whose longest sequence has more than 128 tokens needs the second.
PROFILES = (
    ShapeProfile(tokens=(64, 128, 512), sequences=(1, 2, 4), longest=(1, 32, 128)),
    ShapeProfile(tokens=(64, 512, 1024), sequences=(1, 2, 3), longest=(1, 256, 512)),
)


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
    """`tensorrt` or `tensorrt_rtx`. Switches inject failures; `runs` are the input shapes of its runs."""

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
        for class_ in _classes(self, name):
            setattr(self, class_.__name__, class_)


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


@dataclasses.dataclass
class Machine:
    """An engine file on a machine of doubles."""

    cuda: FakeCuda
    library: FakeLibrary
    path: Path
    artifact: Artifact
    name: str

    def open(self, allow_host_code: bool = False, **changes: Any) -> TensorRTEngine:
        artifact = dataclasses.replace(self.artifact, **changes)
        options = EngineOptions(pad_token_id=0, allow_host_code=allow_host_code)
        engine = engine_factory(self.name)(self.path, artifact, options)
        assert isinstance(engine, TensorRTEngine)
        return engine


def batch(*lengths: int, multiple: int = 64) -> PackedBatch:
    return pack([token_ids(length) for length in lengths], multiple=multiple)
