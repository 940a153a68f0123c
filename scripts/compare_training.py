"""Compare the speed of training: transformers' `Trainer` on padded batches, grouped by length or not, and nopad.

    python scripts/compare_training.py --model FOLDER --train imdb/train.jsonl [--trainers padded,nopad]

FOLDER has a tokenizer and a config.json; weights are random, the same for all. In every round each trainer, in random
order, trains one epoch of the same rows from these weights: batches, forward, backward, clipping and optimizer, without
evaluation and files. One batch of each warms up before. Prints samples/s, how many times as fast as each other trainer
nopad is (median of the ratios within each round, with a 95 % bootstrap interval), and the mean loss of an epoch.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainingArguments

from nopad.bench.report.intervals import median_interval
from nopad.model.checkpoint.load import load_checkpoint
from nopad.training.batches import Batches, token_counts
from nopad.training.tasks.single_label import SingleLabel
from nopad.training.trainer import PackedTrainer

TRAINERS = ("padded", "grouped", "nopad", "padded-bf16", "grouped-bf16", "nopad-bf16")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="JSONL with text and label (0 or 1)")
    parser.add_argument("--trainers", default="padded,grouped,nopad", help=f"of {', '.join(TRAINERS)}")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def encode(arguments: argparse.Namespace) -> datasets.Dataset:
    """Random rows of the file, with their token ids."""
    with arguments.train.open(encoding="utf-8") as lines:
        rows = random.Random(0).sample([json.loads(line) for line in lines], arguments.rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=arguments.max_length)["input_ids"]
    targets = [int(row["label"]) for row in rows]
    return datasets.Dataset.from_dict({"input_ids": ids, "target": targets, "labels": targets})


def options(arguments: argparse.Namespace, folder: Path, name: str) -> TrainingArguments:
    """The same for all, but for how padded batches are sampled and the precision."""
    grouping: dict[str, Any] = {}
    if name.startswith("grouped"):
        old = transformers.__version__.startswith("4.")
        grouping = {"group_by_length": True} if old else {"train_sampling_strategy": "group_by_length"}
    return TrainingArguments(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=arguments.batch_size,
        num_train_epochs=1,
        learning_rate=1e-4,
        bf16=name.endswith("bf16"),
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        **grouping,
    )


def make_trainer(arguments: argparse.Namespace, folder: Path, rows: datasets.Dataset, name: str) -> Any:
    settings = options(arguments, folder, name)
    if name.startswith("nopad"):
        return PackedTrainer(
            checkpoint=load_checkpoint(folder, task="text-classification"),
            tokenizer=None,
            task=SingleLabel(),
            batches=Batches(token_counts(rows), texts=arguments.batch_size, seed=0),
            label_smoothing=0.0,
            args=settings,
            train_dataset=rows,
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    return transformers.Trainer(
        model=transformers.AutoModelForSequenceClassification.from_pretrained(folder),
        args=settings,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        train_dataset=rows.remove_columns("target"),
    )


def one_epoch(arguments: argparse.Namespace, folder: Path, rows: datasets.Dataset, name: str) -> tuple[float, float]:
    """Seconds, and the mean loss of the steps."""
    trainer = make_trainer(arguments, folder, rows, name)
    trainer.remove_callback(transformers.PrinterCallback)
    begin = time.perf_counter()
    outcome = trainer.train()
    return time.perf_counter() - begin, outcome.training_loss


def report(rows: int, seconds: dict[str, list[float]], losses: dict[str, float]) -> None:
    for name, times in seconds.items():
        low, middle, high = median_interval([rows / value for value in times])
        print(f"{name:13} {middle:6.2f} samples/s ({low:.2f} to {high:.2f}), loss {losses[name]:.4f}")
    for ours in (name for name in seconds if name.startswith("nopad")):
        for theirs in (name for name in seconds if name != ours):
            print(f"{ours} against {theirs}: {as_ratio(seconds[theirs], seconds[ours])}")


def as_ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    low, middle, high = median_interval([their / our for their, our in zip(theirs, ours, strict=True)])
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def main() -> None:
    arguments = read_arguments()
    names: list[str] = arguments.trainers.split(",")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    rows = encode(arguments)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(arguments.model, num_labels=2)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        for name in names:
            one_epoch(arguments, folder, rows.select(range(arguments.batch_size)), name)
        for round_number in range(arguments.rounds):
            for name in random.Random(round_number).sample(names, len(names)):
                taken, losses[name] = one_epoch(arguments, folder, rows, name)
                seconds[name].append(taken)
    print(f"PyTorch {torch.__version__}, transformers {transformers.__version__}, {arguments.threads} thread(s)")
    report(arguments.rows, seconds, losses)


if __name__ == "__main__":
    main()
