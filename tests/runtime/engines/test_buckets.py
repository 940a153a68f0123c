"""Batches padded to a few bucket shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrt_double import PROFILES, batch

from nopad.model.packing import PackedBatch
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.buckets import fill_bucket
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.manifest import Artifact

NAME = "modernbert-single-mean"
Graphs = Callable[[str], tuple[Path, Artifact]]


def expected(graph: Graphs, packed: PackedBatch, case: str = NAME) -> np.ndarray[Any, Any]:
    path, artifact = graph(case)
    return OnnxCpuEngine(path, artifact, EngineOptions(threads=1)).run(packed)


def test_filling_up_stays_within_the_profile() -> None:
    for lengths in ((1,), (64, 64, 3), (128, 128, 128, 128), (100, 7)):
        packed = batch(*lengths)
        filled = fill_bucket(packed, PROFILES[0], token_multiple=64, filler_id=5)
        assert PROFILES[0].fits(filled)
        assert (filled.input_ids[len(packed.input_ids) :] == 5).all()
        assert (filled.sequence_ids[packed.num_tokens :] == -1).all()
        sequences, longest = packed.pad_index.shape
        np.testing.assert_array_equal(filled.pad_index[:sequences, :longest], packed.pad_index)
        assert (filled.pad_index[:sequences, longest:] == -1).all() and (filled.pad_index[sequences:, 0] == 0).all()


@pytest.mark.parametrize("case", ["modernbert-embed-mean-unit", "modernbert-token"])
def test_what_is_filled_up_computes_finite_values(case: str, graph: Graphs) -> None:
    filled = fill_bucket(batch(100, 7, 5), PROFILES[0], token_multiple=64, filler_id=0)
    assert filled.pad_index.shape == (4, 128) and len(filled.input_ids) == 256
    assert np.isfinite(expected(graph, filled, case)).all()
