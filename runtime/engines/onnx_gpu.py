"""ONNX Runtime on NVIDIA GPUs: its CUDA and TensorRT execution providers. A silent fallback to the CPU is an error.

Both need `onnxruntime-gpu`. The plain `onnxruntime` package, or a GPU build whose libraries do not load, silently runs
on the CPU, so the engine checks after opening which provider really runs what.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nopad.model.packages import install_hint, version_of
from nopad.model.packing import PackedBatch
from nopad.runtime.batching import GPU_TOKENS
from nopad.runtime.engines.base import ENGINES, EngineOptions
from nopad.runtime.engines.compiled_cache import cache_folder
from nopad.runtime.engines.onnx_session import (
    OnnxEngine,
    Provider,
    import_onnxruntime,
    open_session,
    session_options,
)
from nopad.runtime.engines.out_of_memory import is_out_of_memory
from nopad.runtime.errors import BundleError, EnvironmentProblem, ShapeError
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile, choose_profile, shape_of
from nopad.runtime.types import FloatArray

# Engine -> its execution provider, which ONNX Runtime's CPU package lacks.
PROVIDERS = {"onnx-cuda": "CUDAExecutionProvider", "onnx-tensorrt": "TensorrtExecutionProvider"}
# TF32 would round fp32 graphs to 10 bits of mantissa, silently.
_CUDA: Provider = (PROVIDERS["onnx-cuda"], {"device_id": "0", "use_tf32": "0"})
_HEAVY = ("MatMul", "Gemm", "Attention")  # operators, or parts of their names, that must not stay on the CPU
_LIBRARIES = "the GPU, its driver, or the libraries of CUDA and cuDNN that it was built for"


class OnnxCudaEngine(OnnxEngine):
    """ONNX Runtime's CUDA provider; shape arithmetic stays on the CPU, as ONNX Runtime places it."""

    name = "onnx-cuda"
    token_budget = GPU_TOKENS

    def __init__(self, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        ort = import_onnxruntime(self.name)
        super().__init__(_open(ort, path, options, [_CUDA], self.name), path, artifact, options)


class OnnxTensorRTEngine(OnnxEngine):
    """ONNX Runtime's TensorRT provider, with one wide profile: it never leaves its first profile (onnxruntime#31624).

    TensorRT keeps the graph's types (`trt_fp16_enable` would let it choose others). The engine is built when a file is
    first opened on a GPU, which takes minutes, and is kept in the user's cache folder.
    """

    name = "onnx-tensorrt"
    token_budget = GPU_TOKENS

    def __init__(self, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        if artifact.layout != "packed":
            raise BundleError(f"engine {self.name} takes packed graphs; {path} is {artifact.layout}: use onnx-cuda")
        ort = import_onnxruntime(self.name)
        _require_provider(ort, PROVIDERS[self.name], self.name)
        profile = wide_profile(artifact.profiles or _plan_profiles(path, artifact))
        settings = {"device_id": "0", **_profile_options(profile, artifact)}
        versions = [f"{name} {version_of(name) or 'none'}" for name in ("onnxruntime-gpu", "tensorrt", "tensorrt-cu12")]
        folder = cache_folder(path, *versions, *settings.values())
        if folder is not None:
            for kind in ("engine", "timing"):
                settings |= {f"trt_{kind}_cache_enable": "1", f"trt_{kind}_cache_path": str(folder)}
        providers = [(PROVIDERS[self.name], settings), _CUDA]
        super().__init__(_open(ort, path, options, providers, self.name), path, artifact, options)
        self.profiles = (profile,)

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits of a batch. Raises `ShapeError` outside the profile: the provider would build a new engine for it."""
        if choose_profile(self.profiles, batch) is None:
            raise ShapeError(f"engine {self.name} has no profile for {shape_of(batch)}")
        return super().run(batch)


def wide_profile(profiles: Sequence[ShapeProfile]) -> ShapeProfile:
    """One profile that covers all of them, with the opt shape of the largest."""
    largest = max(profiles, key=lambda profile: profile.tokens[2])
    ranges = {
        name: (
            min(getattr(profile, name)[0] for profile in profiles),
            getattr(largest, name)[1],
            max(getattr(profile, name)[2] for profile in profiles),
        )
        for name in ("tokens", "sequences", "longest")
    }
    return ShapeProfile(**ranges)


def _plan_profiles(path: Path, artifact: Artifact) -> Sequence[ShapeProfile]:
    """Default profiles, for the bundle's max length, for a graph that has none."""
    from nopad.runtime.bundle import open_bundle
    from nopad.runtime.planning.search import default_profiles

    manifest = open_bundle(path.parent, verify=False).manifest
    return default_profiles(manifest.max_length, architecture=manifest.architecture, block=artifact.token_multiple)


def _profile_options(profile: ShapeProfile, artifact: Artifact) -> dict[str, str]:
    """`trt_profile_min_shapes` and so on: `input_ids:64,pad_index:1x1`."""
    shapes = {tensor: profile.shapes(sizes) for tensor, sizes in artifact.inputs.items()}
    return {
        f"trt_profile_{name}_shapes": ",".join(
            f"{tensor}:{'x'.join(map(str, shapes[tensor][place]))}" for tensor in artifact.inputs
        )
        for place, name in enumerate(("min", "opt", "max"))
    }


def _require_provider(ort: Any, provider: str, engine: str) -> None:
    if provider not in ort.get_available_providers():
        raise EnvironmentProblem(
            f"engine {engine} needs the {provider} of onnxruntime-gpu; ONNX Runtime {ort.__version__} here has "
            f"{', '.join(ort.get_available_providers())}: pip uninstall onnxruntime, then "
            f"{install_hint(ENGINES[engine].need.extra)}"
        )


def _open(ort: Any, path: Path, options: EngineOptions, providers: Sequence[Provider], engine: str) -> Any:
    """A session whose first provider does the work. Raises `EnvironmentProblem` if another would."""
    provider = providers[0][0]
    _require_provider(ort, provider, engine)
    settings = session_options(ort, options.threads, {"session.record_ep_graph_assignment_info": "1"})
    printed = io.StringIO()
    if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN where pip puts them; prints what it does not find
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls()
    try:
        session = open_session(ort, path, settings, providers)
    except BundleError as error:
        if is_out_of_memory(error):
            raise EnvironmentProblem(f"engine {engine}: the GPU has too little memory: {error}") from None
        raise
    active = session.get_providers()
    if active[0] != provider:
        missed = "; ".join(line for line in printed.getvalue().splitlines() if line.strip())
        raise EnvironmentProblem(
            f"engine {engine}: ONNX Runtime {ort.__version__} has {provider}, but it did not start and "
            f"{', '.join(active)} would answer; {_LIBRARIES} may be missing{f' ({missed})' if missed else ''}"
        )
    if hasattr(session, "get_provider_graph_assignment_info"):
        lost = misplaced_products(session.get_provider_graph_assignment_info(), provider)
        if lost:
            raise EnvironmentProblem(
                f"engine {engine}: {provider} left {len(lost)} of the matrix products to others, first {lost[0]}; "
                "the graph does not suit it, use another engine"
            )
    return session


def misplaced_products(assignment: Iterable[Any], provider: str) -> list[str]:
    """The matrix products that ONNX Runtime gave to another provider than `provider`."""
    return [
        f"{node.name} ({group.ep_name})"
        for group in assignment
        for node in group.get_nodes()
        if group.ep_name != provider and any(part in node.op_type for part in _HEAVY)
    ]
