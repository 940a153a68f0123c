"""What int8 on CPUs costs a trained classifier (the table of docs/int8.md): each row in fp32 and in int8.

    python scripts/judge_int8.py CHECKPOINT --calibrate held_out.jsonl --data test.jsonl --work WORK

Exports CHECKPOINT into WORK, without texts and with the first 512 rows of --calibrate, and answers --data
through `nopad.runtime.load`. Prints a Markdown table. Exit code 1 if int8 misses the bounds of the gate: 99.5 % equal
labels, 0.3 points of accuracy.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from nopad.export.parity.accuracy import equal_rows
from nopad.export.parity.bounds import BOUNDS
from nopad.runtime import load
from nopad.runtime.bundle import open_bundle
from nopad.runtime.data.labelled import LabelledTexts, read_labelled
from nopad.runtime.types import FloatArray

CALIBRATION_ROWS = 512
COLUMNS = ("accuracy", "equal labels", "changed", "logit error", "largest difference", "layers in fp32", "seconds")


def export(checkpoint: Path, bundle: Path, *options: object) -> Path:
    """Export `checkpoint` to `bundle` through the command."""
    command = [sys.executable, "-m", "nopad.runtime.cli", "export", checkpoint, "--output", bundle, *options]
    subprocess.run([str(part) for part in command], check=True)
    return bundle


def answer(bundle: Path, precision: str, texts: list[str], threads: int) -> tuple[FloatArray, float]:
    """Logits [texts, num_labels] of the bundle's file of this precision, and the seconds they took."""
    with load(bundle, precision=precision, threads=threads) as model:
        start = time.perf_counter()
        logits = [prediction.logits for prediction in model.predict(texts, return_logits=True)]
        elapsed = time.perf_counter() - start
    return np.array(logits, dtype=np.float32), elapsed


def fp32_layers(bundle: Path) -> str:
    """How many of the linear layers stayed fp32."""
    artifacts = open_bundle(bundle).manifest.artifacts
    quantized = next(artifact.quantized for artifact in artifacts if artifact.precision == "int8")
    assert quantized is not None
    return f"{len(quantized['kept'])} of {len(quantized['kept']) + len(quantized['int8'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)

    calibration = work / "calibration.jsonl"
    with arguments.calibrate.open(encoding="utf-8") as lines:
        calibration.write_text("".join(line for line, _ in zip(lines, range(CALIBRATION_ROWS), strict=False)), "utf-8")
    plain = export(arguments.checkpoint, work / "no-texts", "--precision", "fp32,int8")
    calibrated = export(arguments.checkpoint, work / "calibrated", "--precision", "int8", "--calibrate", calibration)

    manifest = open_bundle(plain).manifest
    data: LabelledTexts = read_labelled(arguments.data, manifest, limit=arguments.limit)
    if data.targets is None:
        sys.exit(f"judge_int8: {arguments.data} has no labels")

    if not manifest.head.has_labels:
        sys.exit("judge_int8: a regression has no labels")
    labels = manifest.head.decide

    fp32, seconds = answer(plain, "fp32", data.texts, arguments.threads)
    accuracy = equal_rows(labels(fp32), data.targets)
    print(f"| {len(data.texts):,} rows | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    print(f"| fp32 | {accuracy:.2%} | - | - | - | - | - | {seconds:.0f} |", flush=True)
    bounds, passed = BOUNDS["int8"], True
    for name, bundle in (("int8", plain), ("int8, own texts", calibrated)):
        int8, seconds = answer(bundle, "int8", data.texts, arguments.threads)
        agreement, own = equal_rows(labels(int8), labels(fp32)), equal_rows(labels(int8), data.targets)
        error = np.sqrt(np.mean((int8 - fp32) ** 2) / np.mean(fp32**2))
        cells = [f"{own:.2%}", f"{agreement:.3%}", round((1 - agreement) * len(int8)), f"{error:.2%}"]
        cells += [f"{np.abs(int8 - fp32).max():.3f}", fp32_layers(bundle), f"{seconds:.0f}"]
        print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)
        passed = passed and agreement >= bounds.agreement and accuracy - own <= bounds.accuracy_loss
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
