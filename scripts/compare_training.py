"""Compare speed and quality of training: transformers' `Trainer`, padded and grouped by length or not, and nopad.

    python scripts/compare_training.py --model FOLDER --train imdb/train.jsonl [--trainers padded,nopad]
    python scripts/compare_training.py --model FOLDER --train train.tsv --eval held_out.tsv --epochs 3 --rounds 3

FOLDER has a tokenizer and a config.json. In every round each trainer, in random order, trains the same rows from the
same random weights, those of the round's seed, in the same batches of texts (but for grouped ones): collation, forward,
backward, clipping and optimizer, without evaluation and files. One batch of each warms up before. Prints samples/s, how
many times as fast as each other trainer nopad is (median of the ratios within each round, with a 95 % bootstrap
interval), and the mean loss of a round.

With --eval also accuracy and loss on those rows after the last step (mean over the rounds, Student's 95 % interval), by
how much each trainer differs from nopad within the rounds, and the training loss in each tenth of the run.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from over_seeds import machine, mean_interval, shown, table
from transformers import TrainingArguments

from nopad.bench.report.intervals import median_interval
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.head import Head
from nopad.runtime.data.table import DataSource
from nopad.training.batches import Batches, BatchLoader, token_counts
from nopad.training.data import TrainingData, load_data
from nopad.training.meter import Meter
from nopad.training.packed_trainer import PackedTrainer
from nopad.training.recipe import Recipe
from nopad.training.saved import Notes
from nopad.training.tasks.base import ROW

TRAINERS = ("padded", "grouped", "nopad", "padded-bf16", "grouped-bf16", "nopad-bf16")
TENTHS = 10  # points of a loss curve


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a trainer made of a round."""

    seconds: float
    loss: float  # mean of the steps
    curve: list[float]  # mean loss of each tenth of the steps
    accuracy: float  # on the evaluation rows; NaN without any
    evaluation_loss: float


class SameOrder(transformers.Trainer):
    """`Trainer` on padded batches of the texts that nopad's batches have: what differs then is not the order."""

    def __init__(self, *, batches: Batches, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batches = batches

    def get_train_dataloader(self) -> BatchLoader:
        """The batches of nopad's trainer, padded."""
        return BatchLoader(self.train_dataset, self.batches, collate_fn=self.data_collator)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", required=True, help="a file that `nopad train` reads, with texts and classes")
    parser.add_argument("--eval", help="the same, of rows to evaluate on")
    parser.add_argument("--trainers", default="padded,grouped,nopad", help=f"of {', '.join(TRAINERS)}")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def read_rows(arguments: argparse.Namespace) -> TrainingData:
    """Random rows of the training data and all of the evaluation data, with their token ids."""
    held_out = [DataSource(path=arguments.eval)] if arguments.eval else None
    data = load_data([DataSource(path=arguments.train)], held_out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        columns = data.task.encode(rows, tokenizer, arguments.max_length)
        return {**columns, "labels": rows["target"]}

    train = data.train.shuffle(seed=0).select(range(min(arguments.rows, len(data.train))))
    parts = [
        part.map(encode, batched=True, remove_columns=["text"]).add_column(ROW, np.arange(len(part)))
        for part in (train, data.evaluation)
    ]
    return replace(data, train=parts[0], evaluation=parts[1])


def options(arguments: argparse.Namespace, folder: Path, name: str, steps: int) -> TrainingArguments:
    """The same for all, but for how padded batches are sampled and the precision."""
    grouping: dict[str, Any] = {}
    if name.startswith("grouped"):
        old = transformers.__version__.startswith("4.")
        grouping = {"group_by_length": True} if old else {"train_sampling_strategy": "group_by_length"}
    return TrainingArguments(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=arguments.batch_size,
        num_train_epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        bf16=name.endswith("bf16"),
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        logging_steps=max(1, steps // TENTHS),
        metric_for_best_model="accuracy",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
        **grouping,
    )


def make_trainer(arguments: argparse.Namespace, folder: Path, data: TrainingData, name: str, seed: int) -> Any:
    batches = Batches(token_counts(data.train), texts=arguments.batch_size, seed=seed)
    settings = options(arguments, folder, name, int(len(batches) * arguments.epochs))
    settings.seed = settings.data_seed = seed
    if name.startswith("nopad"):
        return PackedTrainer(
            checkpoint=load_checkpoint(folder, task="text-classification"),
            tokenizer=None,
            task=data.task,
            head=Head(task="text-classification", labels=data.labels, problem_type=data.problem_type),
            meter=Meter(data.train),
            notes=Notes(),
            recipe=Recipe(learning_rate=arguments.learning_rate, weight_decay=settings.weight_decay),
            batches=batches,
            args=settings,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    order = {} if name.startswith("grouped") else {"batches": batches}
    return (SameOrder if order else transformers.Trainer)(
        model=transformers.AutoModelForSequenceClassification.from_pretrained(folder),
        args=settings,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: data.task.metrics(found.predictions, found.label_ids),
        train_dataset=data.train.remove_columns(["target", ROW]),
        eval_dataset=data.evaluation.remove_columns(["target", ROW]),
        **order,
    )


def run(arguments: argparse.Namespace, folder: Path, data: TrainingData, name: str, seed: int) -> Run:
    """Train from the weights in `folder`; evaluate where there is something to evaluate on."""
    transformers.set_seed(seed)
    trainer = make_trainer(arguments, folder, data, name, seed)
    trainer.remove_callback(transformers.PrinterCallback)
    begin = time.perf_counter()
    outcome = trainer.train()
    seconds = time.perf_counter() - begin
    figures = trainer.evaluate() if arguments.eval else {}
    return Run(
        seconds=seconds,
        loss=outcome.training_loss,
        curve=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry][:TENTHS],
        accuracy=figures.get("eval_accuracy", np.nan),
        evaluation_loss=figures.get("eval_loss", np.nan),
    )


def report_speed(samples: float, runs: Mapping[str, Sequence[Run]]) -> None:
    for name, own in runs.items():
        low, middle, high = median_interval([samples / one.seconds for one in own])
        loss = np.mean([one.loss for one in own])
        print(f"{name:13} {middle:6.2f} samples/s ({low:.2f} to {high:.2f}), loss {loss:.4f}")
    for ours in (name for name in runs if name.startswith("nopad")):
        for theirs in (name for name in runs if name != ours):
            ratios = [their.seconds / our.seconds for their, our in zip(runs[theirs], runs[ours], strict=True)]
            low, middle, high = median_interval(ratios)
            print(f"{ours} against {theirs}: {middle:.2f}x ({low:.2f} to {high:.2f})")


def report_quality(runs: Mapping[str, Sequence[Run]]) -> None:
    """What each trainer reaches, its difference from nopad round by round, and the curves of the training loss."""
    rows = []
    for name, own in runs.items():
        each = " ".join(f"{one.accuracy:.4f}" for one in own)
        cells = [
            name,
            shown(mean_interval([one.accuracy for one in own]), ".4f"),
            each,
            shown(mean_interval([one.evaluation_loss for one in own]), ".4f"),
        ]
        for what, style in (("accuracy", ".4f"), ("evaluation_loss", ".1e")):
            differences = [
                getattr(our, what) - getattr(one, what) for our, one in zip(runs.get("nopad", own), own, strict=True)
            ]
            cells.append("" if name == "nopad" or "nopad" not in runs else shown(mean_interval(differences), style))
        rows.append(cells)
    print(table(("", "accuracy", "of each round", "loss", "nopad's accuracy - its", "nopad's loss - its"), rows))
    curves = {name: np.array([one.curve for one in own]) for name, own in runs.items()}
    points = [
        (
            f"{tenth + 1}",
            *(f"{curve[:, tenth].mean():.4f} ± {curve[:, tenth].std(ddof=1):.4f}" for curve in curves.values()),
        )
        for tenth in range(min(curve.shape[1] for curve in curves.values()))
    ]
    print(table(("tenth of the run: training loss, mean ± standard deviation over the rounds", *curves), points))


def main() -> None:
    arguments = read_arguments()
    names: list[str] = arguments.trainers.split(",")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    data = read_rows(arguments)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        config = transformers.AutoConfig.from_pretrained(arguments.model, num_labels=len(data.labels))
        for seed in range(arguments.rounds):
            torch.manual_seed(seed)
            transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
            if seed == 0:
                few = replace(data, train=data.train.select(range(arguments.batch_size)))
                warm_up = argparse.Namespace(**vars(arguments) | {"epochs": 1, "eval": None})
                for name in names:
                    run(warm_up, folder, few, name, seed)
            for name in random.Random(seed).sample(names, len(names)):
                one = run(arguments, folder, data, name, seed)
                print(f"round {seed + 1}: {name}, {one.seconds:.1f} s, accuracy {one.accuracy:.4f}", file=sys.stderr)
                runs[name].append(one)
    print(f"{machine()}; {len(data.train)} rows, {arguments.epochs:g} epoch(s), {arguments.rounds} round(s)")
    report_speed(len(data.train) * arguments.epochs, runs)
    if arguments.eval:
        report_quality(runs)


if __name__ == "__main__":
    main()
