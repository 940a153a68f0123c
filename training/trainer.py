"""`train`: Hugging Face `Trainer` around the packed encoder.

Batches are packed streams, so no step spends work on padding. Checkpoints on the way are ordinary checkpoint
folders; the best one becomes the output, written in one rename.
"""

from __future__ import annotations

import dataclasses
import math
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

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.json_files import read_json, read_raw_config
from nopad.model.checkpoint.load import Checkpoint, load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.save import write_checkpoint
from nopad.model.checkpoint.source import open_source
from nopad.model.checkpoint.tokenizer import VOCABULARIES, open_tokenizer, save_tokenizer
from nopad.model.encoder import build_encoder
from nopad.model.errors import CheckpointError
from nopad.model.head import CROSS_ENCODER_KEYS, ProblemType
from nopad.model.packing import pack
from nopad.runtime.atomic import replace_folder
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData
from nopad.training.errors import DivergedError
from nopad.training.progress import RichProgress
from nopad.training.recipe import Recipe
from nopad.training.run_folder import CHECKPOINT_FILES, MARKER, check_run, epochs_kept, room_on_disk

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

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with room_on_disk(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

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
    model: str | None,
    data: TrainingData,
    *,
    from_scratch: Path | None,
    tokenizer: str | None,
    recipe: Recipe,
    base: str | None = None,
) -> tuple[Checkpoint, Any]:
    """The encoder to train (pre-trained with a new head, or random from a config file) and its tokenizer.

    `base` is that of a LoRA adapter, if not the one that it names.

    Raises `CheckpointError`, and `UsageError` unless one of `model` and `from_scratch` is given.
    """
    changes = {
        "id2label": {str(i): label for i, label in enumerate(data.labels)},
        "label2id": {label: i for i, label in enumerate(data.labels)},
        "problem_type": data.problem_type,
    }
    torch.manual_seed(recipe.seed)
    if from_scratch is not None:
        folder = from_scratch if from_scratch.is_dir() else from_scratch.parent
        raw = (read_raw_config(folder) if from_scratch.is_dir() else read_json(from_scratch, dict)) | changes
        encoder = build_encoder(read_config(raw, task="text-classification"))
        initialize(encoder)
        checkpoint = Checkpoint(raw_config=raw, encoder=encoder)
    elif model is not None:
        folder = resolve_checkpoint(model)
        files = open_source(folder, base)
        checkpoint = load_checkpoint(files, task="text-classification", config_changes=changes, new_head=True)
        # A new head: what a cross-encoder's folder says of its scores holds no longer.
        raw = {key: value for key, value in checkpoint.raw_config.items() if key not in CROSS_ENCODER_KEYS}
        checkpoint = dataclasses.replace(checkpoint, raw_config=raw)
        folder = files.tokenizer
    else:
        raise UsageError("give one of --model and --from-scratch")
    source = resolve_checkpoint(tokenizer) if tokenizer else folder
    if not any(path for pattern in VOCABULARIES for path in source.glob(pattern)):
        names = ", ".join(VOCABULARIES)
        raise CheckpointError(f"{source} has no tokenizer ({names}); name a folder that has one with --tokenizer")
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
    base: str | None = None,
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
    Raises `CheckpointError`, `UsageError`, `EnvironmentProblem` or `OutputError` before anything is written; later
    `EnvironmentProblem` where the disk is full, and `DivergedError`.
    """
    recipe = recipe or Recipe()
    check_run(output, model=model, from_scratch=from_scratch, tokenizer=tokenizer, recipe=recipe, resume=resume)
    checkpoint, loaded = open_model(
        model, data, from_scratch=from_scratch, tokenizer=tokenizer, recipe=recipe, base=base
    )
    with epochs_kept(output, resume) as (work, last):
        trainer = _make_trainer(checkpoint, loaded, data, work, recipe, extra_arguments or {})
        progress = RichProgress(console or Console(quiet=True))
        trainer.add_callback(progress)
        try:
            outcome = trainer.train(resume_from_checkpoint=last)
        finally:
            progress.stop()
        kept, metrics = _kept_epoch(trainer)
        checkpoint.encoder.cpu().eval()
        with replace_folder(output, marker=MARKER, known=CHECKPOINT_FILES) as folder, room_on_disk(output):
            raw = {**checkpoint.raw_config, "nopad_training": {"metrics": metrics, "recipe": vars(recipe)}}
            write_checkpoint(checkpoint.encoder, raw, folder)
            save_tokenizer(loaded, folder)
    return TrainingResult(
        output=output, metrics=metrics, epoch=float(kept["epoch"]), seconds=outcome.metrics["train_runtime"]
    )


def _make_trainer(
    checkpoint: Checkpoint,
    loaded: Any,
    data: TrainingData,
    work: Path,
    recipe: Recipe,
    extra_arguments: dict[str, Any],
) -> PackedTrainer:
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
            **extra_arguments,
        }
    )
    # A packed stream cannot be cut in pieces for DataParallel: one GPU trains.
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
    return trainer


def _kept_epoch(trainer: PackedTrainer) -> tuple[dict[str, float], dict[str, float]]:
    """The log entry of the epoch whose weights were loaded at the end, and its metrics.

    Raises `CheckpointError` if they could not be loaded, `DivergedError` if a metric is not finite.
    """
    best = Path(trainer.state.best_model_checkpoint or "none")
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    kept = next((entry for entry in entries if best.name == f"checkpoint-{entry['step']}"), entries[-1])
    names = ("eval_accuracy", "eval_f1", "eval_mse", "eval_loss")
    metrics = {name.removeprefix("eval_"): float(kept[name]) for name in kept if name in names}
    wrong = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise DivergedError(
            f"training diverged ({', '.join(wrong)} in epoch {kept['epoch']:.4g}), and nothing is written; "
            "lower --learning-rate, and look for extreme values among the labels"
        )
    if trainer.args.load_best_model_at_end and not (best / MARKER).is_file():  # Trainer only warns
        raise CheckpointError(f"the best epoch is gone from {trainer.args.output_dir}; train without --resume")
    return kept, metrics


def _warmup_steps(recipe: Recipe, rows: int) -> int:
    steps = rows / (recipe.batch_size * recipe.gradient_accumulation) * recipe.epochs
    return int(steps * recipe.warmup_ratio)
