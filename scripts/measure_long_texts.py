"""What each way to read long texts costs in accuracy: the embedded model on reviews over a max length.

    python scripts/measure_long_texts.py imdb/test.jsonl --max-length 256 --max-length 1024

Each line of the file is {"text": ..., "label": "0" or "1"}. Prints a Markdown table: accuracy and mean negative log
likelihood on the same texts, in each way. A max length below the model's stands for a model with a shorter one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from nopad.runtime.bundle import open_bundle
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.selection import find_candidates
from nopad.runtime.inference import Inference
from nopad.runtime.model import Model
from nopad.runtime.tokenizer import open_bundle_encoder
from nopad.runtime.types import Prediction

WAYS: dict[str, dict[str, Any]] = {
    "`truncate` = `window`, `first`": {"truncation": "truncate"},
    '`truncate`, `truncation_side="left"`': {"truncation": "truncate", "truncation_side": "left"},
    "`window`, `mean`": {"truncation": "window"},
    "`window`, `max`": {"truncation": "window", "merge": "max"},
    "`window`, `mean`, `stride=0`": {"truncation": "window", "stride": 0},
}


def opened(max_length: int) -> Model:
    """The embedded model, as if it read so many tokens."""
    bundle = open_bundle(None)
    shorter = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, max_length=max_length))
    candidates = find_candidates(shorter, "onnx-cpu", EngineOptions(threads=1), sm=lambda: None)
    return Model(Inference(bundle=shorter, encoder=open_bundle_encoder(shorter), candidates=candidates))


def long_rows(path: Path, model: Model, most: int) -> list[dict[str, Any]]:
    """At most so many rows with more tokens than the model reads, drawn at random."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    found: list[dict[str, Any]] = []
    for row in rows:
        (tokens,) = model.encode([row["text"]])
        if not isinstance(tokens, Exception) and tokens.tokens > tokens.used:
            found.append(row)
        if len(found) == most:
            break
    return found


def figures(answers: list[Prediction], labels: list[str]) -> tuple[float, float, float, float]:
    """Accuracy, its standard error, mean negative log likelihood, windows a text."""
    right = np.array([answer.label == label for answer, label in zip(answers, labels, strict=True)])
    loss = -np.log([answer.scores[label] for answer, label in zip(answers, labels, strict=True)])
    accuracy = right.mean()
    error = np.sqrt(accuracy * (1 - accuracy) / len(right))
    return accuracy, error, loss.mean(), float(np.mean([answer.windows for answer in answers]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--max-length", type=int, action="append", required=True)
    parser.add_argument("--texts", type=int, default=1500, help="at most, for each max length")
    options = parser.parse_args()
    print("| max length | texts | way | windows a text | accuracy | log loss |\n|---:|---:|---|---:|---:|---:|")
    for max_length in options.max_length:
        with opened(max_length) as model:
            rows = long_rows(options.file, model, options.texts)
            labels = [model.labels[int(row["label"])] for row in rows]
            for name, way in WAYS.items():
                answers = model.predict([row["text"] for row in rows], **way)
                accuracy, error, loss, windows = figures(answers, labels)
                cells = (max_length, len(rows), name, f"{windows:.1f}", f"{accuracy:.1%} ± {error:.1%}", f"{loss:.3f}")
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
