"""Graphs that the tests of this folder build engines from."""

from __future__ import annotations

import pytest
from engine_builds import HEAD_SIZE, LAYERS, Graphs, write

from nopad.export.graph.onnx import Graph


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """By precision; one global layer, then two local ones."""
    made: dict[str, Graph] = {}

    def get(precision: str) -> Graph:
        if precision not in made:
            folder = tmp_path_factory.mktemp(f"graph-{precision}")
            sizes = {"num_hidden_layers": LAYERS, "hidden_size": 2 * HEAD_SIZE}
            made[precision] = write("modernbert-single-mean", precision, folder / "model.onnx", **sizes)
        return made[precision]

    return get
