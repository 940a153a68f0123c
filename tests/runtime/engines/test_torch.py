"""The torch engine answers as the ONNX graph does, for every head; in half precision it keeps the types in the file."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_models import CASES, token_ids
from several_files import AMD, OLD, on_cpu

from nopad.export.graph.precision import cast
from nopad.export.parity.bounds import BOUNDS
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.save import write_checkpoint
from nopad.model.packing import pack
from nopad.runtime.engines.base import EngineOptions, engine_factory
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.engines.torch import TorchEngine, cast_as, stored_types
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem
from nopad.runtime.manifest import Artifact

Graphs = Callable[[str], tuple[Path, Artifact]]
Folders = Callable[[str], Path]
HEADS = (
    "modernbert-single-mean",
    "modernbert-multi-cls",
    "modernbert-token",
    "modernbert-mlm",
    "modernbert-embed-mean-unit",
    "bert-single",
    "bert-rerank",
)
LENGTHS = ((1,), (64, 65, 3), (300, 129, 2, 64))


def written(name: str, checkpoint: Folders, folder: Path, precision: str = "fp32") -> tuple[Path, Artifact]:
    """The checkpoint as the exporter writes it into a bundle, and its record in the manifest."""
    loaded = load_checkpoint(checkpoint(name), **CASES[name].load)
    config = loaded.config
    own = {"task": config.task, "pooling": config.pooling, "normalize": config.normalize}
    folder = folder / "torch"
    folder.mkdir()
    encoder = cast(loaded.encoder, precision)  # type: ignore[arg-type]
    write_checkpoint(encoder, {**loaded.raw_config, "nopad": own}, folder)
    return folder / "model.safetensors", Artifact(
        file="torch/model.safetensors",
        target="torch",
        precision=precision,
        layout="packed",
        inputs={},
        outputs={},
        token_multiple=config.block,
    )


def opened(path: Path, artifact: Artifact, **options: Any) -> TorchEngine:
    engine = engine_factory("torch")(path, artifact, EngineOptions(**options))
    assert isinstance(engine, TorchEngine)
    return engine


@pytest.mark.parametrize("name", HEADS)
def test_answers_are_those_of_the_onnx_graph(name: str, graph: Graphs, checkpoint: Folders, tmp_path: Path) -> None:
    path, artifact = graph(name)
    want = OnnxCpuEngine(path, artifact, EngineOptions(threads=1))
    engine = opened(*written(name, checkpoint, tmp_path))
    assert engine.profiles == ()
    for lengths in LENGTHS:
        batch = pack([token_ids(length) for length in lengths], multiple=artifact.token_multiple)
        ours, theirs = engine.run(batch), want.run(batch)
        assert ours.shape == theirs.shape and ours.dtype == np.float32
        real = slice(batch.num_tokens if CASES[name].per_token else None)
        assert np.abs(ours[real] - theirs[real]).max() <= 1e-5 * max(1, np.abs(theirs[real]).max())
    engine.close()


def test_pooling_and_normalisation_come_with_the_file(checkpoint: Folders, tmp_path: Path) -> None:
    for name in ("modernbert-embed-cls-unit", "modernbert-embed-cls", "modernbert-embed-default"):
        (tmp_path / name).mkdir()
        engine = opened(*written(name, checkpoint, tmp_path / name))
        ids = token_ids(40)
        encoder = load_checkpoint(checkpoint(name), **CASES[name].load).encoder
        batch = pack([ids])
        names = ("input_ids", "position_ids", "sequence_ids", "pad_index")
        with torch.no_grad():
            want = encoder(**{key: torch.from_numpy(getattr(batch, key)) for key in names})
        np.testing.assert_array_equal(engine.run(batch), want.numpy())


def test_half_precision_is_what_the_file_holds(checkpoint: Folders, tmp_path: Path) -> None:
    name = "modernbert-mlm"  # whose decoder is tied to the embeddings
    path, artifact = written(name, checkpoint, tmp_path, "fp16")
    policy = cast(load_checkpoint(checkpoint(name)).encoder, "fp16")
    encoder = load_checkpoint(path.parent).encoder
    cast_as(encoder, stored_types(path))
    want = {key: value.dtype for key, value in policy.state_dict().items()}
    assert {key: value.dtype for key, value in encoder.state_dict().items()} == want
    assert set(want.values()) == {torch.float16, torch.float32}
    # A CPU computes in fp32 with the same (rounded) weights.
    batch = pack([token_ids(50), token_ids(9)])
    engine = opened(path, artifact)
    exact = opened(*written(name, checkpoint, _made(tmp_path / "exact")))
    gap = np.abs(engine.run(batch) - exact.run(batch))[: batch.num_tokens].max()
    assert 0 < gap < 0.05
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index")
    with torch.inference_mode():
        half = encoder(**{key: torch.from_numpy(getattr(batch, key)) for key in names}).numpy()
    assert np.abs(half - engine.run(batch))[: batch.num_tokens].max() < 0.05


def test_bf16_is_computed_where_the_cpu_has_it_and_else_in_fp32_with_a_word(
    checkpoint: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "modernbert-single-mean"
    path, artifact = written(name, checkpoint, tmp_path, "bf16")
    batch = pack([token_ids(length) for length in (300, 129, 2, 64)])
    exact = opened(*written(name, checkpoint, _made(tmp_path / "exact"))).run(batch)
    rounded = load_checkpoint(path.parent).encoder  # fp32 products of the stored weights
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index")
    with torch.inference_mode():
        want = rounded(**{key: torch.from_numpy(getattr(batch, key)) for key in names}).numpy()
    for cpu in (AMD, OLD):
        on_cpu(monkeypatch, cpu)
        engine = opened(path, artifact)
        types = {value.dtype for key, value in engine._encoder.state_dict().items() if "norm" not in key}
        logits, said = engine.run(batch), capsys.readouterr().err
        assert logits.dtype == np.float32 and np.abs(logits - exact).max() <= BOUNDS["bf16"].logits
        if cpu is AMD:
            assert torch.bfloat16 in types and not said and not np.array_equal(logits, want)
        else:
            assert types == {torch.float32} and np.array_equal(logits, want)
            assert "engine torch computes a file in bf16 in fp32: this CPU has no bf16 instructions, AMD EPYC" in said


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_weights_of_another_precision_than_the_manifests(checkpoint: Folders, tmp_path: Path) -> None:
    path, artifact = written("modernbert-single-mean", checkpoint, tmp_path)
    with pytest.raises(BundleError, match="holds no fp16 weights"):
        opened(path, dataclasses.replace(artifact, precision="fp16"))


def test_damaged_files_are_named(checkpoint: Folders, tmp_path: Path) -> None:
    path, artifact = written("modernbert-single-mean", checkpoint, tmp_path)
    with pytest.raises(BundleError, match="multiples of 64 tokens, the manifest says 128"):
        opened(path, dataclasses.replace(artifact, token_multiple=128))
    data = path.read_bytes()
    path.write_bytes(data[:-50])
    with pytest.raises(BundleError, match="damaged or cut short"):
        opened(path, artifact)
    path.write_bytes(data)
    (path.parent / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(BundleError, match=f"cannot open {path.parent}.*t5 is an encoder-decoder"):
        opened(path, artifact)


def test_missing_packages_are_named(checkpoint: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, artifact = written("modernbert-single-mean", checkpoint, tmp_path)
    for package in ("torch", "safetensors"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(EnvironmentProblem, match="torch and safetensors .*: pip install 'nopad.export.'"):
            opened(path, artifact)


def test_a_failing_run_is_an_engine_error_and_the_next_one_answers(checkpoint: Folders, tmp_path: Path) -> None:
    engine = opened(*written("modernbert-single-mean", checkpoint, tmp_path))
    with pytest.raises(EngineError, match="PyTorch failed on 2 tokens"):
        engine.run(pack([[5, 10_000]]))  # beyond the vocabulary
    assert engine.run(pack([[5, 6]])).shape == (1, 3)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(pack([[5, 6]]))


def test_out_of_gpu_memory_and_a_gpu_that_does_not_start(
    checkpoint: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, artifact = written("modernbert-single-mean", checkpoint, tmp_path)
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    engine = opened(path, artifact)
    monkeypatch.setattr(type(engine._encoder), "forward", full)
    with pytest.raises(EngineError, match="the GPU ran out of memory on 2 tokens.*2 GiB"):
        engine.run(pack([[5, 6]]))
    monkeypatch.setattr(type(engine._encoder), "to", full)
    with pytest.raises(EnvironmentProblem, match="too little memory.*2 GiB"):
        opened(path, artifact)
    assert emptied == [True, True]

    def lost(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device busy")

    monkeypatch.setattr(type(engine._encoder), "to", lost)
    with pytest.raises(EnvironmentProblem, match="cannot start on cpu: CUDA error: device busy"):
        opened(path, artifact)


def test_a_t4_takes_no_bf16(checkpoint: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, artifact = written("modernbert-single-mean", checkpoint, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(EnvironmentProblem, match="sm75, Turing .* has no bf16; export the bundle in fp16"):
        opened(path, dataclasses.replace(artifact, precision="bf16"))


def test_threads_are_pytorchs(checkpoint: Folders, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        opened(*written("modernbert-single-mean", checkpoint, tmp_path), threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu(precision: str, checkpoint: Folders, graph: Graphs, tmp_path: Path) -> None:
    name = "modernbert-single-mean"
    path, artifact = graph(name)
    want = OnnxCpuEngine(path, artifact, EngineOptions(threads=1))
    engine = opened(*written(name, checkpoint, tmp_path, precision))
    for lengths in LENGTHS:
        batch = pack([token_ids(length) for length in lengths])
        assert np.abs(engine.run(batch) - want.run(batch)).max() <= {"fp32": 1e-4, "fp16": 5e-2}[precision]
