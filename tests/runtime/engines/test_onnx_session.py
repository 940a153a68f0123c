"""What all ONNX Runtime engines have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime_double import GpuOnnxRuntime
from reference_models import token_ids
from tensorrt_double import PROFILES

from nopad.model.packing import PackedBatch, pack
from nopad.runtime.engines.base import Engine, EngineOptions, engine_factory
from nopad.runtime.engines.onnx_session import STOP_SPINNING, session_options
from nopad.runtime.errors import BundleError
from nopad.runtime.manifest import Artifact

NAME = "modernbert-single-mean"
Graphs = Callable[[str], tuple[Path, Artifact]]


def opened(name: str, path: Path, artifact: Artifact) -> Engine:
    if name == "onnx-tensorrt" and not artifact.profiles:
        artifact = dataclasses.replace(artifact, profiles=PROFILES)
    return engine_factory(name)(path, artifact, EngineOptions(threads=1, pad_token_id=0))


def batch(*lengths: int) -> PackedBatch:
    return pack([token_ids(length) for length in lengths])


@pytest.mark.parametrize("name", ["onnx-cpu", "onnx-cuda"])
def test_padded_graphs(name: str, padded: tuple[Path, Artifact], gpu: GpuOnnxRuntime) -> None:
    gpu.stray = ()
    packed = batch(5, 2)
    engine = engine_factory(name)(*padded, EngineOptions(threads=1, pad_token_id=9))
    answer = engine.run(packed)
    assert answer.shape == (64, 3)
    np.testing.assert_array_equal(answer[:7, 0], packed.input_ids[:7])
    np.testing.assert_array_equal(answer[:7, 1], 1)
    np.testing.assert_array_equal(answer[:7, 2], [0, 1, 2, 3, 4, 0, 1])
    assert not answer[7:].any()


@pytest.mark.parametrize("name", ["onnx-cpu", "onnx-cuda"])
def test_inputs_that_are_not_the_manifests(name: str, graph: Graphs, gpu: GpuOnnxRuntime) -> None:
    path, artifact = graph(NAME)
    with pytest.raises(BundleError, match="the manifest says .'other'"):
        opened(name, path, dataclasses.replace(artifact, inputs={"other": ["tokens"]}))


def test_the_settings_that_all_sessions_share() -> None:
    options = session_options(onnxruntime, 3, STOP_SPINNING)
    assert (options.intra_op_num_threads, options.log_severity_level) == (3, 3)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert session_options(onnxruntime, None).intra_op_num_threads == 0  # ONNX Runtime's own choice
