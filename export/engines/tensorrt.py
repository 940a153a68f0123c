"""ONNX graph -> engine file: one builder over TensorRT and TensorRT-RTX, whose Python APIs are nearly equal.

Networks are strongly typed: they run in the graph's own types, and no builder flag chooses a precision. TensorRT builds
for the GPU at hand; TensorRT-RTX builds for a named GPU on any machine. Knows no checkpoint, no bundle, and not how an
engine is run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.export.engines.network_check import check_network
from nopad.export.errors import ExportError
from nopad.export.progress import Progress, silent
from nopad.model.packages import install_hint
from nopad.runtime.atomic import write_file
from nopad.runtime.engines.hardware import refusal
from nopad.runtime.engines.out_of_memory import is_out_of_memory
from nopad.runtime.engines.tensorrt_library import LIBRARIES, import_library, logger
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.profiles import ShapeProfile

# Versions of TensorRT: the oldest that we support, and the first that we do not know.
_OLDEST, _BEYOND = (10, 13), (12,)
_BAR = 1000  # steps of the progress bar


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build."""

    timing_cache: Path | None = None  # TensorRT's kernel timings, read and added to; TensorRT-RTX times nothing
    workspace_bytes: int | None = None  # scratch memory that one kernel may use on the GPU; None: all there is
    version_compatible: bool = False  # the engine runs on later TensorRT versions, too
    hardware_compatible: bool = False  # the engine runs on every GPU from Ampere on


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A built engine file."""

    file: str
    library: str  # and its version: "tensorrt_rtx 1.7.1.116"
    sm: str
    precision: str
    seconds: float  # parsing, checking, building, writing
    bytes: int
    layers: Mapping[str, int]  # of the parsed network: layer type -> how many


def engine_name(target: str, sm: str, precision: str, profiles: Sequence[ShapeProfile]) -> str:
    """The engine's file name: `model.tensorrt-rtx.sm75.fp16.p3.engine`."""
    return f"model.{target}.{sm}.{precision}.p{len(profiles)}.engine"


def build_engine(
    graph: Path,
    output: Path,
    *,
    target: str,
    sm: str,
    precision: str,
    profiles: Sequence[ShapeProfile],
    inputs: Mapping[str, Sequence[str]],
    outputs: Mapping[str, Sequence[str]],
    token_multiple: int = 1,
    options: BuildOptions | None = None,
    progress: Progress = silent,
) -> BuiltEngine:
    """Build the packed ONNX file `graph` into an engine file at `output`, for the GPU `sm` (TensorRT: the one at hand).

    `inputs` and `outputs` are the manifest's: name -> symbolic shape, of `tokens`, `sequences` and `longest`, which
    `profiles` bound (one optimization profile each). `precision` is checked against the parsed network, not chosen.
    The file appears when it is complete; Ctrl-C cancels the build.

    Raises `ExportError` (this can never be built, or the graph is not the manifest's), `EnvironmentProblem` (package,
    driver, memory or disk).
    """
    options = options or BuildOptions()
    require_buildable(target, sm, precision, options)
    shapes = [_shapes(number, profile, inputs, token_multiple) for number, profile in enumerate(profiles, 1)]
    if not shapes:
        raise ExportError("an engine needs at least one profile; plan some with nopad plan")
    start = time.perf_counter()
    trt = _library(target)
    library = f"{LIBRARIES[target]} {trt.__version__}"
    log = logger(trt)
    builder = _start_builder(trt, library, log)
    network, _parser = _parse(trt, builder, graph, library, log)
    layers = _check(trt, network, graph, inputs, outputs, precision)
    config = builder.create_builder_config()
    _configure(trt, config, target, sm, options)
    _add_profiles(builder, config, shapes, library, log)
    cache = _start_timing_cache(config, target, options)
    monitor = config.progress_monitor = _monitor(trt, progress, f"building {output.name}")
    log.drain()
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    if plan is None:
        raise _build_error(f"{library} cannot build {graph} for {sm}", log.drain())
    _write(output, memoryview(plan))
    if cache is not None:
        _write(cache, bytes(config.get_timing_cache().serialize()))
    return BuiltEngine(
        file=output.name,
        library=library,
        sm=sm,
        precision=precision,
        seconds=time.perf_counter() - start,
        bytes=output.stat().st_size,
        layers=layers,
    )


def _start_builder(trt: Any, library: str, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError):  # what the bindings raise when a builder cannot start
        raise EnvironmentProblem(f"{library} does not start{log.drain()}; see nopad doctor") from None


def _parse(trt: Any, builder: Any, graph: Path, library: str, log: Any) -> tuple[Any, Any]:
    """The network of an ONNX file, and the parser, which must outlive it: it owns the weights. Raises `ExportError`."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        first = f": {parser.get_error(0).desc()}" if parser.num_errors else log.drain()
        raise ExportError(f"{library} cannot read {graph}{first}; export the checkpoint again")
    return network, parser


def _check(
    trt: Any,
    network: Any,
    graph: Path,
    inputs: Mapping[str, Sequence[str]],
    outputs: Mapping[str, Sequence[str]],
    precision: str,
) -> dict[str, int]:
    try:
        return check_network(trt, network, inputs=inputs, outputs=outputs, precision=precision)
    except ExportError as error:
        raise ExportError(f"{graph}: {error}") from None


def _add_profiles(
    builder: Any, config: Any, shapes: Sequence[Mapping[str, Sequence[tuple[int, ...]]]], library: str, log: Any
) -> None:
    for number, ranges in enumerate(shapes, 1):
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in ranges.items():
            profile.set_shape(name, low, best, high)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{library} refuses profile {number}{log.drain()}; plan others with nopad plan")


def require_buildable(target: str, sm: str, precision: str, options: BuildOptions) -> None:
    """Refuse what can never be built, before any library is touched. Raises `ExportError`."""
    if target not in LIBRARIES:
        raise ExportError(f"unknown target {target!r}; engines are built for {', '.join(LIBRARIES)}")
    why = refusal(target, sm, precision)
    if why is None and options.version_compatible and target == "tensorrt-rtx":
        why = "--version-compatible is TensorRT's: a TensorRT-RTX engine runs on the version that built it"
    if why is None and options.hardware_compatible and target == "tensorrt-rtx":
        why = (
            "--hardware-compatible is TensorRT's: a TensorRT-RTX engine is for its --arch alone; build one for each, "
            "--arch sm86,sm89"
        )
    if why is None and options.hardware_compatible and sm == "sm75":
        why = "--hardware-compatible engines are for Ampere and newer, and this GPU is sm75; leave the option out"
    if why is not None:
        raise ExportError(why)


def _shapes(
    number: int, profile: ShapeProfile, inputs: Mapping[str, Sequence[str]], token_multiple: int
) -> dict[str, list[tuple[int, ...]]]:
    """Each input's smallest, best and largest shape."""
    if any(size % token_multiple for size in profile.tokens):
        raise ExportError(
            f"profile {number}: tokens {', '.join(map(str, profile.tokens))} must be multiples of {token_multiple}, "
            "the attention block; plan profiles for this model with nopad plan"
        )
    return {name: profile.shapes(sizes) for name, sizes in inputs.items()}


def _library(target: str) -> Any:
    """The library's module. Raises `EnvironmentProblem` if it is missing, damaged, or of an unknown version."""
    trt = import_library(target, f"--target {target}")
    parts = trt.__version__.split(".")
    if target == "tensorrt" and not _OLDEST <= tuple(map(int, parts[:2])) < _BEYOND:
        raise EnvironmentProblem(
            f"this is TensorRT {trt.__version__}, nopad builds with 10.13 to 11.x: {install_hint('tensorrt')}"
        )
    return trt


def _configure(trt: Any, config: Any, target: str, sm: str, options: BuildOptions) -> None:
    # On by default, it lets products of fp32 round their inputs to 10 bits: fp32 would not be fp32.
    config.clear_flag(trt.BuilderFlag.TF32)
    if target == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(getattr(trt.ComputeCapability, sm.upper()), 0):
            raise ExportError(f"TensorRT-RTX {trt.__version__} does not build for {sm}")
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _start_timing_cache(config: Any, target: str, options: BuildOptions) -> Path | None:
    """Give the builder the kernel timings of earlier builds; returns where to write them back."""
    if options.timing_cache is None or target == "tensorrt-rtx":
        return None
    data = b""
    try:
        with contextlib.suppress(FileNotFoundError):
            data = options.timing_cache.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"cannot read the timing cache {options.timing_cache}: {error.strerror}") from None
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another GPU or version
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return options.timing_cache


def _build_error(what: str, errors: str) -> Exception:
    if is_out_of_memory(errors):
        return EnvironmentProblem(
            f"{what}, memory ran out{errors}; allow more with --workspace, or plan smaller profiles"
        )
    return ExportError(f"{what}{errors or ': it gives no reason'}")


def _write(path: Path, data: Any) -> None:
    try:
        write_file(path, data)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write {path} ({memoryview(data).nbytes / 1e6:.1f} MB): {error.strerror}; free space, or name "
            "another place"
        ) from None


def _monitor(trt: Any, progress: Progress, message: str) -> Any:
    """Tells `progress` how far the build is. An exception of `progress`, or Ctrl-C, cancels it: see `stopped`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped: BaseException | None = None
            self._phases: dict[str, list[int]] = {}  # running, outermost first: steps, and how many are done
            self._shown = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [max(1, num_steps), 0]
            self._tell()

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name][1] = step + 1
            self._tell()
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _tell(self) -> None:
            # An exception must not pass through the library, which cannot take it.
            try:
                if self.stopped is None:
                    share = 0.0
                    for steps, done in reversed(list(self._phases.values())):
                        share = min(1.0, (done + share) / steps)
                    self._shown = max(self._shown, int(share * _BAR))  # a phase may end before its last step
                    progress(message, self._shown, _BAR)
            except BaseException as error:
                self.stopped = error

    return Monitor()
