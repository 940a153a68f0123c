"""Groups of options of `nopad train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nopad.model.checkpoint.save_pooling import POOLINGS
from nopad.model.head import PROBLEM_TYPES
from nopad.runtime.console import FILES
from nopad.runtime.data.fields import LABEL_COLUMNS, TEXT_COLUMNS
from nopad.training.bad_rows import ON_BAD_ROW, ON_DUPLICATE
from nopad.training.recipe import EVAL_FRACTION

F = TypeVar("F", bound=Callable[..., Any])


def data_options(command: F) -> F:
    """What is trained on and evaluated on, and which rows of it."""
    return _with(
        command,
        click.option(
            "--train",
            "train_data",
            required=True,
            multiple=True,
            type=click.Path(),  # so that a variable of the environment may hold blanks
            help=f"Hub name, or {FILES}; or a pattern ('part-*.jsonl'). May be given several times.",
        ),
        click.option(
            "--eval",
            "eval_data",
            multiple=True,
            type=click.Path(),
            help="As --train. [default: its validation or test split, else --eval-fraction]",
        ),
        click.option(
            "--eval-fraction",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            default=EVAL_FRACTION,
            help="Share of --train to hold out where nothing else is there to evaluate on, of each class.",
        ),
        click.option("--split-group", help="Column of which no value may be in both halves, where rows are held out."),
        click.option(
            "--duplicates",
            type=click.Choice(ON_DUPLICATE),
            help="Of training rows whose text an earlier one has, or the evaluation data. [default: keep]",
        ),
        click.option(
            "--bad-rows",
            type=click.Choice(ON_BAD_ROW),
            help="Of rows that cannot be read or have no label that fits: refuse them, or skip and count them. "
            "[default: refuse]",
        ),
    )


def column_options(command: F) -> F:
    """Which columns hold what, and what labels mean."""
    return _with(
        command,
        click.option(
            "--text-column", help=f"Column, or dotted path, of the text. [default: {', '.join(TEXT_COLUMNS[:6])}, ...]"
        ),
        click.option("--text-pair-column", help="The same of the second text, where rows are pairs of texts."),
        click.option(
            "--label-column",
            help="The same of the label; or several, comma-separated, of zeros and ones: one for each label. "
            f"[default: {', '.join(LABEL_COLUMNS[:4])}, ...]",
        ),
        click.option(
            "--labels",
            help="Names of the classes, comma-separated, in the order of their numbers. [default: what the column "
            "holds; LABEL_0, LABEL_1 ... where it holds 0 to n-1 without gaps]",
        ),
        click.option(
            "--problem-type",
            type=click.Choice(PROBLEM_TYPES),
            help="What the labels are. [default: whole numbers and texts are classes, floats a number to learn, lists "
            "several labels at once]",
        ),
        click.option(
            "--pooling",
            type=click.Choice(POOLINGS),
            help="Of embeddings: how tokens become a vector. [default: the model's own, else mean]",
        ),
        click.option(
            "--matryoshka",
            help="Of embeddings: smaller sizes to which vectors may be cut, comma-separated; each adds a loss.",
        ),
        click.option(
            "--prompts",
            metavar="JSON",
            help='Of embeddings: what is put before texts, {"query": ..., "document": ...}: the first before the first '
            "text of a row, the second before the others; none: nothing. [default: the prompts of --model's folder]",
        ),
    )


def task_options(command: F) -> F:
    """What belongs to a single task."""
    return _with(
        command,
        click.option(
            "--class-weights",
            help="How much a class counts in the loss: balanced, or CLASS=WEIGHT,... Of several labels at once: how "
            "much it counts that a text has the label.",
        ),
        click.option(
            "--ordinal",
            is_flag=True,
            default=None,
            help="Classes have an order (stars), that of --labels or of their numbers: the nearer, the smaller the "
            "mistake.",
        ),
        click.option(
            "--label-all-tokens/--label-first-token",
            default=None,
            help="Of token classification: whether all tokens of a word have a label, or only its first. "
            "[default: all]",
        ),
        click.option(
            "--teacher-vectors",
            is_flag=True,
            default=None,
            help="Of embeddings with a --teacher: learn its vectors themselves, so that an index of them takes the "
            "model's; both must have one size. [default: which texts are near each other]",
        ),
        click.option(
            "--mask-probability",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            help="Share of the tokens that fill-mask hides. [default: 0.3]",
        ),
        click.option("--whole-word", is_flag=True, default=None, help="Of fill-mask: hide words, not single tokens."),
    )


def _with(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
