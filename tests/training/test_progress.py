"""What a run says of its progress, in a log and on a terminal."""

import io
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_samples  # noqa: F401  (skips the module where training cannot run)
from rich.console import Console

from nopad.training.meter import Facts, Meter
from nopad.training.progress import ProgressReport

LINE = re.compile(
    r"step (\d+)/(\d+) \(epoch ([\d.]+)\): loss ([\d.]+), ([\d,.]+) texts/s, ([\d,]+) tokens/s, \d+ s left"
)


def test_a_log_has_a_line_as_often_as_it_was_asked_for(command_run: Any) -> None:
    lines = [LINE.fullmatch(line) for line in command_run.said.splitlines() if line.startswith("step ")]
    assert all(lines) and [int(line[1]) for line in lines if line] == list(range(1, 39))
    first, last = lines[0], lines[-1]
    assert first and last and first[2] == "38" and float(last[3]) == 2.0
    assert float(first[4]) > 2 * float(last[4]) > 0  # the loss has fallen
    assert re.search(r"^evaluating: batch 4/4$", command_run.said, re.MULTILINE)
    names = ("loss", "accuracy", "f1", "macro_f1", "auc")
    figures = ", ".join(rf"{name} [\d.]+" for name in names)
    assert re.search(rf"^epoch 2: {figures}$", command_run.said, re.MULTILINE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    return now


def steps(report: ProgressReport, meter: Meter, clock: SimpleNamespace, numbers: range) -> None:
    """Steps of 2 s, each of 8 texts with 100 tokens, of a run of 1,000."""
    for number in numbers:
        clock.seconds += 2
        meter.add(Facts(rows=(0,), texts=8, tokens=100), torch.tensor(0.5), step=number)
        report.on_step_end(None, SimpleNamespace(global_step=number, max_steps=1000, epoch=number / 100), None)


def test_lines_come_by_the_clock_with_rates_and_the_time_left(clock: SimpleNamespace) -> None:
    said = io.StringIO()
    meter = Meter(None)
    report = ProgressReport(Console(file=said, width=200), meter, ("f1",), every=30)
    report.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=1000), None)
    steps(report, meter, clock, range(1, 32))
    assert said.getvalue().splitlines() == [
        "step 1/1,000 (epoch 0.01): loss 0.5000, 4.0 texts/s, 50 tokens/s, 33 min left",
        "step 16/1,000 (epoch 0.16): loss 0.5000, 4.0 texts/s, 50 tokens/s, 33 min left",
        "step 31/1,000 (epoch 0.31): loss 0.5000, 4.0 texts/s, 50 tokens/s, 32 min left",
    ]
    # An evaluation of 100 s tells where it is, counts for the time left, and not for the rates.
    for _ in range(11):
        report.on_prediction_step(None, None, None, eval_dataloader=range(11))
        clock.seconds += 10
    report.on_evaluate(None, SimpleNamespace(epoch=0.31), None, {"eval_loss": 0.25, "eval_f1": 1.0, "eval_x": 3.0})
    steps(report, meter, clock, range(32, 48))
    assert said.getvalue().splitlines()[3:] == [
        *(f"evaluating: batch {n}/11" for n in (4, 7, 10)),
        "epoch 0.31: loss 0.2500, f1 1.0000",
        "step 36/1,000 (epoch 0.36): loss 0.5000, 4.0 texts/s, 50 tokens/s, 81 min left",
    ]


def test_a_terminal_has_a_bar_instead(clock: SimpleNamespace) -> None:
    said = io.StringIO()
    meter = Meter(None)
    report = ProgressReport(Console(file=said, width=160, force_terminal=True, highlight=False), meter, (), every=30)
    report.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=1000), None)
    steps(report, meter, clock, range(1, 4))
    report.on_prediction_step(None, None, None, eval_dataloader=range(5))
    report.on_evaluate(None, SimpleNamespace(epoch=1.0), None, {"eval_loss": 0.25})
    report.stop()
    assert "3/1000" in said.getvalue() and "loss 0.5000, 4.0 texts/s" in said.getvalue()
    assert "step 1/" not in said.getvalue() and "epoch 1: loss 0.2500" in said.getvalue()
