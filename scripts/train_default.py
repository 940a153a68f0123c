"""Make the embedded model: tokenizer, rows, a student of a teacher, rounding, bundle, evaluation.

    python scripts/train_default.py --train imdb/train.jsonl --test imdb/test.jsonl --work /tmp/default \
        --teacher bundle/ --embeddings minilm/

`--teacher` is a bundle of a classifier of reviews, and `--embeddings` the pre-trained checkpoint that the student's
token embeddings begin as: docs/real-weights.md says how both are made. Everything goes through nopad's own commands.
The result replaces runtime/default/. 70 minutes on one CPU core, and the time in which the teacher
answers 94,000 texts: about 45 more.

IMDb's reviews are long, and what people type into a demo is short: a model trained on whole reviews alone calls
"an hour of my life I want back" positive. So each review also gives an excerpt of a sentence or two, and two pieces of
some length, which its teacher answers one by one: they need not say what the whole review says.
"""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from imdb_models import HELD_OUT, RECIPE, ROOT, export, make_tokenizer, nopad, options, read_arguments
from safetensors.torch import load_file, save_file

DEFAULT = ROOT / "runtime" / "default"
CONFIG = ROOT / "scripts" / "default" / "config.json"
OWN: dict[str, object] = {
    "--teacher-weight": 0.7,
    "--learning-rate": 1e-3,
    "--epochs": 3,
    "--max-length": 1024,
    "--threads": 1,  # as fast as two: the model's products are small
}
PIECES = ((30, 150, 7), (80, 200, 11))  # words, at least and at most, and the seed
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")  # of a checkpoint
Row = dict[str, object]


def excerpts(rows: list[Row], draw: random.Random) -> list[Row]:
    """A sentence or two of each row."""
    parts = []
    for row in rows:
        draw.random()  # so that excerpts are those that the published weights learned from
        sentences = re.split(r"(?<=[.!?])\s+", re.sub(r"<br\s*/?>", " ", str(row["text"])).strip())
        count = draw.randint(1, 2)
        first = draw.choice([0, max(0, len(sentences) - count), draw.randrange(len(sentences))])
        parts.append(row | {"text": " ".join(sentences[first : first + count])})
    return parts


def pieces(rows: list[Row], shortest: int, longest: int, draw: random.Random) -> list[Row]:
    """A piece of each row, of so many words."""
    parts = []
    for row in rows:
        words = str(row["text"]).split()
        count = min(len(words), draw.randint(shortest, longest))
        first = draw.randint(0, len(words) - count)
        parts.append(row | {"text": " ".join(words[first : first + count])})
    return parts


def split(reviews: Path, train: Path, held_out: Path) -> None:
    """Write `held_out`, whole reviews, and `train`, the other reviews and parts of them."""
    draw = random.Random(42)
    with reviews.open(encoding="utf-8") as lines:
        rows = [{name: row[name] for name in ("text", "label")} for row in map(json.loads, lines)]
    draw.shuffle(rows)
    whole = rows[HELD_OUT:]
    parts = [part for low, high, seed in PIECES for part in pieces(whole, low, high, random.Random(seed))]
    for path, part in ((held_out, rows[:HELD_OUT]), (train, whole + excerpts(whole, draw) + parts)):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")


def round_weights(checkpoint: Path) -> None:
    """Fewer bytes in the wheel; the rounded weights are what is exported and verified.

    fp16, of whose ten bits of fraction bf16's seven are kept: the others are zeros, which take no place in a wheel.
    """
    path = checkpoint / "model.safetensors"
    weights = {name: tensor.to(torch.bfloat16).to(torch.float16) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2) + "\n")


def main() -> None:
    arguments = read_arguments(__doc__, "teacher", "embeddings")
    work: Path = arguments.work
    tokenizer, start, trained, bundle = (work / name for name in ("tokenizer", "start", "checkpoint", "bundle"))
    train, held_out = work / "train.jsonl", work / "held_out.jsonl"
    make_tokenizer(arguments.train, tokenizer)
    if not trained.exists():
        split(arguments.train, train, held_out)
        script = ROOT / "scripts" / "start_student.py"
        subprocess.run([sys.executable, script, CONFIG, tokenizer, arguments.embeddings, train, start], check=True)
        data = ("--train", train, "--eval", held_out, "--teacher", arguments.teacher)
        nopad("train", "--model", start, *data, "--output", trained, *options(RECIPE | OWN))
    round_weights(trained)
    export(trained, bundle, arguments.test)
    shutil.rmtree(DEFAULT, ignore_errors=True)
    (DEFAULT / "checkpoint").mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(trained / name, DEFAULT / "checkpoint" / name)
    shutil.copytree(bundle, DEFAULT / "bundle")


if __name__ == "__main__":
    main()
