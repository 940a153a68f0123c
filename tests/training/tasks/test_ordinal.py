"""Classes with an order: soft targets, kappa, and a run by the command that any server takes for a classifier."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import WORDS, write_jsonl

from nopad.runtime.cli import run
from nopad.training.tasks.ordinal import Ordinal


def test_the_loss_falls_with_the_distance_and_is_least_at_the_soft_target() -> None:
    task, targets = Ordinal(), torch.tensor([1])
    far, near, right = (torch.eye(5)[[i]] * 4 for i in (4, 2, 1))
    losses = [task.loss(logits, {"labels": targets}, label_smoothing=0.0).item() for logits in (far, near, right)]
    assert losses[0] > losses[1] > losses[2]
    soft = torch.tensor([1.0, 0.0, 1.0, 2.0, 3.0]).neg().softmax(-1)
    best = -(soft * soft.log()).sum().item()
    assert task.loss(-torch.tensor([[1.0, 0, 1, 2, 3]]), {"labels": targets}, label_smoothing=0.0).item() == (
        pytest.approx(best)
    )
    assert min(losses) > best
    doubled = Ordinal(class_weights=(1.0, 2.0, 1.0, 1.0, 1.0))
    assert doubled.loss(far, {"labels": targets}, label_smoothing=0.0).item() == pytest.approx(2 * losses[0])


def test_kappa_is_its_formula() -> None:
    draw = np.random.default_rng(0)
    logits, targets = draw.normal(size=(60, 4)).astype(np.float32), draw.integers(4, size=60)
    decisions = logits.argmax(-1)
    metrics = Ordinal().metrics(logits, targets)
    apart = np.square(decisions - targets).mean()
    by_chance = np.square(decisions[:, None] - targets[None]).mean()
    assert metrics["qwk"] == pytest.approx(1 - apart / by_chance)
    assert metrics["mae"] == pytest.approx(np.abs(decisions - targets).mean())
    assert set(metrics) <= set(Ordinal.metric_names)
    absent = Ordinal().metrics(np.eye(5, dtype=np.float32)[[0, 3, 3, 4]], np.array([0, 3, 0, 4]))
    apart, by_chance = 9 / 4, np.square(np.array([0, 3, 3, 4])[:, None] - [0, 3, 0, 4]).mean()
    assert absent["qwk"] == pytest.approx(1 - apart / by_chance), "from 0 to 3 are three classes, if 1 and 2 are absent"
    alike = Ordinal().metrics(np.eye(4, dtype=np.float32)[[2, 2]], np.array([2, 2]))
    assert alike["mae"] == 0 and "qwk" not in alike
    assert "qwk" not in Ordinal().metrics(np.eye(4, dtype=np.float32)[[2, 3]], np.array([2, 2]))  # 0 for any answers
    assert Ordinal().metrics(np.eye(4, dtype=np.float32)[[2, 2]], np.array([2, 3]))["qwk"] == 0


def stars(count: int, seed: int) -> list[dict[str, object]]:
    """Texts whose rating, 1 to 4, is how often 'good' stands in them."""
    draw = random.Random(seed)
    rows: list[dict[str, object]] = []
    for i in range(count):
        words = draw.choices(WORDS, k=12) + ["good"] * (i % 4 + 1)
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": i % 4 + 1})
    return rows


def test_the_command_learns_an_order_and_writes_an_ordinary_classifier(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, held_out = (str(write_jsonl(tmp_path / f"{n}.jsonl", stars(n, n))) for n in (400, 100))
    start = ["--from-scratch", str(scratch), "--max-length", "64", "--threads", "1", "--learning-rate", "5e-3"]
    start += ["--batch-size", "16", "--epochs", "4", "--ordinal", "--json", "--quiet"]
    output = tmp_path / "out"
    assert run(["train", "--train", data, "--eval", held_out, "--output", str(output), *start]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["qwk"] >= 0.7 and figures["mae"] <= 0.6
    config = json.loads((output / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert list(config["id2label"].values()) == ["1", "2", "3", "4"]
    words = [{**row, "label": "abcd"[int(str(row["label"])) - 1]} for row in stars(40, 1)]
    named = str(write_jsonl(tmp_path / "named.jsonl", words))
    other = ["--output", str(tmp_path / "other")]
    assert run(["train", "--train", named, *other, *start]) == 2
    assert "--ordinal needs the order of" in capsys.readouterr().err
    assert run(["train", "--train", data, *other, *start, "--problem-type", "regression"]) == 2
    assert "--ordinal is for classes that have an order, not for regression" in capsys.readouterr().err
