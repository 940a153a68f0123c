"""`nopad train`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nopad.model.head import ProblemType, Task
from nopad.runtime.console import common_options, emit, messages, reading_options, threads_option
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import UsageError
from nopad.training.commands.options import column_options, data_options, task_options
from nopad.training.recipe import LORA_LEARNING_RATE, Recipe
from nopad.training.reporting import REPORTERS, Reporter, check_reporters
from nopad.training.search_space import read_space

if TYPE_CHECKING:
    from rich.console import Console

    from nopad.training.bad_rows import OnBadRow, OnDuplicate
    from nopad.training.data import TrainingData
    from nopad.training.trainer import TrainingResult


# The keys of `nopad.training.loaders.LOADERS`, without torch.
TRAINED: tuple[Task, ...] = ("text-classification", "embeddings", "rerank", "token-classification", "fill-mask")


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
@data_options
@click.option(
    "--task", type=click.Choice(TRAINED), default=TRAINED[0], show_default=True, help="What the model is to do."
)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Checkpoint folder to write.")
@reading_options
@column_options
@task_options
@click.option(
    "--learning-rate",
    type=float,
    help=f"Highest learning rate. [default: {Recipe.learning_rate:g}; {LORA_LEARNING_RATE:g} with --lora]",
)
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
    "--freeze-layers",
    type=int,
    help="Leave the embeddings and the first N layers as they are; 0: only the embeddings. [default: train all]",
)
@click.option(
    "--layer-decay",
    type=float,
    default=Recipe.layer_decay,
    help="Each layer's learning rate is the one above's times this; the head has --learning-rate.",
)
@click.option(
    "--lora",
    type=int,
    metavar="RANK",
    help="Leave the layers as they are, and train low-rank updates beside them, and the head. [default: train all]",
)
@click.option("--lora-alpha", type=int, help="Scale of these updates, times the rank. [default: twice the rank]")
@click.option("--lora-dropout", type=float, default=Recipe.lora_dropout, help="Of what enters these updates.")
@click.option(
    "--lora-modules", metavar="NAMES", help="Linear layers that have one: Wqkv,Wo or query,value. [default: all]"
)
@click.option(
    "--gradient-checkpointing", is_flag=True, help="Compute layers again in the backward pass: less memory, more time."
)
@click.option("--max-length", type=int, default=Recipe.max_length, help="Tokens of a text; kept as the model's limit.")
@click.option(
    "--eval-steps", type=click.IntRange(min=1), help="Evaluate and save every N steps. [default: every epoch]"
)
@click.option("--best-metric", help="Metric by which the best evaluation is chosen. [default: the task's first choice]")
@click.option(
    "--patience", type=click.IntRange(min=1), help="Stop after N evaluations without a better one. [default: never]"
)
@click.option("--seed", type=int, default=Recipe.seed, help="Of weights, dropout, order and split.")
@click.option(
    "--bf16/--no-bf16", default=Recipe.bf16, help="Train in bfloat16, on a GPU or CPU that has it. [default: on a GPU]"
)
@click.option(
    "--teacher",
    help="Learn the answers of this model, too: a checkpoint (folder or Hub name) or an exported bundle, of the same "
    "labels. Its tokenizer and size may be others. Embeddings with negatives may also have a reranker as a teacher.",
)
@click.option(
    "--teacher-weight",
    type=click.FloatRange(0, 1),
    default=Recipe.teacher_weight,
    help="Share of the loss that compares with the teacher; the labels have the rest.",
)
@click.option(
    "--teacher-states",
    type=click.FloatRange(min=0),
    default=Recipe.teacher_states,
    metavar="WEIGHT",
    help="Learn its last hidden states, too, token by token: how much they count beside the other losses. Needs a "
    "checkpoint with the same tokenizer, which then reads each batch.",
)
@click.option(
    "--temperature",
    type=float,
    default=Recipe.temperature,
    help="Softens classes, or neighbours of embeddings, before they are compared with the teacher's.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help="Try so many settings, each in a run of its own (Optuna), and keep the best. [default: no sweep]",
)
@click.option(
    "--sweep",
    multiple=True,
    metavar="SETTING=VALUES",
    help="What --trials try, once for each setting: learning-rate=1e-5..1e-3, batch-size=16,32, ... [default: learning "
    "rate, weight decay, warm-up and batch size around the ones given]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with an interrupted run of the same --output, or add trials to a sweep.",
)
@click.option(
    "--report-to",
    multiple=True,
    type=click.Choice(REPORTERS),
    help="Send the figures there, too; may be given several times. [default: nowhere]",
)
@click.option(
    "--log-every",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    metavar="SECONDS",
    help="How often a line tells progress where stderr is no terminal.",
)
@common_options
@threads_option
def train(
    model: str | None,
    from_scratch: Path | None,
    base: str | None,
    tokenizer: str | None,
    train_data: tuple[str, ...],
    eval_data: tuple[str, ...],
    eval_fraction: float,
    split_group: str | None,
    duplicates: OnDuplicate | None,
    bad_rows: OnBadRow | None,
    task: Task,
    output: Path,
    encoding: str | None,
    columns: tuple[str, ...],
    text_column: str | None,
    text_pair_column: str | None,
    label_column: str | None,
    labels: str | None,
    problem_type: ProblemType | None,
    pooling: str | None,
    matryoshka: str | None,
    prompts: str | None,
    class_weights: str | None,
    ordinal: bool | None,
    label_all_tokens: bool | None,
    teacher_vectors: bool | None,
    mask_probability: float | None,
    whole_word: bool | None,
    trials: int | None,
    sweep: tuple[str, ...],
    resume: bool,
    report_to: tuple[Reporter, ...],
    log_every: float,
    as_json: bool,
    quiet: bool,
    threads: int | None,
    **recipe: Any,
) -> None:
    """Fine-tune a classifier, an embedder or a reranker; the best epoch becomes the checkpoint at --output.

    The defaults are the known recipe for ModernBERT on IMDb. Classes, several labels at once, or a number
    (regression) follow from the label column; the command prints what it has understood before it trains.
    For --task embeddings, rows are pairs (with any number of negatives) or scored pairs; for rerank query, passage and
    label, or query, answers and negatives.

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
    from nopad.training.trainer import asked_for, check_best_metric
    from nopad.training.trainer import train as run

    if recipe["learning_rate"] is None:
        recipe["learning_rate"] = Recipe.learning_rate if recipe["lora"] is None else LORA_LEARNING_RATE
    settings = Recipe(**recipe)
    check_reporters(report_to)
    if sweep and trials is None:
        raise UsageError("--sweep says what --trials try; say how many: --trials 20")
    space = read_space(sweep, settings)
    if trials is not None:
        from nopad.training.sweep import check_sweep

        check_sweep(output, resume)
    sweep_resumes = trials is not None and resume
    check_run(
        output,
        model=model,
        from_scratch=from_scratch,
        tokenizer=tokenizer,
        recipe=settings,
        resume=resume and not sweep_resumes,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    console = messages(quiet or not first_process())
    if quiet or not console.is_terminal:
        datasets.disable_progress_bars()
    read = partial(DataSource, encoding=encoding, columns=columns)
    data = load(
        task,
        [read(path=path) for path in train_data],
        [read(path=path) for path in eval_data] or None,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        labels=[name.strip() for name in labels.split(",")] if labels is not None else None,
        problem_type=problem_type,
        pooling=pooling,
        matryoshka=_sizes(matryoshka),
        prompts=_prompts(prompts),
        class_weights=class_weights,
        ordinal=ordinal,
        label_all_tokens=label_all_tokens,
        teacher_vectors=teacher_vectors,
        mask_probability=mask_probability,
        whole_word=whole_word,
        eval_fraction=eval_fraction,
        split_group=split_group,
        duplicates=duplicates,
        bad_rows=bad_rows,
        seed=settings.seed,
    )
    _print_data_summary(data, console)
    start: dict[str, Any] = {"model": model, "from_scratch": from_scratch, "base": base, "tokenizer": tokenizer}
    with nullcontext() if trials is not None else _report_saved_epochs(output, console):
        said: dict[str, Any] = {"console": console, "log_every": log_every, "report_to": report_to}

        def once(folder: Path, **options: Any) -> TrainingResult:
            return run(data, folder, **start, **said, sources=[*train_data, *eval_data], **options)

        if trials is None:
            result = once(output, recipe=settings, resume=resume)
        else:
            from nopad.training.provenance import provenance
            from nopad.training.study import Sweep
            from nopad.training.sweep import run_sweep

            check_best_metric(settings, data.task)
            metric = settings.best_metric or data.task.best_metric
            origin = {"model": model or from_scratch, "tokenizer": tokenizer, "base": base}
            asked = asked_for(settings, data, provenance(data), **origin)
            inputs = {name: value for name, value in asked.items() if name not in space}
            result = run_sweep(
                Sweep(space=space, trials=trials, metric=metric, inputs=inputs),
                once,
                output,
                recipe=settings,
                resume=resume,
                console=console,
                tell=(lambda row: emit({**vars(row), "metric": metric})) if as_json else (lambda row: None),
            )
    if first_process():
        _print_result(result, as_json)


def _sizes(names: str | None) -> list[int] | None:
    try:
        return None if names is None else [int(name) for name in names.split(",")]
    except ValueError:
        raise UsageError(f"--matryoshka must be whole numbers with commas between them, got {names!r}") from None


def _prompts(text: str | None) -> dict[str, str] | None:
    if text is None or text.strip().lower() == "none":
        return None if text is None else {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(prompt, str) for prompt in found.values()):
        example = '{"query": "query: ", "document": "passage: "}'
        raise UsageError(f"--prompts must be none, or a JSON object of texts such as {example}, got {text!r}")
    return found


def _print_data_summary(data: TrainingData, console: Console) -> None:
    task = data.problem_type or data.task.head
    console.print(f"{len(data.train)} texts to train on, {len(data.evaluation)} to evaluate, {task}")
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
        where = f"the last saved state is {saved[-1]}: go on with --resume" if saved else "nothing was saved yet"
        console.print(f"interrupted; {where}")
        raise
