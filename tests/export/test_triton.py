"""`nopad export --triton`: the model repository, held against Triton's published configuration message."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
from google.protobuf import text_format
from triton_double import read_config, triton
from tritonclient.grpc import model_config_pb2

from nopad.export.triton import write_triton
from nopad.runtime.answer_tensors import TEXT
from nopad.runtime.batching import WINDOW
from nopad.runtime.bundle import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT, open_bundle, record_files, write_manifest
from nopad.runtime.cli import run
from nopad.runtime.predictor import load
from nopad.runtime.profiles import ShapeProfile

Captured = pytest.CaptureFixture[str]
PROFILES = (
    ShapeProfile(tokens=(1, 64, 128), sequences=(1, 2, 8), longest=(1, 16, 32)),
    ShapeProfile(tokens=(1, 256, 512), sequences=(1, 4, 8), longest=(1, 64, 128)),
)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified bundle for CPUs, with weights for torch and a TensorRT engine, whose places its graph takes."""
    root = tmp_path_factory.mktemp("triton") / "several"
    shutil.copytree(DEFAULT_BUNDLE, root)
    bundle = open_bundle(root)
    (graph,) = bundle.manifest.artifacts
    places = {"torch": "torch/model.safetensors", "tensorrt": "model.tensorrt.sm80.fp16.p2.engine"}
    (root / "torch").mkdir()
    for file in places.values():
        shutil.copy(bundle.file(graph.file), bundle.file(file))
    other = dataclasses.replace(graph, target="torch", file=places["torch"], parity={})
    engine = dataclasses.replace(
        other,
        target="tensorrt",
        file=places["tensorrt"],
        precision="fp16",
        sm="sm80",
        profiles=PROFILES,
        built_with="tensorrt 10.13.3.9",
    )
    manifest = dataclasses.replace(bundle.manifest, artifacts=(graph, other, engine), files=record_files(root))
    write_manifest(root, manifest)
    return root


def config_of(model: Path) -> dict[str, Any]:
    config = read_config(model)
    assert text_format.Parse(text_format.MessageToString(config), model_config_pb2.ModelConfig()) == config
    return {
        side: {
            tensor.name: (model_config_pb2.DataType.Name(tensor.data_type), list(tensor.dims))
            for tensor in getattr(config, side)
        }
        for side in ("input", "output")
    } | {"message": config}


def test_a_repository_of_two_models(tmp_path: Path, capsys: Captured) -> None:
    assert run(["export", "--triton", str(tmp_path / "models"), str(DEFAULT_BUNDLE), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["triton"]
    assert (told["model"], told["graph"], told["backend"]) == ("bundle", "bundle_graph", "onnxruntime")
    texts, graph = (config_of(tmp_path / "models" / name) for name in ("bundle", "bundle_graph"))
    # The graph: as ONNX Runtime reads its file, and without Triton's batching.
    folder = tmp_path / "models" / "bundle_graph" / "1"
    session = onnxruntime.InferenceSession(str(folder / graph["message"].default_model_filename))
    kinds = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}
    for side, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
        sizes = {node.name: [size if isinstance(size, int) else -1 for size in node.shape] for node in nodes}
        assert graph[side] == {node.name: (kinds[node.type], sizes[node.name]) for node in nodes}
    assert graph["message"].max_batch_size == 0 and not graph["message"].HasField("dynamic_batching")
    # The model that takes texts: it is handed many requests at once.
    assert texts["input"] == {"text": ("TYPE_STRING", [1]), "text_pair": ("TYPE_STRING", [1])}
    assert [each.name for each in texts["message"].input if not each.optional] == [TEXT.name]
    assert texts["output"] == {"scores": ("TYPE_FP32", [2]), "label": ("TYPE_STRING", [1])}
    assert texts["message"].backend == "python" and texts["message"].max_batch_size == WINDOW
    assert texts["message"].HasField("dynamic_batching")
    for each in (texts["message"], graph["message"]):
        assert each.version_policy.latest.num_versions == 1
        assert [group.kind for group in each.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]
    # The Python model knows nothing of torch, and holds no second copy of the weights.
    code = (tmp_path / "models" / "bundle" / "1" / "model.py").read_text("utf-8")
    assert "torch" not in code and "from nopad.runtime.triton import" in code
    assert not list((tmp_path / "models" / "bundle").rglob("*.onnx"))


def test_an_engines_profiles_are_named_and_kept_to(several: Path, tmp_path: Path, capsys: Captured) -> None:
    options = ["--target", "tensorrt", "--no-parity"]
    assert run(["export", "--triton", str(tmp_path), str(several), *options]) == 0
    assert "the engine runs with the release that built it, tensorrt 10.13.3.9" in capsys.readouterr().err
    graph = config_of(tmp_path / "several_graph")
    (group,) = graph["message"].instance_group
    assert graph["message"].backend == "tensorrt" and list(group.profile) == ["0", "1"]
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert graph["input"]["pad_index"] == ("TYPE_INT64", [-1, -1]) and graph["output"] == {
        "logits": ("TYPE_FP32", [-1, 2])
    }
    texts = ["a film", "the plot " * 20, "no", "so good " * 30, "fine"]
    column = np.array([[text.encode()] for text in texts], dtype=object)
    with triton(tmp_path) as server:
        (answered,) = server.infer("several", [{"text": column}])
        (long,) = server.infer("several", [{"text": np.array([[b"so good " * 400]], dtype=object)}])
    shapes = [(*stream["input_ids"], *stream["pad_index"]) for stream in server.streams]
    assert all(any(profile.admits(*shape) for profile in PROFILES) for shape in shapes) and len(set(shapes)) > 1
    assert "no profile" in long.error().message()
    with load(several, engine="onnx-cpu", threads=1) as model:
        want = [[answer.scores[label] for label in model.labels] for answer in model.predict(texts)]
    assert answered.output_tensors()[0].as_numpy() == pytest.approx(np.array(want), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "several files for Triton (cpu fp32, tensorrt fp16): name one by --target and --precision"),
        (["--target", "torch"], "has no such file for Triton, which runs those of --target cpu, onnx, tensorrt"),
        (["--target", "tensorrt"], "fp16.p2.engine of"),  # unverified
        (["--target", "cpu", "--pooling", "cls"], "is a bundle already, and --pooling exports a checkpoint"),
    ],
)
def test_what_cannot_be_written_is_refused_with_what_can(
    options: list[str], said: str, several: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert run(["export", "--triton", str(tmp_path / "models"), str(several), *options]) in (2, 3)
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "models").exists()


def test_embeddings_of_tokens_are_refused(tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "tokens")
    opened = open_bundle(tmp_path / "tokens")
    write_manifest(opened.path, dataclasses.replace(opened.manifest, task="token-embeddings"))
    assert run(["export", "--triton", str(tmp_path / "models"), str(tmp_path / "tokens")]) == 2
    assert "use nopad serve" in capsys.readouterr().err


def test_models_of_ours_are_replaced_and_no_others(tmp_path: Path, capsys: Captured) -> None:
    write_triton(DEFAULT_BUNDLE, tmp_path)
    compiled = tmp_path / "bundle" / "1" / "__pycache__" / "model.cpython-312.pyc"  # by Triton's Python
    compiled.parent.mkdir()
    compiled.write_bytes(b"")
    (tmp_path / "other").mkdir()
    write_triton(DEFAULT_BUNDLE, tmp_path)
    assert not compiled.exists() and (tmp_path / "other").is_dir()
    (tmp_path / "bundle_graph" / "2").mkdir()
    (tmp_path / "bundle_graph" / "2" / "model.onnx").write_bytes(b"of somebody else")
    assert run(["export", "--triton", str(tmp_path), str(DEFAULT_BUNDLE)]) == 3
    assert "files that nopad does not replace" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "bundle_graph")
    (tmp_path / "bundle_graph" / "1").mkdir(parents=True)
    for name in ("config.pbtxt", "1/manifest.json"):
        (tmp_path / "bundle_graph" / name).write_text("{}")
    assert run(["export", "--triton", str(tmp_path), str(DEFAULT_BUNDLE)]) == 3
    assert (tmp_path / "bundle_graph" / "config.pbtxt").read_text() == "{}"


def test_a_damaged_bundle_is_not_written(tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.cpu.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert run(["export", "--triton", str(tmp_path / "models"), str(tmp_path / "damaged")]) == 3
    assert "SHA-256" in capsys.readouterr().err and not (tmp_path / "models").exists()


def test_a_checkpoint_becomes_a_bundle_and_a_repository(tmp_path: Path, capsys: Captured) -> None:
    output = tmp_path / "sentiment"
    arguments = ["--output", str(output), "--triton", str(tmp_path / "models"), "--no-parity", "--quiet"]
    assert run(["export", str(DEFAULT_CHECKPOINT), *arguments]) == 0
    assert (output / "manifest.json").is_file()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["sentiment", "sentiment_graph"]
    assert run(["export", str(DEFAULT_CHECKPOINT), "--triton", str(tmp_path / "models")]) == 2
    assert "is no bundle, it has no manifest.json; of a checkpoint" in capsys.readouterr().err
