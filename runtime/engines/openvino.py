"""OpenVINO on the CPU: packed graphs in fp32, bf16 and int8, on x86 and ARM.

A file's precision is what OpenVINO is told to compute in: fp32 exactly, bf16 where the CPU has its instructions. The
matrices of an int8 file are integers, and each group of activations is rounded as it is multiplied (OpenVINO calls this
dynamic quantization), so no answer depends on its batch; everything else in such a file is computed in bf16, or fp32.

Shapes are dynamic, but OpenVINO prepares its kernels for every new length of the stream, so lengths are filled up to a
few (docs/findings.md has the cost). Nothing here asks the network for anything: OpenVINO's telemetry, which its package
would start as it is imported, is kept out.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nopad.model.cpus import cpu_at_hand, usable_cores
from nopad.model.packages import install_hint
from nopad.model.packing import PackedBatch, round_up
from nopad.runtime.batching import cpu_token_budget
from nopad.runtime.engines.base import ENGINES, EngineOptions
from nopad.runtime.engines.buckets import fill_stream
from nopad.runtime.engines.compiled_cache import cache_folder
from nopad.runtime.engines.feeds import graph_inputs, on_stream
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray

OLDEST = (2026, 0)
_TELEMETRY = "openvino_telemetry"
# The stream's length is a multiple of this: a new length costs 10 ms in ModernBERT-base, filler of 8 tokens nothing.
STREAM_STEP = 8
_FIRST_CORE = threading.Lock()


class OpenVinoEngine:
    """OpenVINO's CPU plugin. Calls from several threads have a request each, and take turns on the cores."""

    name = "openvino"
    profiles: tuple[ShapeProfile, ...] = ()

    def __init__(self, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        openvino = import_openvino()
        step = max(STREAM_STEP, artifact.token_multiple)
        self._artifact, self._pad_token_id = dataclasses.replace(artifact, token_multiple=step), options.pad_token_id
        threads = options.threads or usable_cores()
        bf16 = artifact.precision in ("bf16", "int8") and cpu_at_hand().bf16
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",  # all threads work on one request
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # no faster alone, and two processes would share the same cores
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": int((artifact.quantized or {}).get("group", 0)),
        }
        if options.cache_folder is not None:
            folder = cache_folder(path, openvino.__version__, base=options.cache_folder)
            settings |= {"CACHE_DIR": str(folder)} if folder else {}
        try:
            core = openvino_core()
            model = core.read_model(str(path))  # by path: weights beside the graph are mapped
            _keep_bf16(openvino, model)
            self._model: Any = core.compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError, and its own types that are not public
            raise BundleError(f"OpenVINO {openvino.__version__} cannot open {path}: {_reason(error)}") from None
        names = sorted(port.any_name for port in self._model.inputs)
        if names != sorted(artifact.inputs):
            raise BundleError(f"{path} takes {names}, the manifest says {sorted(artifact.inputs)}")
        self.threads: int | None = int(self._model.get_property("INFERENCE_NUM_THREADS"))  # at most the cores there are
        self.token_budget = cpu_token_budget(self.threads)
        self._idle: list[Any] = []  # infer requests that nobody uses now
        self._lock = threading.Lock()

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits of a batch."""
        model = self._model
        if model is None:
            raise EngineError("engine openvino is closed")
        if self._artifact.layout == "packed":
            batch = fill_stream(batch, round_up(batch.num_tokens, self._artifact.token_multiple), self._pad_token_id)
        feeds = graph_inputs(batch, self._artifact, self._pad_token_id)
        with self._lock:
            request = self._idle.pop() if self._idle else None
        try:
            request = request or model.create_infer_request()
            request.infer(feeds, share_inputs=True)
            logits = np.array(request.get_output_tensor(0).data, dtype=np.float32)  # a copy: the request is used again
        except Exception as error:
            raise EngineError(f"OpenVINO failed on {batch.num_tokens} tokens: {_reason(error)}") from None
        with self._lock:
            if self._model is not None:  # not closed meanwhile
                self._idle.append(request)
        return on_stream(logits, batch, self._artifact)

    def close(self) -> None:
        """Drop the model and its requests."""
        with self._lock:
            self._model = None
            self._idle.clear()


def openvino_core() -> Any:
    """OpenVINO's `Core`: one for everybody in this process, and never dropped.

    Each Core's CPU plugin sets an alternate signal stack for the thread that loads it; when it is dropped, it unmaps
    that one, and sets the one that it found. So where two were dropped in the order in which they came, the thread is
    left with an unmapped stack, and the next signal with a Python handler, as Ctrl-C, ends the process with signal 11.

    Raises `EnvironmentProblem` where OpenVINO is missing or too old.
    """
    with _FIRST_CORE:  # else two threads might make one each
        return _core()


@functools.cache
def _core() -> Any:
    return import_openvino().Core()


def import_openvino() -> Any:
    """The library, without its telemetry. Raises `EnvironmentProblem` where it is missing or too old."""
    hint = install_hint(ENGINES["openvino"].need.extra)
    try:
        with without_telemetry():
            openvino = importlib.import_module("openvino")
    except (ImportError, OSError) as error:  # OSError: from its shared libraries
        raise EnvironmentProblem(f"engine openvino needs OpenVINO ({error}): {hint}") from None
    version = str(getattr(openvino, "__version__", "0"))
    numbers = tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise EnvironmentProblem(f"engine openvino needs OpenVINO {needed} or newer, this is {version}: {hint}")
    return openvino


def _keep_bf16(openvino: Any, model: Any) -> None:
    """Mark what widens bf16 weights as OpenVINO marks it in compressed models of its own.

    Unmarked, the compiler folds it: it would hold all matrices of ModernBERT-base in fp32, 440 MB, beside the bf16 ones
    that its products read (docs/findings.md). The mark's name is OpenVINO's `ov::Decompression` (core/rt_info).
    """
    for node in model.get_ops():
        if node.get_type_name() == "Convert":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant" and source.get_element_type() == openvino.Type.bf16:
                node.get_rt_info()["decompression_0"] = True


@contextmanager
def without_telemetry() -> Iterator[None]:
    """For the first import of OpenVINO, or of a package that imports it.

    OpenVINO's package imports its converter, which reports every import to Intel unless this module is missing.
    """
    blocked = _TELEMETRY not in sys.modules
    if blocked:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if blocked:
            sys.modules.pop(_TELEMETRY, None)


def _reason(error: Exception) -> str:
    """The message of OpenVINO's exception without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '")))[:600]
