"""Bundle -> a model repository for NVIDIA Triton: the graph, and the Python model that packs texts for it.

Two models: `NAME_graph` is the bundle's ONNX graph or TensorRT engine, and takes one packed stream; `NAME` takes texts,
and is `nopad.runtime.triton`. Configurations are `ModelConfig` messages of triton-inference-server/common
(`protobuf/model_config.proto`) as protobuf text.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.export.errors import ExportError
from nopad.runtime.answer_tensors import CONFIG_TYPES, TEXT_PAIR, declared_inputs, declared_outputs
from nopad.runtime.atomic import replace_folder
from nopad.runtime.batching import WINDOW
from nopad.runtime.bundle import MANIFEST, Bundle, open_bundle, recorded_files
from nopad.runtime.engines.base import GPU_TARGETS
from nopad.runtime.errors import BundleError, UnverifiedError, UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.triton import FILE, GRAPH

# Triton's backend for each target of a file.
BACKENDS = {"cpu": "onnxruntime", "onnx": "onnxruntime", "tensorrt": "tensorrt"}
VERSION, CONFIG, CODE = "1", "config.pbtxt", "model.py"
_MODEL = '''"""Texts -> answers, by the graph beside this model. Written by nopad: docs/triton.md."""

from nopad.runtime.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, kw_only=True)
class TritonRepository:
    """What was written."""

    folder: Path
    model: str  # takes texts
    graph: str  # takes packed streams
    backend: str  # of the graph
    file: str  # of the bundle, that it runs
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def write_triton(
    bundle_folder: Path,
    repository: Path,
    *,
    target: Sequence[str] | None = None,
    precision: Sequence[str] | None = None,
    allow_unverified: bool = False,
) -> TritonRepository:
    """Write the two models of a bundle into the folder `repository`, beside others that it may hold.

    They are named for the bundle's folder. `target`, `precision`: of the file to use, where several would do. Models of
    an earlier call are replaced, each in one step.
    Raises `BundleError`, `UnverifiedError`, `UsageError`, `OutputError`, `ExportError`.
    """
    bundle = open_bundle(bundle_folder, verify=False)
    name = bundle_folder.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"the model is named for the bundle's folder, and {name!r} is not of letters, digits, _ . and -"
        )
    if bundle.manifest.task == "token-embeddings":
        raise UsageError(
            "token-embeddings are a row for each token, and Triton wants one for each text: use nopad serve"
        )
    artifact = _choose(bundle, target, precision)
    if artifact.verdict != "verified" and not allow_unverified:
        raise UnverifiedError(
            f"{artifact.file} of {bundle_folder} has not passed the parity gate: run nopad parity, or write it all the "
            "same with --no-parity"
        )
    files, common = bundle.files_of(artifact), bundle.common_files()
    bundle.check([*files, *common])
    graph = f"{name}_graph"
    _write(repository / graph, graph_config(bundle, artifact, graph), bundle, files)
    _write(repository / name, model_config(bundle, artifact, name, graph), bundle, common, code=_MODEL)
    return TritonRepository(
        folder=repository,
        model=name,
        graph=graph,
        backend=BACKENDS[artifact.target],
        file=artifact.file,
        remarks=tuple(_remarks(artifact)),
    )


def _choose(bundle: Bundle, targets: Sequence[str] | None, precisions: Sequence[str] | None) -> Artifact:
    """The one file that Triton can run and that fits. Raises `UsageError` for several, `BundleError` for none."""
    able = [artifact for artifact in bundle.manifest.artifacts if artifact.target in BACKENDS]
    fitting = [
        artifact
        for artifact in able
        if (targets is None or artifact.target in targets) and (precisions is None or artifact.precision in precisions)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(f"{artifact.target} {artifact.precision}" for artifact in fitting)
        raise UsageError(f"{bundle.path} has several files for Triton ({names}): name one by --target and --precision")
    has = ", ".join(f"{each.target} {each.precision}" for each in bundle.manifest.artifacts)
    raise BundleError(
        f"{bundle.path} has no such file for Triton, which runs those of --target {', '.join(BACKENDS)}; it has {has}"
    )


def _remarks(artifact: Artifact) -> Iterable[str]:
    if artifact.version_compatible:
        yield "the engine is version-compatible: start Triton with --backend-config=tensorrt,version-compatible=true"
    elif artifact.target == "tensorrt":
        yield f"the engine runs with the release that built it, {artifact.built_with}: take a Triton image that has it"


def _write(folder: Path, config: str, bundle: Bundle, files: Iterable[str], *, code: str | None = None) -> None:
    """A model's folder: its configuration, and in its version the manifest and these files of the bundle."""
    names = [MANIFEST, *files]
    with replace_folder(folder, marker=f"{VERSION}/{MANIFEST}", known=_own_files(folder)) as partial:
        for name in names:
            place = partial / VERSION / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), place)
        if code is not None:
            (partial / VERSION / CODE).write_text(code, encoding="utf-8")
        (partial / CONFIG).write_text(config, encoding="utf-8")


def _own_files(folder: Path) -> frozenset[str]:
    """The files of the model at `folder`, if it is one of ours: only these may be replaced."""
    recorded = recorded_files(folder / VERSION)
    if not recorded:
        return recorded
    compiled = {path.relative_to(folder).as_posix() for path in folder.glob(f"{VERSION}/__pycache__/model.*.pyc")}
    return frozenset({CONFIG, *compiled, *(f"{VERSION}/{name}" for name in (CODE, MANIFEST, *recorded))})


def model_config(bundle: Bundle, artifact: Artifact, name: str, graph: str) -> str:
    """The configuration of the model that takes texts, [n, 1] each."""
    manifest = bundle.manifest
    size = next(iter(artifact.outputs.values()))[-1]
    inputs = [
        _tensor(each.name, CONFIG_TYPES[each.datatype], [1], optional=each is TEXT_PAIR)
        for each in declared_inputs(manifest.task)
    ]
    outputs = [
        _tensor(each.name, CONFIG_TYPES[each.datatype], each.shape[1:] or [1])
        for each in declared_outputs(manifest.task, manifest.labels, size)
    ]
    # On a GPU a second instance tokenizes while the graph computes for the first.
    count = 2 if artifact.target in GPU_TARGETS else 1
    return f"""# Texts -> answers: tokenizes and packs the texts of all waiting requests, asks {graph}, and decodes.
name: {_quoted(name)}
backend: "python"
# Texts, of all requests that come to the model together: it packs them into streams of tokens itself.
max_batch_size: {WINDOW}
{_tensors("input", inputs)}
{_tensors("output", outputs)}
# No preferred size and no delay: what arrives while the graph computes is the next batch.
dynamic_batching {{ }}
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
version_policy {{ latest {{ num_versions: 1 }} }}
{_parameters({GRAPH: graph, FILE: artifact.file})}
"""


def graph_config(bundle: Bundle, artifact: Artifact, name: str) -> str:
    """The configuration of the graph: its tensors as they are, since one stream holds the whole batch."""
    profiles = ", ".join(_quoted(str(number)) for number in range(len(artifact.profiles)))
    kind = "KIND_GPU" if artifact.target in GPU_TARGETS else "KIND_CPU"
    inputs, outputs = _tensors_of(bundle, artifact)
    return f"""# One packed stream -> logits. Clients ask the model that takes texts.
name: {_quoted(name)}
backend: {_quoted(BACKENDS[artifact.target])}
default_model_filename: {_quoted(artifact.file)}
max_batch_size: 0
{_tensors("input", inputs)}
{_tensors("output", outputs)}
instance_group [ {{ count: 1 kind: {kind}{f" profile: [ {profiles} ]" if profiles else ""} }} ]
version_policy {{ latest {{ num_versions: 1 }} }}
"""


def _tensors_of(bundle: Bundle, artifact: Artifact) -> tuple[list[str], list[str]]:
    """Inputs and outputs of the graph: of ONNX as the file has them, of an engine as it was checked when it was built.

    Raises `ExportError` where the file has others than the manifest.
    """
    if artifact.target == "tensorrt":  # its reader takes no other types: nopad.runtime.engines.tensorrt
        inputs = [_tensor(name, "TYPE_INT64", _dims(sizes)) for name, sizes in artifact.inputs.items()]
        return inputs, [_tensor(name, "TYPE_FP32", _dims(sizes)) for name, sizes in artifact.outputs.items()]
    import onnx

    graph = onnx.load(str(bundle.file(artifact.file)), load_external_data=False).graph
    for tensors, expected in ((graph.input, artifact.inputs), (graph.output, artifact.outputs)):
        if {tensor.name for tensor in tensors} != set(expected):
            raise ExportError(f"{artifact.file} has other tensors than the manifest: export the bundle again")
    return [_of_onnx(tensor) for tensor in graph.input], [_of_onnx(tensor) for tensor in graph.output]


def _dims(sizes: Iterable[str]) -> list[int]:
    return [int(size) if size.isdigit() else -1 for size in sizes]


def _of_onnx(tensor: Any) -> str:
    import onnx

    kinds = {onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.FLOAT: "TYPE_FP32"}
    kind = tensor.type.tensor_type
    if kind.elem_type not in kinds:
        raise ExportError(f"{tensor.name} is neither int64 nor float32; export the bundle again")
    return _tensor(tensor.name, kinds[kind.elem_type], [dim.dim_value or -1 for dim in kind.shape.dim])


def _tensor(name: str, data_type: str, dims: Sequence[int], *, optional: bool = False) -> str:
    fields = f"name: {_quoted(name)} data_type: {data_type} dims: [ {', '.join(map(str, dims))} ]"
    return f"{{ {fields}{' optional: true' if optional else ''} }}"


def _tensors(field: str, tensors: Sequence[str]) -> str:
    rows = ",\n".join(f"  {tensor}" for tensor in tensors)
    return f"{field} [\n{rows}\n]"


def _parameters(values: Mapping[str, str]) -> str:
    return "\n".join(
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"
        for key, text in values.items()
    )


def _quoted(text: str) -> str:
    return json.dumps(text)  # protobuf's text format has JSON's escapes
