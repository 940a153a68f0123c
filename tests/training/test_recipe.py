"""The recipe: its numbers, what it refuses, and that the Trainer gets exactly these numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from training_samples import sentences, write_jsonl

from nopad.runtime.errors import OutputError, UsageError
from nopad.training.data import load_data
from nopad.training.packed_trainer import PackedTrainer
from nopad.training.recipe import Recipe
from nopad.training.trainer import train


class Stop(Exception):
    """Ends a run where the Trainer would start training."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[PackedTrainer]:
    """The trainers that were about to train."""
    trainers: list[PackedTrainer] = []

    def stop(self: PackedTrainer, *args: Any, **kwargs: Any) -> None:
        trainers.append(self)
        raise Stop

    monkeypatch.setattr(PackedTrainer, "train", stop)
    return trainers


def test_defaults_are_the_known_recipe() -> None:
    assert dataclasses.asdict(Recipe()) == {
        "learning_rate": 8e-5,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "weight_decay": 8e-6,
        "schedule": "linear",
        "warmup_ratio": 0.0,
        "epochs": 2.0,
        "batch_size": 32,
        "batch_tokens": None,
        "eval_batch_size": 32,
        "max_length": 512,
        "label_smoothing": 0.0,
        "gradient_accumulation": 1,
        "eval_steps": None,
        "patience": None,
        "freeze_layers": None,
        "layer_decay": 1.0,
        "lora": None,
        "lora_alpha": None,
        "lora_dropout": 0.0,
        "lora_modules": None,
        "gradient_checkpointing": False,
        "seed": 42,
        "best_metric": None,
        "bf16": None,
        "teacher": None,
        "teacher_weight": 0.5,
        "teacher_states": 0.0,
        "temperature": 2.0,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 0.0, "--learning-rate must be a positive number, got 0.0"),
        ("learning_rate", -1e-5, "--learning-rate must be a positive number"),
        ("learning_rate", float("nan"), "--learning-rate"),
        ("epochs", 0, "--epochs must be a positive number, got 0"),
        ("batch_size", 0, "--batch-size must be a positive number, got 0"),
        ("eval_batch_size", -1, "--eval-batch-size must be a positive number, got -1"),
        ("gradient_accumulation", 0, "--gradient-accumulation must be a positive number"),
        ("max_length", 2, "--max-length must be at least 3 .*got 2"),
        ("label_smoothing", 1.5, "--label-smoothing"),
        ("label_smoothing", -0.1, "--label-smoothing"),
        ("layer_decay", 0.0, "--layer-decay must be above 0 and at most 1"),
        ("layer_decay", 1.1, "--layer-decay"),
        ("layer_decay", float("nan"), "--layer-decay"),
        ("freeze_layers", -1, "--freeze-layers must be 0 or more, got -1"),
        ("warmup_ratio", 1.5, "--warmup-ratio"),
        ("warmup_ratio", -0.1, "--warmup-ratio"),
        ("weight_decay", -0.1, "--weight-decay"),
        ("adam_beta2", 1.0, "--adam-beta2"),
        ("schedule", "zigzag", "--schedule"),
        ("learning_rate", float("inf"), "--learning-rate must be a positive number, got inf"),
        ("epochs", float("inf"), "--epochs"),
        ("adam_epsilon", -1.0, "--adam-epsilon"),
        ("adam_epsilon", float("nan"), "--adam-epsilon"),
        ("weight_decay", float("inf"), "--weight-decay must be finite"),
        ("seed", -1, "--seed must be from 0 to 4294967295, got -1"),
        ("seed", 2**32, "--seed"),
    ],
)
def test_wrong_values_are_refused_in_the_words_of_the_command_line(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**{field: value})


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3.0  # type: ignore[misc]


def test_the_trainer_gets_the_recipe(scratch: Path, tmp_path: Path, seen: list[PackedTrainer]) -> None:
    data = load_data(str(write_jsonl(tmp_path / "a.jsonl", sentences(100))))
    with pytest.raises(Stop):
        train(data, tmp_path / "out", from_scratch=scratch, recipe=Recipe(max_length=64))
    arguments = seen[0].args
    assert (arguments.num_train_epochs, arguments.seed, arguments.data_seed) == (2.0, 42, 42)
    assert (arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size) == (32, 32)
    assert arguments.lr_scheduler_type == "linear" and arguments.warmup_steps == 0
    assert arguments.gradient_accumulation_steps == 1
    optimizer = seen[0].create_optimizer()
    assert type(optimizer).__name__ == "AdamW"
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (8e-5, (0.9, 0.98), 1e-6)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {8e-6, 0.0}


def test_other_values_reach_the_trainer(scratch: Path, tmp_path: Path, seen: list[PackedTrainer]) -> None:
    data = load_data(str(write_jsonl(tmp_path / "a.jsonl", sentences(100))))
    recipe = Recipe(max_length=16, batch_size=9, gradient_accumulation=2, epochs=4, warmup_ratio=0.5, seed=7)
    with pytest.raises(Stop):
        train(data, tmp_path / "out", from_scratch=scratch, recipe=recipe)
    arguments = seen[0].args
    assert arguments.warmup_steps == 10  # 90 rows / 18 per step * 4 epochs / 2
    assert arguments.seed == 7
    batch = next(iter(seen[0].get_train_dataloader()))
    lengths = (batch["pad_index"] >= 0).sum(1)
    assert len(lengths) == len(batch["labels"]) == 9
    assert lengths.max() == 16  # texts are cut at max_length
    assert batch["input_ids"].shape[0] % 64 == 0
    ends = batch["input_ids"][batch["pad_index"].max(1).values]
    assert set(ends.tolist()) == {3}, "a cut text still ends with [SEP]"


def test_a_fresh_run_does_not_start_among_old_epochs(scratch: Path, tmp_path: Path, seen: list[PackedTrainer]) -> None:
    # Trainer deletes the lowest step numbers first, and a later resume takes the highest: the old run's.
    stale = tmp_path / "out.training" / "checkpoint-99999"
    stale.mkdir(parents=True)
    (stale / "trainer_state.json").write_text("{}")
    data = load_data(str(write_jsonl(tmp_path / "a.jsonl", sentences(100))))
    with pytest.raises(Stop):
        train(data, tmp_path / "out", from_scratch=scratch, recipe=Recipe(max_length=64))
    assert not stale.exists()


def test_a_foreign_output_is_refused_before_training(scratch: Path, tmp_path: Path, seen: list[PackedTrainer]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("1")
    data = load_data(str(write_jsonl(tmp_path / "a.jsonl", sentences(100))))
    with pytest.raises(OutputError, match="left alone"):
        train(data, tmp_path / "out", from_scratch=scratch, recipe=Recipe(max_length=64))
    assert not seen
