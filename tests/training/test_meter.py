"""A loss that is not finite: the run ends at once, says with which rows, and keeps the last good state."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_samples import sentences, weights, write_jsonl

from nopad.runtime.cli import run
from nopad.training.tasks.single_label import SingleLabel

STEPS = 9  # of an epoch: 36 rows in batches of 4
Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    monkeypatch.chdir(tmp_path)

    def call(*options: str, start: tuple[str, ...] = ("--from-scratch", str(scratch))) -> tuple[int, str]:
        fixed = ["--train", "rows.jsonl", "--batch-size", "4", "--max-length", "64", "--threads", "1", "--epochs", "3"]
        code = run(["train", *fixed, *start, "--output", "out", *options])
        return code, capsys.readouterr().err

    return call


def test_an_extreme_label_is_named_with_its_batch(train: Train) -> None:
    rows = [{**row, "label": float(row["label"])} for row in sentences(40)]
    rows[7] = {"text": "a film of infinite worth", "label": 1e30}
    write_jsonl(Path("rows.jsonl"), rows)
    write_jsonl(Path("held-out.jsonl"), rows[:6])
    code, said = train("--eval", "held-out.jsonl")
    message = said.splitlines()[-1]
    assert code == 3 and message.startswith("nopad: training diverged (loss inf at step ")
    named = message.partition("with the rows ")[2].partition(" of the training data")[0]
    assert len(named.split(", ")) == 4 and "7" in named.split(", ")
    shown = named.split(", ").index("7")
    assert shown == 3 or "7: 'a film of infinite worth'" in message
    assert "nothing is written; lower --learning-rate" in message and not Path("out.training").exists()


def test_the_last_good_state_is_kept_and_can_be_started_from(
    train: Train, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(Path("rows.jsonl"), sentences(40))
    loss, calls = SingleLabel.loss, []

    def late_nan(self: SingleLabel, logits: Tensor, batch: Mapping[str, Tensor], **options: Any) -> Tensor:
        calls.append(len(logits))
        # One evaluation of 4 rows after the first epoch's steps.
        return loss(self, logits, batch, **options) * (torch.nan if len(calls) == STEPS + 1 + 3 else 1)

    with monkeypatch.context():
        monkeypatch.setattr(SingleLabel, "loss", late_nan)
        code, said = train()
    state = Path("out.training", f"checkpoint-{STEPS}")
    assert code == 3 and f"(loss nan at step {STEPS + 3})" in said
    assert (
        f"the last good state is kept, a checkpoint that --model takes (with another --output): {state.resolve()}"
        in said
    )
    assert not Path("out").exists() and all(tensor.isfinite().all() for tensor in weights(state).values())
    for start in (("--model", str(state)), ("--from-scratch", str(scratch), "--teacher", str(state))):
        code, said = train(start=start)
        assert code == 3 and "would be removed with" in said and state.is_dir()
    assert train("--output", "better", "--learning-rate", "1e-5", start=("--model", str(state)))[0] == 0


def test_an_evaluation_that_is_not_finite_is_not_saved(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(Path("rows.jsonl"), sentences(40))
    scripted = iter([0.5, float("nan")])
    monkeypatch.setattr(SingleLabel, "metrics", lambda *_: {"f1": next(scripted), "accuracy": 0.0})
    code, said = train()
    assert code == 3 and "training diverged (f1 nan in epoch 2); the last good state is kept" in said
    assert [path.name for path in Path("out.training").iterdir()] == [f"checkpoint-{STEPS}"]
