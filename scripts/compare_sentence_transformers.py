"""A sentence-transformers model against its nopad bundle: the largest difference, and the speed of both and of the
library's ONNX backend (optimum), taking turns.

    python scripts/compare_sentence_transformers.py FOLDER BUNDLE texts.jsonl --limit 1000 --threads 2 --repeat 5

Texts are the field `text` of a JSONL file. All read the same strings with the same threads in this process; a
turn is one pass over all of them, in batches of 32 for the library (its default), as nopad plans them for nopad. Prints
medians over the turns. `--parity-only` compares, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np


def read_texts(path: Path, limit: int) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in islice(lines, limit)]


def open_backends(folder: Path, threads: int) -> dict[str, Callable[[list[str]], Any]]:
    """`encode` of the library on torch, and on its ONNX backend where optimum is installed."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    kwargs: dict[str, Any] = {"device": "cpu", "local_files_only": True}
    opened = {"sentence-transformers, torch": SentenceTransformer(str(folder), **kwargs)}
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        own = {"provider": "CPUExecutionProvider", "session_options": options, "export": True}
        name = "sentence-transformers, ONNX (optimum)"
        opened[name] = SentenceTransformer(str(folder), backend="onnx", model_kwargs=own, **kwargs)
    except Exception as error:  # whatever optimum raises where it is missing or cannot export
        print(f"not measured: the ONNX backend: {str(error).splitlines()[0]}")
    return {
        name: lambda texts, model=model: model.encode(texts, show_progress_bar=False) for name, model in opened.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--parity-only", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from nopad.runtime.predictor import load

    texts = read_texts(options.texts, options.limit)
    backends = open_backends(options.folder, options.threads)
    with load(options.bundle, threads=options.threads) as model:
        ours = model.embed(texts)
        lengths = [tokens.tokens for tokens in model.encode(texts) if hasattr(tokens, "tokens")]
        cut = sum(length > model.manifest.max_length for length in lengths)
        print(f"{len(texts)} texts, {min(lengths)} to {max(lengths)} tokens, {cut} over {model.manifest.max_length}")
        for name, encode in backends.items():
            theirs = np.asarray(encode(texts))
            print(f"largest difference to {name}: {float(np.abs(ours - theirs).max()):.2e}")
        if options.parity_only:
            return
        runs = {"nopad": model.embed, **backends}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.repeat):
            for name, run in runs.items():
                start = time.perf_counter()
                run(texts)
                seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        middle = statistics.median(times)
        each = f"median of {len(times)}: {middle:.2f} s, best {min(times):.2f} s"
        print(f"{name}: {len(texts) / middle:.1f} texts/s ({each})")


if __name__ == "__main__":
    main()
