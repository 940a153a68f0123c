"""Make the embedded model: tokenizer, training, rounding to fp16, bundle, evaluation. Half an hour on 2 CPU cores.

    python scripts/train_default.py --train imdb/train.jsonl --test imdb/test.jsonl --work /tmp/default

Everything goes through nopad's own commands. The result replaces runtime/default/.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parent.parent
DEFAULT = ROOT / "runtime" / "default"
RECIPE = {
    "--learning-rate": 1e-3,
    "--epochs": 3,
    "--warmup-ratio": 0.06,
    "--weight-decay": 0.1,
    "--label-smoothing": 0.1,
    "--eval-fraction": 0.06,
    "--max-length": 512,
    "--batch-size": 32,
    "--seed": 42,
    "--labels": "negative,positive",
}


def nopad(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "nopad.runtime.cli", *map(str, arguments)], check=True)


def round_to_half(checkpoint: Path) -> None:
    """Half the bytes in the wheel; what is exported and verified afterwards are the rounded weights."""
    path = checkpoint / "model.safetensors"
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work: Path = arguments.work
    tokenizer, trained = work / "tokenizer", work / "checkpoint"
    script = ROOT / "scripts" / "make_tokenizer.py"
    subprocess.run([sys.executable, script, arguments.train, tokenizer, "--vocab-size", "8192"], check=True)
    if not trained.exists():
        config = ROOT / "scripts" / "default" / "config.json"
        source = ("--from-scratch", config, "--tokenizer", tokenizer, "--train", arguments.train)
        recipe = [part for option in RECIPE.items() for part in option]
        nopad("train", *source, "--output", trained, *recipe)
    round_to_half(trained)
    bundle = work / "bundle"
    nopad("export", trained, "--output", bundle)
    nopad("parity", bundle, "--reference", trained, "--data", arguments.test)
    shutil.rmtree(DEFAULT, ignore_errors=True)
    shutil.copytree(trained, DEFAULT / "checkpoint")
    shutil.copytree(bundle, DEFAULT / "bundle")


if __name__ == "__main__":
    main()
