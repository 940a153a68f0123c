"""`train`: Hugging Face `Trainer` around the packed encoder.

Batches are packed streams, so no step spends work on padding. Intermediate checkpoints are ordinary checkpoint
folders; the best becomes the output, put in place by one rename.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments

from nopad.model.checkpoint.load import Checkpoint
from nopad.model.checkpoint.save import write_checkpoint
from nopad.model.checkpoint.tokenizer import save_tokenizer
from nopad.model.errors import CheckpointError
from nopad.model.products import fast_products
from nopad.runtime.atomic import replace_folder
from nopad.training.batches import Batches, BatchLoader, token_counts
from nopad.training.data import TrainingData
from nopad.training.errors import DivergedError
from nopad.training.initial_model import open_model
from nopad.training.processes import first_process
from nopad.training.progress import RichProgress
from nopad.training.recipe import Recipe
from nopad.training.recompute import recompute_layers
from nopad.training.run_folder import CHECKPOINT_FILES, MARKER, check_run, epochs_kept, room_on_disk
from nopad.training.tasks.base import STREAM, TARGETS, Task


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training run produced."""

    output: Path
    metrics: dict[str, float]  # evaluation of the epoch kept
    epoch: float
    seconds: float


class PackedTrainer(Trainer):
    """`Trainer` for a packed encoder: its loss, and its checkpoints as ordinary checkpoint folders."""

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        tokenizer: Any,
        task: Task,
        batches: Batches,
        label_smoothing: float,
        **kwargs: Any,
    ) -> None:
        collate = partial(task.collate, multiple=checkpoint.config.block)
        super().__init__(model=checkpoint.encoder, data_collator=collate, compute_metrics=self._metrics, **kwargs)
        self.model_accepts_loss_kwargs = True  # `compute_loss` weighs batches itself
        self.batches = batches
        self.checkpoint = checkpoint
        self.task = task
        self.tokenizer_to_save = tokenizer
        self.label_smoothing = label_smoothing

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss, as this batch's part of the mean over all items of its training step.

        The recipe's label smoothing applies to training steps only.
        """
        logits = model(**{name: inputs[name] for name in STREAM})
        smoothing = self.label_smoothing if model.training else 0.0
        loss = self.task.loss(logits, inputs, label_smoothing=smoothing)
        if num_items_in_batch is not None:  # gradients of several processes are averaged
            loss = loss * (self.task.items(inputs) * self.args.world_size / num_items_in_batch)
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one batch."""
        with fast_products():
            return super().training_step(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of one step, and the items in them, of all processes."""
        samples = list(islice(epoch_iterator, num_batches))
        items = torch.tensor(sum(self.task.items(batch) for batch in samples), device=device)
        return samples, self.accelerator.gather(items).sum().item()

    def get_train_dataloader(self) -> BatchLoader:
        """The training batches of this process."""
        options = {"collate_fn": self.data_collator, "pin_memory": self.args.dataloader_pin_memory}
        return BatchLoader(self.train_dataset, self.batches, **options)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.task.metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Loss of an evaluation batch, and what the task's metrics need of it."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), fast_products():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), *self.task.judge(outputs["logits"].detach(), inputs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with room_on_disk(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(self.checkpoint.encoder, self.checkpoint.raw_config, folder)
        save_tokenizer(self.tokenizer_to_save, folder)


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
) -> TrainingResult:
    """Fine-tune and write the best epoch's checkpoint to `output`.

    Saved epochs are in `OUTPUT.training` beside it; after an interruption `resume=True` continues from there, and it
    is removed at the end. `console` is where progress goes.

    Raises `CheckpointError`, `UsageError`, `EnvironmentProblem` or `OutputError` before anything is written; later
    `EnvironmentProblem` where the disk is full, and `DivergedError`.
    """
    recipe = recipe or Recipe()
    check_run(output, model=model, from_scratch=from_scratch, tokenizer=tokenizer, recipe=recipe, resume=resume)
    checkpoint, model_tokenizer = open_model(
        model, data, from_scratch=from_scratch, tokenizer=tokenizer, recipe=recipe, base=base
    )
    with epochs_kept(output, resume) as (work, last):
        trainer = _make_trainer(checkpoint, model_tokenizer, data, work, recipe)
        progress = RichProgress(console or Console(quiet=True), trainer.task.metric_names)
        trainer.add_callback(progress)
        try:
            outcome = trainer.train(resume_from_checkpoint=last)
        finally:
            progress.stop()
        kept, metrics = _kept_epoch(trainer)
        result = TrainingResult(
            output=output, metrics=metrics, epoch=float(kept["epoch"]), seconds=outcome.metrics["train_runtime"]
        )
        trainer.accelerator.wait_for_everyone()  # the best epoch has been read
        if not first_process():
            return result
        checkpoint.encoder.cpu().eval()
        with replace_folder(output, marker=MARKER, known=CHECKPOINT_FILES) as folder, room_on_disk(output):
            record = {"metrics": metrics, "recipe": vars(recipe), "task": {"head": data.task.head, **vars(data.task)}}
            write_checkpoint(checkpoint.encoder, {**checkpoint.raw_config, "nopad_training": record}, folder)
            save_tokenizer(model_tokenizer, folder)
    return result


def _make_trainer(
    checkpoint: Checkpoint, tokenizer: Any, data: TrainingData, work: Path, recipe: Recipe
) -> PackedTrainer:
    task = data.task
    encode = partial(task.encode, tokenizer=tokenizer, max_length=recipe.max_length)
    rows, held_out = (
        part.map(encode, batched=True, remove_columns=part.column_names, desc="Tokenizing")
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
    arguments.warmup_steps = int(steps * recipe.warmup_ratio)
    if recipe.gradient_checkpointing:
        recompute_layers(checkpoint.encoder)
    trainer = PackedTrainer(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        task=task,
        label_smoothing=recipe.label_smoothing,
        batches=batches,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(recipe: Recipe, task: Task, work: Path) -> TrainingArguments:
    """The recipe as transformers spells it, but for the warm-up."""
    cuda = torch.cuda.is_available()
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
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=task.best_metric,
        greater_is_better=task.greater_is_better,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        label_names=[TARGETS],
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to=[],
    )
    # A packed stream cannot be split for DataParallel: a single GPU trains.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _kept_epoch(trainer: PackedTrainer) -> tuple[dict[str, float], dict[str, float]]:
    """The log entry of the epoch whose weights were loaded at the end, and its metrics.

    Raises `CheckpointError` if they could not be loaded, `DivergedError` if a metric is not finite.
    """
    best = Path(trainer.state.best_model_checkpoint or "none")
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    kept = next((entry for entry in entries if best.name == f"checkpoint-{entry['step']}"), entries[-1])
    names = {f"eval_{name}": name for name in ("loss", *trainer.task.metric_names)}
    metrics = {names[name]: float(kept[name]) for name in kept if name in names}
    wrong = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise DivergedError(
            f"training diverged ({', '.join(wrong)} in epoch {kept['epoch']:.4g}), and nothing is written; "
            "lower --learning-rate, and look for extreme values among the labels"
        )
    if trainer.args.load_best_model_at_end and not (best / MARKER).is_file():  # Trainer only warns
        raise CheckpointError(f"the best epoch is gone from {trainer.args.output_dir}; train without --resume")
    return kept, metrics
