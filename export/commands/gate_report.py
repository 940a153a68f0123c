"""What `nopad export`, `parity` and `demo` share: options of the gate, and its report on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
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
    console.print(_checks(rows))
    if all_lengths:
        console.print("\nlargest logit difference by length")
        console.print(_lengths(rows))
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


def _checks(rows: list[dict[str, Any]]) -> Table:
    """Each check's row nearest to its bound, or furthest over it."""
    from nopad.export.parity.bounds import worst_rows

    table = _table("check", "cases", "worst", "bound", "", numbers=("cases", "worst", "bound"))
    for check, (cases, worst, ok) in worst_rows(rows).items():
        table.add_row(check, str(cases), figure(worst["value"]), figure(worst["bound"]), "ok" if ok else "FAILED")
    return table


def _lengths(rows: list[dict[str, Any]]) -> Table:
    """The rows of the grid: a line for each length."""
    from nopad.export.parity.lengths import read_grid_case

    names = ("tokens", "alone", "in a mixed batch")
    table = _table(*names, numbers=names)
    values = {read_grid_case(row["case"]): row["value"] for row in rows if row["check"] == "logits"}
    for tokens in dict.fromkeys(key[0] for key in values if key is not None):
        alone, mixed = (figure(values[tokens, among], ".1e") for among in (False, True))
        table.add_row(str(tokens), alone, mixed)
    return table


def _table(*columns: str, numbers: Collection[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    return table
