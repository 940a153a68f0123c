"""int8 for OpenVINO: weights rounded by what the layers read on texts, in the file that OpenVINO opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from repository import DATA

from nopad.export.bundle_files import write_graph, write_int8_graph
from nopad.export.progress import silent
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import pack
from nopad.runtime.bundle import DEFAULT_CHECKPOINT
from nopad.runtime.tokenizer import open_encoder

REVIEWS = DATA / "imdb"


def answers(file: Path, rows: list[list[int]]) -> np.ndarray[Any, Any]:
    """ONNX Runtime's: the file's weights alone, its activations are not rounded."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    batch = pack(rows, multiple=1)
    return np.asarray(session.run(None, {node.name: getattr(batch, node.name) for node in session.get_inputs()})[0])


@pytest.mark.skipif(not REVIEWS.is_dir(), reason="needs IMDb in NOPAD_DATA")
def test_texts_make_the_weights_more_exact(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    (tmp_path / "tokenizer.json").write_bytes((DEFAULT_CHECKPOINT / "tokenizer.json").read_bytes())
    (tmp_path / "nearest").mkdir()
    exact = write_graph(checkpoint, tmp_path, "fp32", "openvino")
    nearest = write_graph(checkpoint, tmp_path / "nearest", "int8", "openvino")
    with (REVIEWS / "train.jsonl").open() as lines:
        (tmp_path / "texts.jsonl").write_text("".join(line for line, _ in zip(lines, range(60), strict=False)))
    fitted = write_int8_graph(checkpoint, tmp_path, "openvino", str(tmp_path / "texts.jsonl"), 512, silent)
    assert fitted.precision == "int8" and fitted.quantized is not None and fitted.quantized["group"] == 64
    assert fitted.quantized["kept"] == [] and fitted.quantized["tokens"] > 8 * 192

    with (REVIEWS / "test.jsonl").open() as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(40), strict=False)]
    encoder = open_encoder(tmp_path / "tokenizer.json", 256)
    rows = [list(tokens.input_ids) for tokens in encoder.encode(texts, "")]  # type: ignore[union-attr]
    want = answers(tmp_path / exact.file, rows)

    def error(file: Path) -> float:
        return float(np.sqrt(np.square(answers(file, rows) - want).mean()))

    # Embeddings are rounded to the nearest in both, so the layers' gain is a part of the whole.
    assert error(tmp_path / fitted.file) < error(tmp_path / "nearest" / nearest.file)
