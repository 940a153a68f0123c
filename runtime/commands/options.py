"""Options of several commands that open a bundle: which engine answers or is asked, and in what micro-batches."""

from __future__ import annotations

import click

from nopad.runtime.engines.base import ENGINES

engine_option = click.option(
    "--engine",
    default="auto",
    help=f"Engine to run on, or several in order, comma-separated: auto, {', '.join(ENGINES)}.",
)
precision_option = click.option(
    "--precision",
    help="Only files of this precision; auto: the fastest that is verified. [default: on a CPU the most exact]",
)
asked_engine_option = click.option("--engine", default="auto", help=f"Engine to ask: auto, {', '.join(ENGINES)}.")
asked_precision_option = click.option(
    "--precision", help="Ask the file of this precision. [default: the one that load takes]"
)
token_budget_option = click.option(
    "--token-budget", type=click.IntRange(min=1), help="Tokens of one micro-batch. [default: what suits the engine]"
)
host_code_option = click.option(
    "--allow-host-code", is_flag=True, help="Run the native code in a version-compatible engine; only if you trust it."
)
