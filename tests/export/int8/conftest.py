"""Graphs that the tests of int8 share, and ONNX Runtime on one thread."""

from collections.abc import Iterator
from typing import Any

import onnxruntime
import pytest
from int8_models import Graphs, graphs


@pytest.fixture(scope="module", autouse=True)
def _one_thread_of_onnx_runtime() -> Iterator[None]:
    # Small models gain nothing from more, and threads that wait for a busy machine's cores cost minutes.
    make = onnxruntime.SessionOptions

    def options() -> Any:
        made = make()
        made.intra_op_num_threads = 1
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", options)
        yield


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory, checkpoint: Graphs) -> Graphs:
    """The fp16 graph of the embedded checkpoint, or of a small random one."""
    return graphs(tmp_path_factory, checkpoint, precision="fp16", cpu=False)
