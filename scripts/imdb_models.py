"""Shared by the scripts that train models on IMDb's reviews: arguments, tokenizer, nopad's own commands."""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE: dict[str, object] = {
    "--warmup-ratio": 0.06,
    "--weight-decay": 0.1,
    "--batch-size": 32,
    "--seed": 42,
    "--labels": "negative,positive",
}
HELD_OUT = 1500  # whole reviews that are not trained on: they choose the epoch and calibrate int8


def read_arguments(description: str | None, *folders: str) -> argparse.Namespace:
    """`train` and `test`, files of reviews, `work`, the folder for all output, and the `folders` that are named."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("train", "test", "work", *folders):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def make_tokenizer(reviews: Path, folder: Path) -> None:
    """A tokenizer of 8,192 entries for these reviews."""
    script = ROOT / "scripts" / "make_tokenizer.py"
    subprocess.run([sys.executable, script, reviews, folder, "--vocab-size", "8192"], check=True)


def nopad(*arguments: object) -> None:
    """Run one of nopad's commands."""
    subprocess.run([sys.executable, "-m", "nopad.runtime.cli", *map(str, arguments)], check=True)


def options(values: Mapping[str, object]) -> list[object]:
    """Options of a command, each with its value."""
    return [part for option in values.items() for part in option]


def export(checkpoint: Path, bundle: Path, test: Path) -> None:
    """Export the checkpoint, and evaluate the bundle beside it on the test set."""
    nopad("export", checkpoint, "--output", bundle)
    nopad("parity", bundle, "--reference", checkpoint, "--data", test)
