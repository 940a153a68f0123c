"""TensorRT and TensorRT-RTX: one engine over two libraries whose Python APIs are nearly equal.

Opening checks, in this order: the library, cuda-python, driver and GPU, the GPU's compute capability, the library's
version, the platform, the file, and that its inputs and outputs are those of the manifest. Every optimization profile
has its own execution context, stream and buffers, all created at load: a run allocates nothing on the GPU.
Knows no tokenizer and no task.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nopad.model.packing import PackedBatch
from nopad.runtime.atomic import write_file
from nopad.runtime.batching import GPU_TOKENS
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.buckets import fill_bucket
from nopad.runtime.engines.compiled_cache import cache_folder
from nopad.runtime.engines.cuda import (
    Device,
    DeviceBuffer,
    OutOfDeviceMemoryError,
    PinnedBuffer,
    Stream,
    cuda_runtime,
    device_count,
)
from nopad.runtime.engines.hardware import refusal
from nopad.runtime.engines.out_of_memory import is_out_of_memory
from nopad.runtime.engines.tensorrt_library import LIBRARIES, import_library, logger, this_platform
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem, ShapeError
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile, choose_profile, shape_of
from nopad.runtime.types import FloatArray


class TensorRTEngine:
    """An engine file of TensorRT. Threads that need the same profile take turns; others run concurrently."""

    name = "tensorrt"
    token_budget = GPU_TOKENS
    threads: int | None = None
    library = LIBRARIES[name]
    version_parts = 2  # of the version that must match the build's: 10.13
    buckets = False  # whether batches are padded to a few bucket shapes

    def __init__(self, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        self.profiles = artifact.profiles
        self._path, self._artifact, self._pad_token_id = path, artifact, options.pad_token_id
        self._host_code = artifact.version_compatible and options.allow_host_code
        self._runtime: Any = None
        self._engine: Any = None
        self._slots: list[_Slot] = []
        trt = import_library(self.name, f"engine {self.name}")
        try:
            device = _device_for(artifact)
            self._require_fit(trt, device)
            device.use()
            self._open(trt, device)
        except EngineError as error:  # of CUDA; at load, it means that this engine cannot run here
            self.close()
            room = ""
            if isinstance(error, OutOfDeviceMemoryError):
                free, total = device.memory()
                room = f"; {free / 1e6:.0f} of {total / 1e6:.0f} MB are free: free more, or plan smaller profiles"
            raise EnvironmentProblem(f"engine {self.name} cannot start with {path}: {error}{room}") from None
        except BaseException:
            self.close()
            raise

    def _open(self, trt: Any, device: Device) -> None:
        log = logger(trt)
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {self._path}: {error.strerror}") from None
        self._runtime = trt.Runtime(log)
        if self._host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise _load_error(f"{self.library} {trt.__version__} cannot open {self._path} ({len(data)} bytes)", log)
        check_interface(trt, self._engine, self._path, self._artifact)
        settings = self._context_settings(trt)
        for number, profile in enumerate(self.profiles):
            context = self._engine.create_execution_context(settings)
            if context is None:
                raise _load_error(f"no execution context for profile {number + 1} of {self._path}", log)
            self._slots.append(_Slot(device, context, number, profile, self._artifact, log))

    def _require_fit(self, trt: Any, device: Device) -> None:
        """Refuse a file that this GPU, library or platform cannot run, before it is read."""
        artifact = self._artifact
        why = refusal(self.name, device.sm, artifact.precision)
        if why is not None:
            raise EnvironmentProblem(why)
        built, _, version = (artifact.built_with or "").partition(" ")
        if built != self.library or not version:
            raise BundleError(
                f"{artifact.file} was built with {artifact.built_with or 'an unknown library'}, not with "
                f"{self.library}: export the bundle again"
            )
        if artifact.version_compatible and not self._host_code:
            raise EnvironmentProblem(
                f"{artifact.file} is version-compatible: it carries native code that runs when it is opened. If you "
                "trust whoever made this bundle, say so: allow_host_code=True (--allow-host-code)"
            )
        same = version.split(".")[: self.version_parts] == trt.__version__.split(".")[: self.version_parts]
        if not same and not (self._host_code and _version(trt.__version__) >= _version(version)):
            release = ".".join(version.split(".")[: self.version_parts])
            raise EnvironmentProblem(
                f"{artifact.file} was built with {self.library} {version}, this is {trt.__version__}, and engines "
                f"are not interchangeable: pip install "
                f"'{self.library}=={release}{'.*' if self.version_parts < 4 else ''}'"
                ", or export again"
            )
        here = this_platform()
        if artifact.platform not in (None, here):
            raise EnvironmentProblem(f"{artifact.file} was built on {artifact.platform}, this is {here}: export again")

    def _context_settings(self, trt: Any) -> Any:
        """The argument of `create_execution_context`: allocate for the context's own profile, not for the largest."""
        return trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits of a batch. Raises `ShapeError` where no profile fits, else `EngineError`."""
        number = choose_profile(self.profiles, batch)
        if number is None:
            raise ShapeError(f"engine {self.name} has no profile for {shape_of(batch)}")
        slots = self._slots
        if not slots:
            raise EngineError(f"engine {self.name} is closed")
        filled = batch
        if self.buckets:
            filled = fill_bucket(
                batch,
                self.profiles[number],
                token_multiple=self._artifact.token_multiple,
                filler_id=self._pad_token_id,
            )
        logits = slots[number].run(filled)
        per_token = next(iter(self._artifact.outputs.values()))[0] == "tokens"
        return logits[: len(batch.input_ids if per_token else batch.pad_index)]

    def close(self) -> None:
        """Free contexts, buffers and streams, then the engine; waits for runs in progress."""
        slots, self._slots = self._slots, []
        for slot in slots:
            slot.close()
        self._engine = self._runtime = None


class TensorRTRTXEngine(TensorRTEngine):
    """An engine file of TensorRT-RTX, which compiles kernels at load, specialises them for shapes and captures graphs.

    So batches are padded to a few bucket shapes, and compiled kernels are kept in the user's cache folder. The library
    captures CUDA graphs itself: it knows when the kernels of a shape are final.
    """

    name = "tensorrt-rtx"
    library = LIBRARIES[name]
    version_parts = 4  # an engine runs only on the release that built it
    buckets = True

    def _open(self, trt: Any, device: Device) -> None:
        folder = cache_folder(self._path, trt.__version__, device.name)
        self._cache: Any = None
        self._cache_file = folder / "runtime.cache" if folder else None
        self._cached = b""
        super()._open(trt, device)
        self._keep_cache()

    def _context_settings(self, trt: Any) -> Any:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(super()._context_settings(trt))
        if hasattr(trt, "CudaGraphStrategy"):  # from 1.2
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._cache_file is not None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._cached = self._cache_file.read_bytes()
                self._cache.deserialize(self._cached)  # False: of another driver or GPU; the cache stays empty
            config.set_runtime_cache(self._cache)
        return config

    def _keep_cache(self) -> None:
        if self._cache is None or self._cache_file is None:
            return
        with contextlib.suppress(OSError, RuntimeError):  # it only saves time at the next load
            compiled = self._cache.serialize()
            data = b"" if compiled is None else bytes(compiled)
            if data and data != self._cached:
                write_file(self._cache_file, data)
                self._cached = data

    def close(self) -> None:
        """As `TensorRTEngine.close`, and keep compiled kernels for the next load."""
        if self._slots:
            self._keep_cache()
        self._cache = None
        super().close()


class _Slot:
    """One profile: its execution context, its stream, and its buffers at the profile's largest sizes."""

    def __init__(
        self, device: Device, context: Any, number: int, profile: ShapeProfile, artifact: Artifact, log: Any
    ) -> None:
        self._device, self._context, self._log = device, context, log
        self._lock = threading.Lock()
        self._inputs = tuple(artifact.inputs)
        (self._output,) = artifact.outputs
        self._buffers: dict[str, tuple[PinnedBuffer, DeviceBuffer]] = {}
        self._stream = Stream(device)
        try:
            if not context.set_optimization_profile_async(number, self._stream.handle):
                raise _load_error(f"profile {number + 1} of {artifact.file} cannot be selected", log)
            self._stream.wait()
            for name, sizes in artifact.inputs.items():
                shape = profile.shapes(sizes)[2]
                self._set(context.set_input_shape(name, shape), f"shape {shape} of {name} at its largest")
                self._allocate(name, shape, 8)
            self._allocate(self._output, tuple(context.get_tensor_shape(self._output)), 4)
        except BaseException:
            self.close()
            raise

    def _allocate(self, name: str, shape: Sequence[int], item_bytes: int) -> None:
        if min(shape) < 1:
            raise BundleError(f"output {name} has shape {tuple(shape)} at the profile's largest; export again")
        size = int(np.prod(shape, dtype=np.int64)) * item_bytes
        on_device = DeviceBuffer(self._device, size)
        try:
            self._buffers[name] = (PinnedBuffer(self._device, size), on_device)
        except EngineError:
            on_device.close()
            raise
        self._set(self._context.set_tensor_address(name, on_device.pointer), f"the address of {name}")

    def _set(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise EngineError(f"the engine refuses {what}{self._log.drain()}")

    def run(self, batch: PackedBatch) -> FloatArray:
        with self._lock:
            if self._context is None:
                raise EngineError("the engine is closed")
            try:
                return self._run(batch)
            except EngineError:
                with contextlib.suppress(EngineError):  # no copy may be in progress when the buffers are used again
                    self._stream.wait()
                raise
            except RuntimeError as error:  # raised by the bindings
                raise EngineError(f"{type(error).__name__} in the engine: {error}{self._log.drain()}") from None

    def _run(self, batch: PackedBatch) -> FloatArray:
        device, context, stream = self._device, self._context, self._stream
        device.use()
        for name in self._inputs:
            values = getattr(batch, name)
            self._set(context.set_input_shape(name, values.shape), f"shape {values.shape} of {name}")
            host, on_device = self._buffers[name]
            host.view(values.shape, np.int64)[...] = values
            device.copy_in(on_device, host, values.nbytes, stream)
        shape = tuple(context.get_tensor_shape(self._output))
        host, on_device = self._buffers[self._output]
        size = int(np.prod(shape, dtype=np.int64)) * 4
        if min(shape) < 1 or size > host.size:
            raise EngineError(f"the engine would give {self._output} of shape {shape}{self._log.drain()}")
        if not context.execute_async_v3(stream.handle):
            code = device.last_error()
            raise EngineError(f"the engine did not run{f': {code}' if code else ''}{self._log.drain()}")
        device.copy_out(host, on_device, size, stream)
        stream.wait()
        return host.view(shape, np.float32).copy()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        with self._lock:
            if self._context is None:
                return
            with contextlib.suppress(EngineError):
                self._device.use()
                self._stream.wait()
            self._context = None  # before the memory that it points to
            for pair in self._buffers.values():
                for buffer in pair:
                    buffer.close()
            self._buffers = {}
            self._stream.close()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _device_for(artifact: Artifact) -> Device:
    """The first GPU that the engine was built for."""
    if artifact.sm is None:
        raise BundleError(f"the manifest does not say which GPU {artifact.file} is for; export again")
    devices = [Device(ordinal) for ordinal in range(device_count(cuda_runtime()))]
    for device in devices:
        if runs_on(artifact.sm, device.sm):
            return device
    here = ", ".join(f"{device.name} ({device.sm})" for device in devices)
    raise EnvironmentProblem(
        f"{artifact.file} is for {artifact.sm}, this machine has {here}: export for {devices[0].sm} "
        "(nopad export --arch, or on this machine)"
    )


def runs_on(built_for: str, sm: str) -> bool:
    """Whether an engine for `sm86`, or (hardware-compatible) for `sm80+`, runs on a GPU of compute capability `sm`."""
    if built_for.endswith("+"):
        return int(sm.removeprefix("sm")) >= int(built_for.removeprefix("sm").removesuffix("+"))
    return sm == built_for


def _load_error(what: str, log: Any) -> Exception:
    errors = log.drain()
    if is_out_of_memory(errors):
        return EnvironmentProblem(f"{what}, the GPU has too little free memory{errors}; free some, or export again")
    return BundleError(f"{what}{errors}; export again")


def check_interface(trt: Any, engine: Any, path: Path, artifact: Artifact) -> None:
    """Compare the engine's tensors and profiles with the manifest's. Raises `BundleError` where they differ."""
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        on_device = engine.get_tensor_location(name) == trt.TensorLocation.DEVICE
        side[name] = engine.get_tensor_dtype(name) if on_device else "on the host"
    known = {"tokens", "sequences", "longest"}
    if not set(artifact.inputs) <= set(PackedBatch.__dataclass_fields__) or any(
        not set(sizes) <= known for sizes in artifact.inputs.values()
    ):
        raise BundleError(f"the manifest's inputs of {path} are not a packed stream's: {dict(artifact.inputs)}")
    for tensors, declared, dtype in (
        (inputs, artifact.inputs, trt.DataType.INT64),
        (outputs, artifact.outputs, trt.DataType.FLOAT),
    ):
        if {name: dtype for name in declared} != tensors:
            has = ", ".join(f"{name} {kind}" for name, kind in sorted(tensors.items()))
            raise BundleError(
                f"{path} has {has}, the manifest says {', '.join(sorted(declared))} of {dtype}; export again"
            )
    if len(outputs) != 1 or artifact.layout != "packed":
        raise BundleError(f"{path} is not the engine of a packed encoder with one output; export again")
    if not artifact.profiles or engine.num_optimization_profiles != len(artifact.profiles):
        raise BundleError(
            f"{path} has {engine.num_optimization_profiles} profiles, the manifest says {len(artifact.profiles)}; "
            "export again"
        )
    for number, profile in enumerate(artifact.profiles):
        for name, sizes in artifact.inputs.items():
            declared_shapes = profile.shapes(sizes)
            shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, number)]
            if shapes != declared_shapes:
                raise BundleError(
                    f"{path}, profile {number + 1}: {name} is {shapes}, the manifest says {declared_shapes}; "
                    "export again"
                )
