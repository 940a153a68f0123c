"""What every file of a classifier's bundle costs it: bf16 and int8 beside fp32 on labelled texts (docs/int8.md).

    python scripts/judge_precisions.py BUNDLE --data test.jsonl [--limit N] [--threads N]

Prints a Markdown table; the first row is the bundle's fp32 file. Exit code 1 if a file misses the gate's bounds of its
precision on equal labels or accuracy.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from nopad.export.parity.accuracy import equal_rows
from nopad.export.parity.bounds import BOUNDS
from nopad.runtime import load
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.data.labelled import read_labelled
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.hardware import PRECISIONS
from nopad.runtime.manifest import Artifact
from nopad.runtime.types import FloatArray

COLUMNS = ("accuracy", "equal labels", "changed", "logit error", "largest gap", "layers in fp32", "MB", "texts/s")


def answer(bundle: Bundle, artifact: Artifact, texts: list[str], threads: int) -> tuple[str, FloatArray, float]:
    """The engine that ran the artifact, logits [texts, num_labels], and texts a second."""
    engines = [name for name, engine in ENGINES.items() if artifact.target in engine.targets and not engine.gpu]
    with load(
        bundle.path, engine=engines, file=artifact.file, threads=threads, fallback=False, allow_unverified=True
    ) as model:
        start = time.perf_counter()
        logits = [prediction.logits for prediction in model.predict(texts, return_logits=True)]
        return model.status().engine, np.array(logits, np.float32), len(texts) / (time.perf_counter() - start)


def kept(artifact: Artifact) -> str:
    """How many of the layers of an int8 file stayed fp32."""
    if artifact.quantized is None:
        return "-"
    left = len(artifact.quantized["kept"])
    return f"{left} of {left + len(artifact.quantized['int8'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    data = read_labelled(arguments.data, manifest, limit=arguments.limit)
    if data.targets is None or not manifest.head.has_labels:
        sys.exit(f"judge_precisions: labels are needed, of {arguments.data} and of {arguments.bundle}")
    artifacts = sorted(manifest.artifacts, key=lambda artifact: PRECISIONS.index(artifact.precision))
    if artifacts[0].precision != "fp32":
        sys.exit(f"judge_precisions: {arguments.bundle} has no fp32 file to hold the others to")

    print(f"| {len(data.texts):,} rows | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    exact, best, passed = np.zeros(0, np.float32), 0.0, True
    for artifact in artifacts:
        engine, logits, speed = answer(bundle, artifact, data.texts, arguments.threads)
        labels = manifest.head.decide(logits)
        accuracy = equal_rows(labels, data.targets)
        megabytes = sum(manifest.files[name].bytes for name in bundle.files_of(artifact)) / 1e6
        cells = [f"{artifact.precision}, {engine}", f"{accuracy:.2%}"]
        if artifact is artifacts[0]:
            exact, best = logits, accuracy
            cells += ["-"] * 4
        else:
            agreement = equal_rows(labels, manifest.head.decide(exact))
            error = np.sqrt(np.mean((logits - exact) ** 2) / np.mean(exact**2))
            cells += [f"{agreement:.3%}", f"{round((1 - agreement) * len(logits))}", f"{error:.2%}"]
            cells += [f"{np.abs(logits - exact).max():.3f}"]
            bounds = BOUNDS[artifact.precision]
            passed = passed and agreement >= bounds.agreement and best - accuracy <= bounds.accuracy_loss
        print(f"| {' | '.join([*cells, kept(artifact), f'{megabytes:.1f}', f'{speed:.0f}'])} |", flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
