"""Hugging Face's `Trainer` for a packed encoder: its batches, its loss, its evaluations, its saved states."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from nopad.model.checkpoint.load import Checkpoint
from nopad.model.checkpoint.save import write_checkpoint
from nopad.model.checkpoint.tokenizer import save_tokenizer
from nopad.model.head import Head
from nopad.model.products import fast_products
from nopad.training.batches import Batches, BatchLoader
from nopad.training.errors import DataError, DivergedError
from nopad.training.evaluation import LossOfItems, details
from nopad.training.live_teacher import LiveTeacher, hidden_states, states_apart
from nopad.training.lora import lora_settings
from nopad.training.meter import FACTS, Meter, collate_with_facts
from nopad.training.optimizer import parameter_groups
from nopad.training.outcome import BestBesideIt
from nopad.training.recipe import Recipe
from nopad.training.run_folder import room_on_disk
from nopad.training.saved import Notes, ended, seal
from nopad.training.tasks.base import CHOSEN, DRAW, STREAM, TARGETS, TEACHER, Task
from nopad.training.teacher import collate_with_teacher


class PackedTrainer(Trainer):
    """`Trainer` for a packed encoder: its loss, and its checkpoints as ordinary checkpoint folders."""

    optimizer: Any  # transformers leaves it without a type

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        tokenizer: Any,
        task: Task,
        head: Head,
        meter: Meter,
        notes: Notes,
        recipe: Recipe,
        batches: Batches,
        live: LiveTeacher | None = None,
        **kwargs: Any,
    ) -> None:
        block = checkpoint.config.block
        collate: Any = partial(task.collate, multiple=block if live is None else live.multiple(block))
        collate = partial(collate_with_facts, collate=partial(collate_with_teacher, collate=collate))
        super().__init__(model=checkpoint.encoder, data_collator=collate, compute_metrics=self._metrics, **kwargs)
        self.model_accepts_loss_kwargs = True  # `compute_loss` weighs batches itself
        self.batches = batches
        self.live = None if live is None else live.to(self.args.device)
        self.checkpoint = checkpoint
        self.task = task
        self.head = head
        self.meter = meter
        self.tokenizer_to_save = tokenizer
        self.recipe = recipe
        self._notes = notes  # of the sessions before
        self._evaluation = notes.evaluation
        self._began = (time.monotonic(), time.process_time())

    @property
    def notes(self) -> Notes:
        """What is to be known of the run beside `Trainer`'s state, as of now."""
        wall, cpu = (now - then for now, then in zip((time.monotonic(), time.process_time()), self._began, strict=True))
        seconds, cpu_seconds = self._notes.seconds + wall, self._notes.cpu_seconds + cpu
        return replace(self._notes, seconds=seconds, cpu_seconds=cpu_seconds, evaluation=self._evaluation)

    def run(self, last: Path | None) -> float:
        """Train, from the saved state `last` where there is one, and take the best weights; returns the seconds.

        A run that had ended with `last`, but for its output, is not trained further: `Trainer` would do a step more.
        """
        if last is None or not ended(last):
            done = self.train(resume_from_checkpoint=None if last is None else str(last))
            return float(done.metrics["train_runtime"])
        self.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
        BestBesideIt().on_train_begin(self.args, self.state, self.control)
        self._load_best_model()
        return 0.0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss, as this batch's part of the mean over all items of its training step.

        The recipe's label smoothing applies to training steps only.
        """
        live = self.live if model.training else None
        follows = live is not None and self.recipe.teacher_states > 0
        with hidden_states(self.checkpoint.encoder) if follows else nullcontext(list[Tensor]()) as states:
            logits = model(**{name: inputs[name] for name in (*STREAM, CHOSEN) if name in inputs})
        smoothing = self.recipe.label_smoothing if model.training else 0.0
        compared, batch = self.task.of_all_processes(logits, inputs) if model.training else (logits, inputs)
        loss = self.task.loss(compared, batch, label_smoothing=smoothing)
        distance = None
        if live is not None:
            answers, theirs = live.read(inputs)
            batch = {TEACHER: answers, **batch}  # what has been asked before goes first
            if follows:
                distance = states_apart(states[0], live.projected(theirs), inputs["sequence_ids"])
        if TEACHER in batch:
            apart = self.task.imitate(compared, batch, temperature=self.recipe.temperature)
            loss = torch.lerp(loss, apart, self.recipe.teacher_weight)
        if distance is not None:
            loss = loss + self.recipe.teacher_states * distance
        if model.training:
            self.meter.add(inputs[FACTS], loss, step=self.state.global_step + 1)
        if num_items_in_batch:  # gradients of several processes are averaged; without any item the loss is 0
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

        def collate(rows: list[dict[str, Any]]) -> Any:
            draw = (self.recipe.seed, self.batches.epoch)
            return self.data_collator([{**row, DRAW: draw} for row in rows])

        options = {"collate_fn": collate, "pin_memory": self.args.dataloader_pin_memory}
        return BatchLoader(self.train_dataset, self.batches, **options)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions, targets = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if np.isfinite(predictions).all():
            self._evaluation = details(self.head, predictions, targets)
        metrics = self.task.metrics(predictions, targets)
        best = self.args.metric_for_best_model
        if best not in ("loss", *metrics):
            raise DataError(
                f"{best} is undefined for this evaluation data (all labels or all answers are equal, or there are no "
                "labels); give other rows with --eval, or see --best-metric"
            )
        return metrics

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """`Trainer`'s; raises `DivergedError` for a figure that is not finite, before anything of it is saved."""
        figures = super().evaluate(*args, **kwargs)
        names = {f"eval_{name}": name for name in ("loss", *self.task.metric_names)}
        wrong = [
            f"{names[key]} {value:g}" for key, value in figures.items() if key in names and not math.isfinite(value)
        ]
        if wrong:
            raise DivergedError(f"training diverged ({', '.join(wrong)} in epoch {self.state.epoch:.4g})")
        return figures

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """`Trainer`'s, with a loss that does not depend on the number of processes."""
        self._losses = LossOfItems(self.args, rows=len(self.eval_dataset))
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._losses.mean()
        return output

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Loss of an evaluation batch, and what the task's metrics need of it."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), fast_products():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            own, counted, mean = self._losses.own_rows(), inputs, loss
            if own and len(own) < len(inputs[TARGETS]):
                counted = self._prepare_inputs(self.data_collator([self.eval_dataset[row] for row in own]))
                mean = self.compute_loss(model, counted)
            self._losses.add(float(mean), self.task.items(counted) if own else 0)
        return loss.detach(), *self.task.judge(outputs["logits"].detach(), inputs)

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW, with the recipe's rate for each layer."""
        if self.optimizer is None:
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups = parameter_groups(
                self.checkpoint.encoder,
                learning_rate=self.recipe.learning_rate,
                weight_decay=self.recipe.weight_decay,
                layer_decay=self.recipe.layer_decay,
                decayed=set(self.get_decay_parameter_names(self.checkpoint.encoder)),
            )
            self.optimizer = optimizer(groups, **settings)
        return self.optimizer

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with room_on_disk(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # each process has written its random states
            if self.args.should_save:
                seal(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", self.notes)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Nothing: a weight that is tied to another is stored once, and loaded with it."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # transformers 5 asks every process
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(self.checkpoint.encoder, self.checkpoint.raw_config, folder)
        save_tokenizer(self.tokenizer_to_save, folder)
        if self.recipe.lora is not None:  # so that the state is a checkpoint: its reader merges the updates by this
            lora_settings(self.checkpoint.encoder, self.recipe).save_pretrained(folder)
