"""int8 of a real pre-trained model: MiniLM-L6 as a sentence-transformers folder, from the extra `test-weights`."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.export.int8.ranking import cosines, search_overlap
from nopad.runtime import load
from nopad.runtime.data.table import DataSource


@pytest.mark.slow
def test_minilm_finds_the_same_texts_in_int8(minilm: Path, imdb: Path, tmp_path: Path) -> None:
    with (imdb / "train.jsonl").open(encoding="utf-8") as lines:
        texts = [sentence for line in islice(lines, 400) for sentence in json.loads(line)["text"].split(". ")]
    texts = [text for text in dict.fromkeys(texts) if 40 < len(text) < 300]
    calibration = tmp_path / "texts.jsonl"
    calibration.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:500]), "utf-8")
    options = ExportOptions(precision=("fp32", "int8"), calibrate=DataSource(path=str(calibration)), threads=1)
    result = export_checkpoint(str(minilm), tmp_path / "bundle", options)
    assert result.passed
    (int8,) = (a for a in result.bundle.manifest.artifacts if a.precision == "int8")
    assert int8.quantized is not None and len(int8.quantized["kept"]) <= 2
    assert int8.quantized["judged_by"] == "ranking" and int8.quantized["overlap"] >= 0.95
    assert result.bundle.manifest.files[int8.file].bytes < 30_000_000
    queries, corpus = texts[500:700], texts[700:1700]
    found = []
    for precision in ("int8", "fp32"):
        with load(result.bundle.path, precision=precision, threads=1) as model:
            found.append((model.embed(queries), model.embed(corpus)))
    assert search_overlap(found[0], found[1]) >= 0.94
    assert cosines(found[0][1], found[1][1]).min() > 0.99 and not np.array_equal(found[0][1], found[1][1])
