"""Make the embedded model: tokenizer, training, rounding to fp16, bundle, evaluation. 25 minutes on 2 CPU cores.

    python scripts/train_default.py --train imdb/train.jsonl --test imdb/test.jsonl --work /tmp/default

Everything goes through nopad's own commands. The result replaces runtime/default/.

IMDb's reviews are long, and what people type into a demo is short: a model trained on whole reviews alone calls
"an hour of my life I want back" positive. So each review also gives an excerpt of a sentence or two, with its label.
(With excerpts of every second review, test accuracy is 0.4 points higher, but that phrase is positive again.)
"""

import json
import random
import re
import shutil
from pathlib import Path

import torch
from imdb_models import HELD_OUT, RECIPE, ROOT, export, make_tokenizer, nopad, options, read_arguments
from safetensors.torch import load_file, save_file

DEFAULT = ROOT / "runtime" / "default"
OWN: dict[str, object] = {"--learning-rate": 1e-3, "--epochs": 2, "--label-smoothing": 0.1, "--max-length": 1024}
EXCERPTS = 1.0  # share of the reviews that give an excerpt


def split_with_excerpts(reviews: Path, train: Path, held_out: Path) -> None:
    """Write `held_out`, whole reviews, and `train`, the other reviews and excerpts."""
    draw = random.Random(42)
    with reviews.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    draw.shuffle(rows)
    excerpts = []
    for row in rows[HELD_OUT:]:
        if draw.random() >= EXCERPTS:
            continue
        sentences = re.split(r"(?<=[.!?])\s+", re.sub(r"<br\s*/?>", " ", row["text"]).strip())
        count = draw.randint(1, 2)
        first = draw.choice([0, max(0, len(sentences) - count), draw.randrange(len(sentences))])
        excerpts.append({"text": " ".join(sentences[first : first + count]), "label": row["label"]})
    for path, part in ((held_out, rows[:HELD_OUT]), (train, rows[HELD_OUT:] + excerpts)):
        path.write_text("".join(json.dumps({"text": r["text"], "label": r["label"]}) + "\n" for r in part), "utf-8")


def round_to_half(checkpoint: Path) -> None:
    """Halve the weights' bytes in the wheel; the rounded weights are what is exported and verified."""
    path = checkpoint / "model.safetensors"
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2) + "\n")


def main() -> None:
    arguments = read_arguments(__doc__)
    work: Path = arguments.work
    tokenizer, trained, bundle = work / "tokenizer", work / "checkpoint", work / "bundle"
    make_tokenizer(arguments.train, tokenizer)
    if not trained.exists():
        config = ROOT / "scripts" / "default" / "config.json"
        split_with_excerpts(arguments.train, work / "train.jsonl", work / "held_out.jsonl")
        data = ("--train", work / "train.jsonl", "--eval", work / "held_out.jsonl")
        recipe = options(RECIPE | OWN)
        nopad("train", "--from-scratch", config, "--tokenizer", tokenizer, *data, "--output", trained, *recipe)
    round_to_half(trained)
    export(trained, bundle, arguments.test)
    shutil.rmtree(DEFAULT, ignore_errors=True)
    shutil.copytree(trained, DEFAULT / "checkpoint")
    shutil.copytree(bundle, DEFAULT / "bundle")


if __name__ == "__main__":
    main()
