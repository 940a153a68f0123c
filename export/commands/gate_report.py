"""What `nopad export`, `parity` and `demo` have in common: options of the gate, and its report on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.console import figure

F = TypeVar("F", bound=Callable[..., Any])

thorough_option = click.option(
    "--thorough",
    is_flag=True,
    help="Compare a text of the model's full length with transformers itself, which may take minutes. Without, the "
    "packed encoder is the reference where that is too long for transformers; the report says what was not asked.",
)


def source_options(command: F) -> F:
    """Options that say how a checkpoint is opened: `--base` and `--allow-pickle`."""
    command = click.option(
        "--allow-pickle",
        is_flag=True,
        help="Open the classifier of a SetFit model: a pickle, which can run code. Only for files that you trust.",
    )(command)
    return click.option(
        "--base", help="Folder or Hub name of a LoRA adapter's base. [default: the one that the adapter names]"
    )(command)


def set_threads(threads: int | None) -> None:
    """Threads of torch in this process; ONNX Runtime's are set when a model is loaded."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def print_report(report: dict[str, Any], seconds: float | None, *, all_lengths: bool = False) -> None:
    """The gate's figures as a table on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)  # texts and tokens may hold brackets: [/E1]
    rows = report["rows"]
    table = Table(box=None, pad_edge=False)
    for name in ("check", "cases", "worst", "bound", ""):
        table.add_column(name, justify="right" if name in ("cases", "worst", "bound") else "left")
    for check in dict.fromkeys(row["check"] for row in rows):
        group = [row for row in rows if row["check"] == check]
        shares = check in ("labels", "label names", "calibration")
        worst = (min if shares else max)(group, key=_share_of_bound)
        ok = all(row["passed"] for row in group)
        table.add_row(check, str(len(group)), figure(worst["value"]), figure(worst["bound"]), "ok" if ok else "FAILED")
    console.print(table)
    if all_lengths:
        by_length = [row for row in rows if row["check"] == "logits" and "tokens, " in row["case"]]
        console.print("\nlargest logit difference by length")
        lengths = Table(box=None, pad_edge=False)
        for name in ("tokens", "alone", "in a mixed batch"):
            lengths.add_column(name, justify="right")
        for alone, mixed in zip(by_length[::2], by_length[1::2], strict=True):
            lengths.add_row(alone["case"].split()[0], figure(alone["value"], ".1e"), figure(mixed["value"], ".1e"))
        console.print(lengths)
    for row in [row for row in rows if not row["passed"]][:10]:
        console.print(
            f"FAILED {row['check']}, {row['case']}: {figure(row['value'])}, bound {figure(row['bound'])} {row['note']}",
            soft_wrap=True,
        )
    for row in rows:
        if row["passed"] and row["note"]:
            console.print(f"{row['check']}, {row['case']}: {row['note']}")
    if report["evaluation"]:
        console.print(json.dumps({k: v for k, v in report["evaluation"].items() if v is not None}, indent=2))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    console.print(f"parity {'passed' if report['passed'] else 'FAILED'}{took} against {versions}")


def _share_of_bound(row: dict[str, Any]) -> float:
    return math.inf if row["value"] is None else float(row["value"]) / (row["bound"] or 1.0)
