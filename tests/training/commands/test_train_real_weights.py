"""Pre-trained weights: MiniLM-L6 learns to classify reviews by one command, and its bundles keep that."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from training_samples import logits, write_jsonl

from nopad.runtime import load
from nopad.runtime.cli import run


@pytest.mark.slow
def test_minilm_learns_imdb_from_few_reviews_and_its_bundle_keeps_it(minilm: Path, imdb: Path, tmp_path: Path) -> None:
    with (imdb / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 500)]
    with (imdb / "test.jsonl").open(encoding="utf-8") as lines:
        test = [json.loads(line) for line in islice(lines, 300)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    output, bundle = tmp_path / "classifier", tmp_path / "bundle"
    options = ["--max-length", "64", "--epochs", "4", "--warmup-ratio", "0.1", "--labels", "negative,positive"]
    assert run(["train", "--model", str(minilm), "--train", str(data), "--output", str(output), *options]) == 0
    record = json.loads((output / "config.json").read_text())
    assert record["architectures"] == ["BertForSequenceClassification"]
    texts, truths = [row["text"] for row in test], np.array([row["label"] for row in test])
    ours, theirs = logits(output, texts[:16])
    assert (ours - theirs).abs().max() <= 1e-4
    assert (
        run(["export", str(output), "--output", str(bundle), "--precision", "fp32,int8", "--calibrate", str(data)]) == 0
    )
    right = {}
    for precision in ("fp32", "int8"):
        with load(bundle, precision=precision) as model:
            answers = model.predict(texts)
        right[precision] = np.mean([answer.label == "negative" for answer in answers] == (truths == 0))
    assert right["fp32"] >= 0.7 and right["int8"] >= right["fp32"] - 0.02
