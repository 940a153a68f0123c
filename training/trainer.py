"""`train`: Hugging Face `Trainer` around the packed encoder.

Batches are packed streams, so no step spends work on padding. Checkpoints on the way are ordinary checkpoint
folders; the best one becomes the output, written in one rename.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments

from nopad.model.checkpoint import (
    Checkpoint,
    initialize,
    load_checkpoint,
    open_tokenizer,
    read_raw_config,
    resolve_checkpoint,
    save_tokenizer,
    write_checkpoint,
)
from nopad.model.config import ProblemType, read_config
from nopad.model.encoder import build_encoder
from nopad.model.errors import CheckpointError
from nopad.model.files import check_output, replace_folder
from nopad.model.packing import pack
from nopad.training.data import TrainingData
from nopad.training.progress import RichProgress
from nopad.training.recipe import Recipe

_LOSS_KEY = "labels"  # first in every batch: Trainer takes the batch size from the first tensor


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training run produced."""

    output: Path
    metrics: dict[str, float]  # evaluation of the model kept
    epoch: float
    seconds: float


class PackedTrainer(Trainer):
    """`Trainer` for a packed encoder: its loss, and its checkpoints as ordinary checkpoint folders."""

    def __init__(self, *, checkpoint: Checkpoint, tokenizer: Any, label_smoothing: float, **kwargs: Any) -> None:
        super().__init__(model=checkpoint.encoder, **kwargs)
        self.checkpoint = checkpoint
        self.tokenizer_to_save = tokenizer
        self.label_smoothing = label_smoothing

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss transformers' own classes use for the problem type, plus the recipe's label smoothing."""
        labels = inputs[_LOSS_KEY]
        logits = model(**{name: value for name, value in inputs.items() if name != _LOSS_KEY})
        problem_type = self.checkpoint.config.problem_type
        smoothing = self.label_smoothing if model.training else 0.0
        if problem_type == "regression":
            loss = F.mse_loss(logits.squeeze(-1), labels)
        elif problem_type == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, labels)
        else:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One evaluation batch: loss, logits, labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs["logits"].detach(), inputs[_LOSS_KEY]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(self.checkpoint.encoder, self.checkpoint.raw_config, folder)
        save_tokenizer(self.tokenizer_to_save, folder)


def collate(rows: Sequence[dict[str, Any]], *, multiple: int, problem_type: ProblemType) -> dict[str, Tensor]:
    """Rows of `input_ids` (and `token_type_ids`), `target` -> one packed batch of tensors."""
    types = [row["token_type_ids"] for row in rows] if "token_type_ids" in rows[0] else None
    batch = pack([row["input_ids"] for row in rows], types, multiple=multiple)
    dtype = torch.int64 if problem_type == "single_label_classification" else torch.float32
    arrays = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids")
    return {
        _LOSS_KEY: torch.tensor([row["target"] for row in rows], dtype=dtype),
        **{name: torch.from_numpy(getattr(batch, name)) for name in arrays},
    }


def metrics_for(problem_type: ProblemType) -> Any:
    """The function that `Trainer` calls on all evaluation logits: weighted F1 and accuracy, or the squared error."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if problem_type == "regression":
            return {"mse": float(np.mean((logits.squeeze(-1) - labels) ** 2))}
        guess = logits.argmax(-1) if problem_type == "single_label_classification" else (logits > 0).astype(int)
        return {
            "accuracy": float(accuracy_score(labels, guess)),
            "f1": float(f1_score(labels, guess, average="weighted", zero_division=0)),
        }

    return compute


def open_model(
    model: str | None, data: TrainingData, *, from_scratch: Path | None, tokenizer: str | None, recipe: Recipe
) -> tuple[Checkpoint, Any]:
    """The encoder to train (pre-trained with a new head, or random from a config file) and its tokenizer."""
    changes = {
        "id2label": {str(i): label for i, label in enumerate(data.labels)},
        "label2id": {label: i for i, label in enumerate(data.labels)},
        "problem_type": data.problem_type,
    }
    torch.manual_seed(recipe.seed)
    if from_scratch is not None:
        folder = from_scratch if from_scratch.is_dir() else from_scratch.parent
        raw = json.loads(from_scratch.read_text("utf-8")) if from_scratch.is_file() else read_raw_config(folder)
        raw |= changes
        encoder = build_encoder(read_config(raw, task="text-classification"))
        initialize(encoder)
        checkpoint = Checkpoint(path=folder, raw_config=raw, encoder=encoder, missing=())
    elif model is not None:
        folder = resolve_checkpoint(model)
        checkpoint = load_checkpoint(folder, task="text-classification", config_changes=changes, new_head=True)
    else:
        raise CheckpointError("give --model (a checkpoint folder or Hub name) or --from-scratch CONFIG")
    source = resolve_checkpoint(tokenizer) if tokenizer else folder
    if not (source / "tokenizer.json").is_file():
        raise CheckpointError(f"{source} has no tokenizer.json; name a folder that has one with --tokenizer")
    loaded = open_tokenizer(source)
    if len(loaded) > checkpoint.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {source} has {len(loaded)} entries, the model's vocab_size is only "
            f"{checkpoint.config.vocab_size}: they do not belong together"
        )
    if recipe.max_length > checkpoint.config.max_position_embeddings:
        raise CheckpointError(
            f"--max-length {recipe.max_length} is over the model's max_position_embeddings "
            f"{checkpoint.config.max_position_embeddings}"
        )
    loaded.model_max_length = recipe.max_length  # what was trained is what is served
    return checkpoint, loaded


def train(
    data: TrainingData,
    output: Path,
    *,
    model: str | None = None,
    from_scratch: Path | None = None,
    tokenizer: str | None = None,
    recipe: Recipe | None = None,
    resume: bool = False,
    console: Console | None = None,
    extra_arguments: dict[str, Any] | None = None,
) -> TrainingResult:
    """Fine-tune and write the best epoch's checkpoint to `output`.

    Work in progress lies in `OUTPUT.training` beside it; after an interruption `resume=True` goes on from there, and
    it is removed at the end. `console` is where progress goes. `extra_arguments` go to `transformers.TrainingArguments`
    as they are.
    Raises `CheckpointError` or `DataError` before anything is written.
    """
    recipe = recipe or Recipe()
    checkpoint, loaded = open_model(model, data, from_scratch=from_scratch, tokenizer=tokenizer, recipe=recipe)
    work = output.absolute().with_name(output.name + ".training")
    check_output(output, "config.json")
    # trainer_state.json is the last file of a saved epoch: a folder without it was cut short.
    saved = [path for path in work.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    last = str(max(saved, key=lambda path: int(path.name.rsplit("-", 1)[1]))) if resume and saved else None
    if resume and last is None:
        raise CheckpointError(f"nothing to resume: {work} holds no saved epoch")

    for path in work.glob("checkpoint-*"):
        if last is None or path not in saved:  # an older run's epochs would be taken for this one's
            shutil.rmtree(path)

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return dict(loaded(rows["text"], truncation=True, max_length=recipe.max_length, return_attention_mask=False))

    parts = [
        part.map(tokenize, batched=True, remove_columns=["text"], desc="Tokenizing")
        for part in (data.train, data.evaluation)
    ]
    best = "mse" if data.problem_type == "regression" else "f1"
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        **{
            "output_dir": str(work),
            "learning_rate": recipe.learning_rate,
            "adam_beta1": recipe.adam_beta1,
            "adam_beta2": recipe.adam_beta2,
            "adam_epsilon": recipe.adam_epsilon,
            "weight_decay": recipe.weight_decay,
            "lr_scheduler_type": recipe.schedule,
            "warmup_steps": _warmup_steps(recipe, len(data.train)),
            "num_train_epochs": recipe.epochs,
            "per_device_train_batch_size": recipe.batch_size,
            "per_device_eval_batch_size": recipe.eval_batch_size,
            "gradient_accumulation_steps": recipe.gradient_accumulation,
            "bf16": (cuda and torch.cuda.is_bf16_supported()) if recipe.bf16 is None else recipe.bf16,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "logging_strategy": "epoch",
            "save_total_limit": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": best,
            "greater_is_better": best != "mse",
            "seed": recipe.seed,
            "data_seed": recipe.seed,
            "remove_unused_columns": False,
            "label_names": [_LOSS_KEY],
            "dataloader_pin_memory": cuda,
            "disable_tqdm": True,
            "report_to": [],
            **(extra_arguments or {}),
        }
    )
    # A packed stream cannot be cut in pieces for DataParallel; several GPUs go through torchrun (one process each).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    multiple = checkpoint.config.block
    trainer = PackedTrainer(
        checkpoint=checkpoint,
        tokenizer=loaded,
        label_smoothing=recipe.label_smoothing,
        args=arguments,
        train_dataset=parts[0],
        eval_dataset=parts[1],
        data_collator=lambda rows: collate(rows, multiple=multiple, problem_type=data.problem_type),
        compute_metrics=metrics_for(data.problem_type),
    )
    trainer.remove_callback(PrinterCallback)
    progress = RichProgress(console or Console(quiet=True))
    trainer.add_callback(progress)
    try:
        outcome = trainer.train(resume_from_checkpoint=last)
    finally:
        progress.stop()
    scores = [entry for entry in trainer.state.log_history if f"eval_{best}" in entry]
    kept = (min if best == "mse" else max)(scores, key=lambda entry: entry[f"eval_{best}"])
    metrics = {
        name.removeprefix("eval_"): float(kept[name])
        for name in kept
        if name in ("eval_accuracy", "eval_f1", "eval_mse", "eval_loss")
    }
    checkpoint.encoder.cpu().eval()
    with replace_folder(output, marker="config.json") as folder:
        raw = {**checkpoint.raw_config, "nopad_training": {"metrics": metrics, "recipe": vars(recipe)}}
        write_checkpoint(checkpoint.encoder, raw, folder)
        save_tokenizer(loaded, folder)
    shutil.rmtree(work, ignore_errors=True)
    return TrainingResult(
        output=output, metrics=metrics, epoch=float(kept["epoch"]), seconds=outcome.metrics["train_runtime"]
    )


def _warmup_steps(recipe: Recipe, rows: int) -> int:
    steps = rows / (recipe.batch_size * recipe.gradient_accumulation) * recipe.epochs
    return int(steps * recipe.warmup_ratio)
