"""Train the mid-size model that int8 on CPUs is judged by (docs/int8.md), through nopad's own commands.

    python scripts/train_midsize.py --train imdb/train.jsonl --test imdb/test.jsonl --work /tmp/midsize

Six layers of ModernBERT's architecture, from random weights: deep and wide enough for activations with outliers, small
enough for an hour on 2 CPU cores. `WORK/held_out.jsonl` has reviews that are never trained on: they calibrate int8. The
test set is for the last evaluation alone.
"""

import json
import random
from pathlib import Path

from imdb_models import HELD_OUT, RECIPE, export, make_tokenizer, nopad, options, read_arguments

CONFIG = {
    "model_type": "modernbert",
    "architectures": ["ModernBertForSequenceClassification"],
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "local_attention": 64,
    "global_attn_every_n_layers": 3,
    "classifier_pooling": "mean",
    "embedding_dropout": 0.3,
    "mlp_dropout": 0.1,
    "classifier_dropout": 0.2,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "bos_token_id": 2,
    "sep_token_id": 3,
    "eos_token_id": 3,
    "initializer_range": 0.02,
}
OWN: dict[str, object] = {"--label-smoothing": 0.05, "--epochs": 1}
# Words are learned from the first 128 tokens of every review, at a third of the time; whole reviews from half of them.
SHORT: dict[str, object] = {"--max-length": 128, "--learning-rate": 1e-3}
WHOLE: dict[str, object] = {"--max-length": 512, "--learning-rate": 5e-4}


def split(reviews: Path, work: Path) -> None:
    """Write `HELD_OUT` of the reviews to held_out.jsonl, the others to all.jsonl, half of those to half.jsonl."""
    with reviews.open(encoding="utf-8") as lines:
        rows = list(lines)
    random.Random(42).shuffle(rows)
    held_out, rest = rows[:HELD_OUT], rows[HELD_OUT:]
    for name, part in (("held_out", held_out), ("all", rest), ("half", rest[: len(rest) // 2])):
        (work / f"{name}.jsonl").write_text("".join(part), "utf-8")


def main() -> None:
    arguments = read_arguments(__doc__)
    work: Path = arguments.work
    tokenizer, config, trained = work / "tokenizer", work / "config.json", work / "ckpt"
    make_tokenizer(arguments.train, tokenizer)
    config.write_text(json.dumps(CONFIG, indent=2) + "\n", "utf-8")
    split(arguments.train, work)
    common = ("--tokenizer", tokenizer, "--eval", work / "held_out.jsonl", *options(RECIPE | OWN))
    start = work / "short"
    nopad("train", "--from-scratch", config, "--train", work / "all.jsonl", "--output", start, *common, *options(SHORT))
    nopad("train", "--model", start, "--train", work / "half.jsonl", "--output", trained, *common, *options(WHOLE))
    export(trained, work / "bundle", arguments.test)


if __name__ == "__main__":
    main()
