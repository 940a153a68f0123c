"""TensorRT cannot be installed everywhere: every name that the builder uses is checked against a list of its API.

Two nets: a recording proxy over TensorRT-RTX during real builds (also as the module `tensorrt`, with only the names
that TensorRT has), and the attributes in the source itself.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reference_models import MODERNBERT, labels
from repository import DATA

import nopad.export.engines.network_check
import nopad.export.engines.tensorrt
from nopad.export.engines.tensorrt import BuildOptions, build_engine
from nopad.export.errors import ExportError
from nopad.export.graph.onnx import Graph, export_graph
from nopad.export.graph.precision import cast
from nopad.model.checkpoint.read_config import read_config
from nopad.model.encoder import build_encoder
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.profiles import ShapeProfile

rtx = pytest.importorskip("tensorrt_rtx", reason="needs: pip install 'nopad[tensorrt-rtx]'")

Names = dict[str, set[str]]
PROFILES = (
    ShapeProfile(tokens=(64, 64, 256), sequences=(1, 1, 4), longest=(1, 64, 256)),
    ShapeProfile(tokens=(64, 1024, 4096), sequences=(1, 8, 64), longest=(1, 128, 1024)),
)
# The RTX branch alone.
RTX_OWN = {
    ("module", "ComputeCapability"),
    ("ComputeCapability", "SM86"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}
WRAPPED = {"INetworkDefinition", "IBuilderConfig", "IOptimizationProfile", "ITimingCache", "ILayer", "ITensor"}
# What the sources' variables hold.
VARIABLES = {
    "trt": "module",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "layer": "ILayer",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "timings": "ITimingCache",
}


def api(library: str) -> Names:
    folder = DATA.parent / "tensorrt-api"
    found = sorted(folder.glob(f"{library}-*.json"))
    if not found:
        pytest.skip(f"no {folder}/{library}-*.json; set NOPAD_DATA to the folder beside the one with the API lists")
    raw = json.loads(found[0].read_text())
    names = {kind: set(members) for kind, members in raw.items() if kind != "(functions)"}
    return {**names, "module": {*names, *raw["(functions)"], "__version__"}}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    raw = {**MODERNBERT, **labels(2), "num_hidden_layers": 2, "architectures": ["ModernBertForSequenceClassification"]}
    encoder = build_encoder(read_config(raw))
    return export_graph(cast(encoder, "fp16"), tmp_path_factory.mktemp("graph") / "model.onnx")


class Recorder:
    """The names of the library that are used, and how."""

    def __init__(self, allowed: Names | None = None) -> None:
        self.used: set[tuple[str, str]] = set()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._allowed = allowed

    def note(self, kind: str, name: str) -> None:
        """Raises `AttributeError` for what the library would not have."""
        self.used.add((kind, name))
        if self._allowed is not None and name not in self._allowed[kind]:
            raise AttributeError(f"{kind} has no {name}")

    def wrap(self, value: Any) -> Any:
        """A proxy for an object of the library that has methods; shapes, enumerations and memory as they are."""
        kind = "ILayer" if type(value).__name__.endswith("Layer") else type(value).__name__
        return Proxy(self, value, kind) if kind in WRAPPED else value


class Proxy:
    """One object of the library."""

    def __init__(self, recorder: Recorder, value: Any, kind: str) -> None:
        object.__setattr__(self, "_proxied", (recorder, value, kind))

    def __getattr__(self, name: str) -> Any:
        recorder, value, kind = self._proxied
        recorder.note(kind, name)
        found = getattr(value, name)
        if not callable(found) or isinstance(found, type):
            return recorder.wrap(found)

        def call(*arguments: Any, **named: Any) -> Any:
            recorder.calls.append((name, arguments))
            plain = [argument._proxied[1] if isinstance(argument, Proxy) else argument for argument in arguments]
            return recorder.wrap(found(*plain, **named))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        recorder, proxied, kind = self._proxied
        recorder.note(kind, name)
        recorder.calls.append((name, (value,)))
        setattr(proxied, name, value)


class Enumeration:
    """The module's enumerations, and the classes that are derived from."""

    def __init__(self, recorder: Recorder, kind: str) -> None:
        self._recorder, self._kind = recorder, kind

    def __getattr__(self, name: str) -> Any:
        self._recorder.note(self._kind, name)
        return getattr(getattr(rtx, self._kind), name)


class Library:
    """TensorRT-RTX, or what TensorRT would be: the same library with only TensorRT's names."""

    def __init__(self, recorder: Recorder, version: str) -> None:
        self._recorder, self._version = recorder, version

    def __getattr__(self, name: str) -> Any:
        recorder = self._recorder
        if name == "__version__":
            return self._version
        if name.startswith("__"):
            raise AttributeError(name)
        recorder.note("module", name)
        if name in ("ILogger", "IProgressMonitor"):
            return getattr(rtx, name)
        if name not in ("Builder", "OnnxParser"):
            return Enumeration(recorder, name)

        def create(*arguments: Any) -> Any:
            plain = [argument._proxied[1] if isinstance(argument, Proxy) else argument for argument in arguments]
            return Proxy(recorder, getattr(rtx, name)(*plain), name)

        return create


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Put a recorded library in the place of `tensorrt_rtx` or `tensorrt`."""

    def put(module: str, version: str = rtx.__version__, allowed: Names | None = None) -> Recorder:
        recorder = Recorder(allowed)
        monkeypatch.setitem(sys.modules, module, Library(recorder, version))
        return recorder

    return put


def build(graph: Graph, output: Path, target: str, **changes: Any) -> Any:
    options: dict[str, Any] = {"inputs": graph.inputs, "outputs": graph.outputs, "token_multiple": graph.token_multiple}
    return build_engine(
        graph.file, output, target=target, sm="sm86", precision="fp16", profiles=PROFILES, **(options | changes)
    )


def shapes(recorder: Recorder) -> list[tuple[Any, ...]]:
    return [arguments for name, arguments in recorder.calls if name == "set_shape"]


def test_every_name_of_a_real_build_stands_in_tensorrts_api(
    graph: Graph, library: Callable[..., Recorder], tmp_path: Path
) -> None:
    trt, own = api("tensorrt"), api("tensorrt_rtx")
    recorder = library("tensorrt_rtx")
    build(graph, tmp_path / "engine", "tensorrt-rtx")
    assert len(recorder.used) > 30
    assert {(kind, name) for kind, name in recorder.used if name not in trt.get(kind, ())} == RTX_OWN
    assert all(name in own[kind] for kind, name in recorder.used)
    # Both profiles with all their inputs, and strongly typed.
    assert shapes(recorder) == [
        (name, *(tuple(getattr(profile, size)[place] for size in sizes) for place in range(3)))
        for profile in PROFILES
        for name, sizes in graph.inputs.items()
    ]
    assert [arguments for name, arguments in recorder.calls if name == "create_network"] == [
        (1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED),)
    ]
    assert [arguments for name, arguments in recorder.calls if name == "clear_flag"] == [(rtx.BuilderFlag.TF32,)]
    assert not [name for name, _ in recorder.calls if name == "set_flag"]


@pytest.fixture
def tensorrt(library: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recorder]:
    """The nearest thing to TensorRT: RTX's builder, set to a GPU behind the scenes, with only the names of TensorRT."""
    original = nopad.export.engines.tensorrt._configure

    def aim(trt: Any, config: Any, *rest: Any) -> None:
        original(trt, config, *rest)
        real = config._proxied[1]
        real.num_compute_capabilities = 1
        real.set_compute_capability(rtx.ComputeCapability.SM86, 0)

    def put(version: str) -> Recorder:
        monkeypatch.setattr(nopad.export.engines.tensorrt, "_configure", aim)
        return library("tensorrt", version, api("tensorrt"))

    return put


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops in TensorRT-RTX")
@pytest.mark.parametrize("version", ["10.13.2.6", "11.4.0.106"])
def test_the_tensorrt_branch_needs_only_tensorrts_names(
    version: str, graph: Graph, tensorrt: Callable[[str], Recorder], tmp_path: Path
) -> None:
    recorder = tensorrt(version)
    cache = tmp_path / "timings"
    built = build(graph, tmp_path / "engine", "tensorrt", options=BuildOptions(timing_cache=cache))
    assert built.library == f"tensorrt {version}" and built.bytes == (tmp_path / "engine").stat().st_size
    assert not {name for _, name in recorder.used} & {name for _, name in RTX_OWN}
    assert ("ITimingCache", "serialize") in recorder.used
    assert [arguments for name, arguments in recorder.calls if name == "create_timing_cache"] == [(b"",)]
    written = cache.read_bytes()
    assert len(written) > 100
    recorder.calls.clear()
    build(graph, tmp_path / "engine", "tensorrt", options=BuildOptions(timing_cache=cache))
    assert [arguments for name, arguments in recorder.calls if name == "create_timing_cache"] == [(written,)]


def test_a_timing_cache_that_cannot_be_read_or_written_is_named(
    graph: Graph, tensorrt: Callable[[str], Recorder], tmp_path: Path
) -> None:
    tensorrt("11.4.0.106")
    with pytest.raises(EnvironmentProblem, match="cannot read the timing cache"):
        build(graph, tmp_path / "engine", "tensorrt", options=BuildOptions(timing_cache=tmp_path))
    assert not list(tmp_path.iterdir())


def test_compatibility_options_set_what_tensorrt_has_for_them(
    graph: Graph, tensorrt: Callable[[str], Recorder], tmp_path: Path
) -> None:
    recorder = tensorrt("11.4.0.106")
    build(graph, tmp_path / "engine", "tensorrt", options=BuildOptions(hardware_compatible=True))
    level = [arguments for name, arguments in recorder.calls if name == "hardware_compatibility_level"]
    assert level == [(rtx.HardwareCompatibilityLevel.AMPERE_PLUS,)]
    # Of this flag RTX has no more than the name.
    with pytest.raises(ExportError, match="libnvinfer_lean"):
        build(graph, tmp_path / "engine", "tensorrt", options=BuildOptions(version_compatible=True))
    assert ("set_flag", (rtx.BuilderFlag.VERSION_COMPATIBLE,)) in recorder.calls


def attributes(source: str) -> Iterator[tuple[str, str]]:
    """(class, name) of every attribute read from or set on a variable of `VARIABLES` or a class of the module."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        if isinstance(value, ast.Name) and value.id in VARIABLES:
            yield VARIABLES[value.id], node.attr
        elif isinstance(value, ast.Attribute) and ast.unparse(value.value) == "trt" and value.attr != "__version__":
            yield value.attr, node.attr


def test_every_name_of_the_sources_stands_in_tensorrts_api() -> None:
    trt, own = api("tensorrt"), api("tensorrt_rtx")
    used: set[tuple[str, str]] = set()
    for module in (nopad.export.engines.tensorrt, nopad.export.engines.network_check):
        used |= set(attributes(Path(str(module.__file__)).read_text()))
    used = {(kind, name) for kind, name in used if name == "__version__" or not name.startswith("__")}
    assert len(used) > 40
    missing = {(kind, name) for kind, name in used if name not in trt.get(kind, ())}
    assert missing == {one for one in RTX_OWN if one[1] != "SM86"}  # the sources spell no SM
    assert all(name in own[kind] for kind, name in missing)


def test_no_builder_flag_chooses_a_precision() -> None:
    folder = Path(str(nopad.export.engines.tensorrt.__file__)).parent
    flags, calls = set(), []
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                flags |= {node.attr} if node.value.attr == "BuilderFlag" else set()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "flag" in node.func.attr:
                calls += [(node.func.attr, ast.unparse(node.args[0]))]
    assert flags == {"TF32", "VERSION_COMPATIBLE"}
    assert sorted(calls) == [
        ("clear_flag", "trt.BuilderFlag.TF32"),  # fp32 stays fp32
        ("set_flag", "trt.BuilderFlag.VERSION_COMPATIBLE"),
    ]
