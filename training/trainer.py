"""`train`: Hugging Face `Trainer` around the packed encoder.

Batches are packed streams, so no step spends work on padding. Intermediate checkpoints are ordinary checkpoint
folders; the best becomes the output, put in place by one rename.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from nopad.model.checkpoint.load import Checkpoint
from nopad.model.checkpoint.sentence_transformers import Pipeline
from nopad.model.head import Head
from nopad.runtime.atomic import replace_folder
from nopad.runtime.errors import UsageError
from nopad.training.batches import Batches, text_lengths, token_counts
from nopad.training.data import TrainingData
from nopad.training.evaluation import EvaluateAtTheEnd
from nopad.training.initial_model import open_model
from nopad.training.interruption import saving_on_signals
from nopad.training.lengths import LengthReport, length_report
from nopad.training.live_teacher import LiveTeacher, open_live_teacher
from nopad.training.lora import add_lora, check_lora, take_lora
from nopad.training.meter import Meter
from nopad.training.optimizer import freeze
from nopad.training.outcome import BestBesideIt, Outcome, kept_evaluation
from nopad.training.output import write_output
from nopad.training.packed_trainer import PackedTrainer
from nopad.training.processes import first_process, processes
from nopad.training.progress import ProgressReport
from nopad.training.provenance import provenance
from nopad.training.recipe import Recipe
from nopad.training.recompute import recompute_layers
from nopad.training.reporting import Reporter, check_reporters, reporter_callbacks
from nopad.training.rows_on_disk import tokenize
from nopad.training.run_folder import KEPT, MARKER, check_run, epochs_kept, name_of, replaceable, room_on_disk
from nopad.training.saved import Notes, check_asked, read_notes
from nopad.training.tasks.base import ROW, SMALLER_IS_BETTER, TARGETS, TEACHER, Task
from nopad.training.tasks.embeddings import Pairs
from nopad.training.tasks.masked_lm import MaskedLM
from nopad.training.teacher import check_task, taught, teacher_digest
from nopad.training.tokenizer_fit import remark_on_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training run produced."""

    output: Path
    metrics: dict[str, float]  # evaluation of the epoch kept
    epoch: float
    seconds: float
    # Of this session and process:
    tokens: int  # trained on, without filler
    texts_per_second: float  # of training alone, without evaluations


def train(
    data: TrainingData,
    output: Path,
    *,
    model: str | None = None,
    from_scratch: Path | None = None,
    base: str | None = None,
    tokenizer: str | None = None,
    recipe: Recipe | None = None,
    resume: bool = False,
    console: Console | None = None,
    log_every: float = 30.0,
    report_to: Sequence[Reporter] = (),
    sources: Sequence[str] = (),
    name: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    answers: Path | None = None,
) -> TrainingResult:
    """Fine-tune and write the best evaluation's checkpoint to `output`, with learning curves and a model card.

    Saved states are in `OUTPUT.training` beside it; after an interruption `resume=True` continues from there, and it
    is removed at the end. `console` is where progress goes, every `log_every` seconds where it is no terminal;
    `sources` is what the card calls the data, `name` the model (None: the folder's); `callbacks` are transformers',
    `answers` is the file of a teacher's (None: beside the saved states). In the main thread, Ctrl-C and SIGTERM are
    taken: the step is finished and saved before `KeyboardInterrupt` (or its kind `Terminated`) is raised.

    Raises `CheckpointError`, `UsageError`, `EnvironmentProblem` or `OutputError` before anything is written; later
    `EnvironmentProblem` where the disk is full, and `DivergedError`.
    """
    recipe, console = recipe or Recipe(), console or Console(quiet=True)
    check_reporters(report_to)
    check_run(output, model=model, from_scratch=from_scratch, tokenizer=tokenizer, recipe=recipe, resume=resume)
    check_best_metric(recipe, data.task)
    check_task(data.task, recipe.teacher)
    check_lora(recipe, data.task.head)
    check_negatives(recipe, data)
    checkpoint, model_tokenizer = open_model(
        model, data, from_scratch=from_scratch, tokenizer=tokenizer, recipe=recipe, base=base
    )
    if remark := remark_on_tokenizer(model_tokenizer, data.train):
        console.print(f"note: {remark}", style="yellow")
    if recipe.freeze_layers is not None:
        freeze(checkpoint.encoder, recipe.freeze_layers)
    if recipe.lora is not None:
        console.print(add_lora(checkpoint.encoder, recipe))
    pipeline = checkpoint.pipeline or Pipeline()
    task = data.task.with_tokenizer(model_tokenizer).with_prompts(pipeline.prompts, pipeline.default_prompt_name)
    if told := task.describe():
        console.print(told)
    data = replace(data, task=task)
    depends_on = provenance(data)
    if recipe.teacher is not None:
        depends_on["teacher"] = {"sha256": teacher_digest(recipe.teacher)}
    with epochs_kept(output, resume, console) as (work, last):
        notes = read_notes(last) if last is not None else Notes()
        asked = asked_for(recipe, data, depends_on, model=model or from_scratch, tokenizer=tokenizer, base=base)
        check_asked(last or work, notes.asked, asked)
        notes = replace(notes, asked=asked)
        live = None
        if recipe.teacher is not None and (isinstance(task, MaskedLM) or recipe.teacher_states):
            live = open_live_teacher(recipe, data, model_tokenizer, size=checkpoint.config.hidden_size)
        if recipe.teacher is not None and not isinstance(task, MaskedLM):
            rows = depends_on["data"]["train"]["sha256"]
            question = " ".join((depends_on["teacher"]["sha256"], rows, *data.labels))  # answers are in their order
            size, kept = checkpoint.config.embedding_size, answers or work / KEPT
            data = taught(
                data, recipe.teacher, kept=kept, digest=question, console=console, log_every=log_every, size=size
            )
        trainer, lengths = _make_trainer(checkpoint, model_tokenizer, data, work, recipe, notes, live)
        console.print(lengths.line())
        progress = ProgressReport(console, trainer.meter, trainer.task.metric_names, every=log_every)
        with saving_on_signals(console) as stop:
            for callback in (*reporter_callbacks(report_to, output), progress, *callbacks, stop):
                trainer.add_callback(callback)
            try:
                seconds = trainer.run(last)
            finally:
                progress.stop()
        best, epoch, metrics = kept_evaluation(trainer.state, work, trainer.task.metric_names)
        tokens = trainer.meter.tokens
        rate = trainer.meter.texts / max(seconds - progress.evaluation_seconds, 1e-9)
        result = TrainingResult(
            output=output, metrics=metrics, epoch=epoch, seconds=seconds, tokens=tokens, texts_per_second=rate
        )
        trainer.accelerator.wait_for_everyone()  # the best state has been read
        if not first_process():
            return result
        outcome = Outcome(
            name=name or output.absolute().name,
            model=model,
            sources=sources,
            data=data,
            recipe=recipe,
            metrics=metrics,
            epoch=epoch,
            history=trainer.state.log_history,
            lengths=lengths,
            notes=replace(trainer.notes, evaluation=read_notes(best).evaluation),
            provenance=depends_on,
        )
        checkpoint.encoder.cpu().eval()
        adapter = None if recipe.lora is None else take_lora(checkpoint.encoder, recipe, base=model)
        with replace_folder(output, marker=MARKER, known=replaceable(output)) as folder, room_on_disk(output):
            write_output(folder, checkpoint, model_tokenizer, outcome, adapter)
    return result


def asked_for(
    recipe: Recipe, data: TrainingData, depends_on: Mapping[str, Any], **start: str | Path | None
) -> dict[str, Any]:
    """What decides which weights a run ends with, as JSON has it; settings that only save memory may change."""
    free = ("eval_batch_size", "gradient_checkpointing")
    asked = {
        **{name: value for name, value in vars(recipe).items() if name not in free},
        "teacher": depends_on.get("teacher"),
        "task": type(data.task).__name__,
        **vars(data.task),
        "labels": data.labels,
        "training data": depends_on["data"]["train"],
        "evaluation data": depends_on["data"]["evaluation"],
        "processes": processes(),
        **{name: name_of(source) for name, source in start.items()},
    }
    return cast("dict[str, Any]", json.loads(json.dumps(asked)))


def _make_trainer(
    checkpoint: Checkpoint,
    tokenizer: Any,
    data: TrainingData,
    work: Path,
    recipe: Recipe,
    notes: Notes,
    live: LiveTeacher | None,
) -> tuple[PackedTrainer, LengthReport]:
    task = data.task
    encode = partial(task.encode, tokenizer=tokenizer, max_length=recipe.max_length)
    rows, held_out = (
        tokenize(
            part.add_column(ROW, np.arange(len(part))),
            encode,
            remove=[name for name in part.column_names if name != TEACHER],
        )
        for part in (data.train, data.evaluation)
    )
    arguments = _arguments(recipe, task, work)
    batches = Batches(
        token_counts(rows),
        texts=recipe.batch_size,
        tokens=recipe.batch_tokens,
        seed=recipe.seed,
        process=arguments.process_index,
        processes=arguments.world_size,
    )
    steps = math.ceil(len(batches) / recipe.gradient_accumulation) * recipe.epochs
    # At least the last step has the whole rate: where the only one warms up, its rate is 0.
    arguments.warmup_steps = min(int(steps * recipe.warmup_ratio), math.ceil(steps) - 1)
    if recipe.gradient_checkpointing:
        recompute_layers(checkpoint.encoder)
    trainer = PackedTrainer(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        task=task,
        head=Head(task=task.head, labels=data.labels, problem_type=data.problem_type),
        meter=Meter(data.train),
        notes=notes,
        recipe=recipe,
        batches=batches,
        live=live,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(BestBesideIt())
    if recipe.eval_steps is not None:
        trainer.add_callback(EvaluateAtTheEnd())
    if recipe.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.patience))
    return trainer, length_report(text_lengths(rows), recipe.max_length, divided=task.head == "fill-mask")


def _arguments(recipe: Recipe, task: Task, work: Path) -> TrainingArguments:
    """The recipe as transformers spells it, but for the warm-up."""
    cuda = torch.cuda.is_available()
    best = recipe.best_metric or task.best_metric
    every = "epoch" if recipe.eval_steps is None else "steps"
    # The recipe decides; and transformers 4 leaves there what an earlier run in this process trained in.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    arguments = TrainingArguments(
        output_dir=str(work),
        learning_rate=recipe.learning_rate,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.schedule,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.eval_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        bf16=(cuda and torch.cuda.is_bf16_supported()) if recipe.bf16 is None else recipe.bf16,
        use_cpu=not torch.accelerator.is_available(),  # else no bf16 there, and no processes
        eval_strategy=every,
        save_strategy=every,
        eval_steps=recipe.eval_steps,
        save_steps=recipe.eval_steps or 500,  # of no effect by epochs
        logging_steps=0.005,  # of all steps: 200 points make a curve
        logging_first_step=True,
        logging_nan_inf_filter=False,  # such a loss ends the run: nopad.training.meter
        restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=best,
        greater_is_better=best not in SMALLER_IS_BETTER,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        label_names=[TARGETS],
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to=[],  # nopad.training.reporting
        run_name=work.name.removesuffix(".training"),
    )
    # A packed stream cannot be split for DataParallel: a single GPU trains.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_negatives(recipe: Recipe, data: TrainingData) -> None:
    """Raise `UsageError` where each batch is a pair of texts alone: the loss is 0 whatever they are."""
    alone = recipe.batch_tokens is None and recipe.batch_size * processes() == 1
    pairs = isinstance(data.task, Pairs) and not data.task.teacher_vectors
    if alone and pairs and max(map(len, data.train["texts"])) < 3:
        raise UsageError(
            "--batch-size 1: the negatives of a pair are the other texts of its batch, also with "
            "--gradient-accumulation, so nothing would be learned; give 2 or more, or rows with negatives"
        )


def check_best_metric(recipe: Recipe, task: Task) -> None:
    """Raise `UsageError` for a metric that the task does not have."""
    known = ("loss", *task.metric_names)
    if recipe.best_metric not in (None, *known):
        raise UsageError(f"--best-metric {recipe.best_metric!r} is none of this task's: {', '.join(known)}")
