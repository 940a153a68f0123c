"""Libraries of embeddings as subjects answer as the library itself does, and count their own padding."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runners import spec
from st_folders import HIDDEN, Case, quiet

from nopad.bench.subjects.builds import EXPORTERS, build, library_job, unavailable
from nopad.bench.subjects.runners import RUNNERS, lacks

TEXTS = ["a dull film", "splendid", "a film that I would see again, and soon"]


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as sentence-transformers saves it: mean pooling, normalized."""
    case = Case(modules=lambda m: [m.Pooling(HIDDEN, pooling_mode="mean"), m.Normalize()])
    return case.build(checkpoint("bert-embed-default"), tmp_path_factory.mktemp("library") / "model")


def test_sentence_transformers_on_torch(folder: Path) -> None:
    exact, half = (
        RUNNERS["sentence-transformers"](
            spec(
                path=str(folder),
                runner="sentence-transformers",
                task="embeddings",
                engine="torch",
                precision=precision,
                max_length=32,
            )
        )
        for precision in ("fp32", "bf16")
    )
    assert exact.precision == "fp32" and half.precision == "bf16" and exact.threads() == 1
    rows = exact.run(TEXTS)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert 1e-6 < np.abs(np.array(rows) - np.array(half.run(TEXTS))).max() < 0.05
    real, computed = exact.tokens(TEXTS)
    lengths = [exact.tokens([text])[0] for text in TEXTS]
    assert real == sum(lengths) and computed == 3 * max(lengths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "kind", "engine"),
    [
        ("sentence-transformers", "st-onnx", "onnx"),
        ("sentence-transformers", "st-openvino", "openvino"),
        ("fastembed", "st-onnx", "onnxruntime"),
    ],
)
def test_the_other_backends(folder: Path, tmp_path: Path, runner: str, kind: str, engine: str) -> None:
    job = {**library_job(kind, folder, "embeddings", 1), "folder": str(tmp_path / kind)}
    options: dict[str, Any] = {"task": "embeddings", "max_length": 32, "pooling": "mean", "normalize": True}
    need = "fastembed" if runner == "fastembed" else kind
    opened = spec(path=job["folder"], runner=runner, engine=engine, need=need, file="onnx/model.onnx", **options)
    if unavailable(job) or lacks(opened):
        pytest.skip(f"{EXPORTERS[kind]} or {runner} is not installed")
    with quiet():  # the libraries' own exports leave temporary folders to the collector
        assert build(job)["file_bytes"] > 0
        gc.collect()
    torch = RUNNERS["sentence-transformers"](
        spec(path=str(folder), runner="sentence-transformers", engine="torch", **options)
    )
    rows = np.array(RUNNERS[runner](opened).run(TEXTS))
    assert np.abs(rows - np.array(torch.run(TEXTS))).max() < 1e-5
