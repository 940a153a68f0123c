"""`nopad train`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nopad.model.head import PROBLEM_TYPES, ProblemType, Task
from nopad.runtime.console import FILES, common_options, emit, messages, reading_options, threads_option
from nopad.runtime.data.fields import LABEL_COLUMNS, TEXT_COLUMNS
from nopad.runtime.data.table import DataSource
from nopad.training.recipe import EVAL_FRACTION, Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from nopad.training.data import TrainingData
    from nopad.training.trainer import TrainingResult


TRAINED: tuple[Task, ...] = ("text-classification",)  # the keys of `nopad.training.loaders.LOADERS`, without torch


@click.command()
@click.option("--model", "-m", help="Checkpoint folder or Hugging Face Hub name to fine-tune.")
@click.option(
    "--from-scratch",
    type=click.Path(exists=True, path_type=Path),
    help="Random weights from this config.json instead of --model.",
)
@click.option(
    "--base", help="Folder or Hub name of the base, where --model is a LoRA adapter. [default: the one it names]"
)
@click.option("--tokenizer", help="Folder with tokenizer.json. [default: the model's own]")
@click.option("--train", "train_data", required=True, help=f"Hub name, or {FILES}.")
@click.option("--eval", "eval_data", help="As --train. [default: its validation or test split, else --eval-fraction]")
@click.option(
    "--eval-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=EVAL_FRACTION,
    help="Share of --train to hold out where nothing else is there to evaluate on.",
)
@click.option(
    "--task", type=click.Choice(TRAINED), default=TRAINED[0], show_default=True, help="What the model is to do."
)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Checkpoint folder to write.")
@reading_options
@click.option(
    "--text-column", help=f"Column, or dotted path, of the text. [default: {', '.join(TEXT_COLUMNS[:6])}, ...]"
)
@click.option(
    "--label-column",
    help="The same of the label; or several, comma-separated, of zeros and ones: one for each label. "
    f"[default: {', '.join(LABEL_COLUMNS[:4])}, ...]",
)
@click.option(
    "--labels",
    help="Names of the classes, comma-separated, in the order of their numbers. [default: what the column holds; "
    "LABEL_0, LABEL_1 ... where it holds 0 to n-1 without gaps]",
)
@click.option(
    "--problem-type",
    type=click.Choice(PROBLEM_TYPES),
    help="What the labels are. [default: whole numbers and texts are classes, floats a number to learn, lists several "
    "labels at once]",
)
@click.option("--learning-rate", type=float, default=Recipe.learning_rate, help="Highest learning rate.")
@click.option("--adam-beta1", type=float, default=Recipe.adam_beta1, help="Decay of AdamW's mean of gradients.")
@click.option("--adam-beta2", type=float, default=Recipe.adam_beta2, help="Decay of AdamW's mean of squared gradients.")
@click.option("--adam-epsilon", type=float, default=Recipe.adam_epsilon, help="Keeps AdamW from dividing by zero.")
@click.option("--weight-decay", type=float, default=Recipe.weight_decay, help="AdamW's, on all but norms and biases.")
@click.option(
    "--schedule", default=Recipe.schedule, help="linear, cosine, constant, constant_with_warmup or polynomial."
)
@click.option(
    "--warmup-ratio", type=click.FloatRange(0, 1), default=Recipe.warmup_ratio, help="Share of the steps that warm up."
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 1),
    default=Recipe.label_smoothing,
    help="Of single-label classification.",
)
@click.option("--epochs", type=float, default=Recipe.epochs, help="Passes over the training data.")
@click.option("--batch-size", type=int, default=Recipe.batch_size, help="Texts per process and batch.")
@click.option(
    "--batch-tokens",
    type=int,
    help="The most tokens per process and batch, instead of --batch-size: batches of about equal work.",
)
@click.option("--eval-batch-size", type=int, default=Recipe.eval_batch_size, help="The same, in evaluation.")
@click.option(
    "--gradient-accumulation", type=int, default=Recipe.gradient_accumulation, help="Batches summed up before a step."
)
@click.option(
    "--gradient-checkpointing", is_flag=True, help="Compute layers again in the backward pass: less memory, more time."
)
@click.option("--max-length", type=int, default=Recipe.max_length, help="Tokens of a text; kept as the model's limit.")
@click.option("--seed", type=int, default=Recipe.seed, help="Of weights, dropout, order and split.")
@click.option(
    "--bf16/--no-bf16", default=Recipe.bf16, help="Train in bfloat16, on a GPU or CPU that has it. [default: on a GPU]"
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same --output.")
@common_options
@threads_option
def train(
    model: str | None,
    from_scratch: Path | None,
    base: str | None,
    tokenizer: str | None,
    train_data: str,
    eval_data: str | None,
    eval_fraction: float,
    task: Task,
    output: Path,
    encoding: str | None,
    columns: tuple[str, ...],
    text_column: str | None,
    label_column: str | None,
    labels: str | None,
    problem_type: ProblemType | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
    **recipe: Any,
) -> None:
    """Fine-tune a text classifier; the best epoch becomes the checkpoint at --output.

    The defaults are the known recipe for ModernBERT on IMDb. Classes, several labels at once, or a number
    (regression) follow from the label column; the command prints what it has understood before it trains.

    \b
    nopad train --model answerdotai/ModernBERT-base --train imdb --output checkpoint/
    """
    # Threads that wait by spinning take the cores from those that they wait for, once another program wants them, too.
    # PyTorch's OpenMP reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import datasets
    import torch

    from nopad.training.loaders import load
    from nopad.training.processes import first_process
    from nopad.training.run_folder import check_run
    from nopad.training.trainer import train as run

    settings = Recipe(**recipe)
    check_run(output, model=model, from_scratch=from_scratch, tokenizer=tokenizer, recipe=settings, resume=resume)
    if threads is not None:
        torch.set_num_threads(threads)
    console = messages(quiet or not first_process())
    if quiet or not console.is_terminal:
        datasets.disable_progress_bars()
    read = partial(DataSource, encoding=encoding, columns=columns)
    data = load(
        task,
        read(path=train_data),
        read(path=eval_data) if eval_data is not None else None,
        text_column=text_column,
        label_column=label_column,
        labels=[name.strip() for name in labels.split(",")] if labels is not None else None,
        problem_type=problem_type,
        eval_fraction=eval_fraction,
        seed=settings.seed,
    )
    _print_data_summary(data, console)
    start: dict[str, Any] = {"model": model, "from_scratch": from_scratch, "base": base, "tokenizer": tokenizer}
    with _report_saved_epochs(output, console):
        result = run(data, output, **start, recipe=settings, resume=resume, console=console)
    if first_process():
        _print_result(result, as_json)


def _print_data_summary(data: TrainingData, console: Console) -> None:
    console.print(f"{len(data.train)} texts to train on, {len(data.evaluation)} to evaluate, {data.problem_type}")
    console.print(data.summary)
    for remark in data.remarks:
        console.print(f"note: {remark}", style="yellow")


def _print_result(result: TrainingResult, as_json: bool) -> None:
    figures = {**result.metrics, "epoch": result.epoch, "seconds": round(result.seconds, 1)}
    if as_json:
        emit({"checkpoint": str(result.output), **figures})
    else:
        click.echo(f"{result.output}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


@contextmanager
def _report_saved_epochs(output: Path, console: Console) -> Iterator[None]:
    """After Ctrl-C, say where saved epochs are."""
    from nopad.training.run_folder import saved_epochs

    try:
        yield
    except KeyboardInterrupt:
        saved = saved_epochs(output)
        where = f"saved epochs are in {saved[0].parent}: go on with --resume" if saved else "no epoch was finished"
        console.print(f"interrupted; {where}")
        raise
