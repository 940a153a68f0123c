"""What commands share: common options, and output: results to stdout, messages to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nopad.runtime.errors import BundleError, UsageError

# For --help: what a command reads.
FILES = (
    "JSONL, JSON, CSV, TSV, Parquet, Arrow, .xlsx or plain text, also compressed; a folder of them, of "
    "save_to_disk, or of a folder for each class"
)

F = TypeVar("F", bound=Callable[..., Any])


def common_options(command: F) -> F:
    """`--json`, `--quiet`: every command has them."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout."),
        click.option("--quiet", "-q", is_flag=True, help="No progress and no remarks on stderr."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


# For commands that compute; goes below `common_options`, so that it is last in --help.
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")


def _names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value is not None else ()


def reading_options(command: F) -> F:
    """`--encoding`, `--columns`: how a command's files of texts are read, as fields of `DataSource`."""
    options = [
        click.option("--encoding", help="Of text files: utf-16, cp1252, latin-1, ... [default: utf-8]"),
        click.option(
            "--columns",
            metavar="NAME,..",
            callback=_names,
            help="Names of the columns of a CSV or TSV whose first line is a row already.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def field_options(source: str) -> Callable[[F], F]:
    """`--text-field`, `--second-field`: the text, or the two of a pair, in the rows that the option `source` names."""

    def decorate(command: F) -> F:
        where = f"Column, field or dotted path of the text in {source}. [default: the usual names]"
        command = click.option("--second-field", help="The same of the second text, for models of text pairs.")(command)
        return click.option("--text-field", help=where)(command)

    return decorate


def ray_options(command: F) -> F:
    """`--ray`, `--gpus`: which Ray cluster a command runs on, and what a replica takes of it beside `--threads`."""
    options = [
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Run on this Ray cluster, HOST:PORT or auto; local: one that is started here. --threads is then of a "
            "replica. [default: in this process, without Ray]",
        ),
        click.option(
            "--gpus", type=click.FloatRange(min=0), default=0.0, help="With --ray, GPUs of a replica; may be a part."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def check_ray_options(ray: str | None, **others: Any) -> None:
    """Raises `UsageError` for what is said of a cluster where none is named."""
    given = [name for name, value in others.items() if value]
    if ray is None and given:
        raise UsageError(f"--{given[0].replace('_', '-')} needs --ray")


def labelled_options(command: F) -> F:
    """`field_options`, `--label-field`, `--limit`: what of --data is held to the answers."""
    options = [
        field_options("--data"),
        click.option(
            "--label-field",
            help="The same of the label: its name, or its number; or several, comma-separated, of zeros and ones. "
            "[default: the usual names]",
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows of --data."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def bundle_and_texts(arguments: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Bundle and texts of a command's arguments: a first one that is a folder is the bundle. Raises `BundleError`."""
    # Unlike Path.is_dir, it accepts texts that are too long for a file name.
    if arguments and os.path.isdir(arguments[0]):
        return arguments[0], arguments[1:]
    if arguments and os.path.isfile(arguments[0]):
        raise BundleError(f"{arguments[0]} is a file: a bundle is a folder, and a file of texts goes to --input")
    # A single word before other texts, or with a slash, is more likely a missing bundle than a text.
    if arguments and len(arguments[0].split()) == 1 and (len(arguments) > 1 or "/" in arguments[0]):
        raise BundleError(
            f"no bundle at {arguments[0]}: the folder does not exist (if it is a text, give it with --input -)"
        )
    return None, arguments


def emit(value: Any) -> None:
    """Print one JSON object on stdout."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=not unicode, default=float)
    click.echo(text.encode("utf-8", "backslashreplace").decode())  # lone surrogates become JSON escapes


def figure(value: float | None, form: str = ".3g") -> str:
    """A figure of a parity report; None where values could not be compared (different shapes, NaN)."""
    return "none" if value is None else format(value, form)


def messages(quiet: bool) -> Console:
    """The console for remarks: stderr, or nothing if `quiet`."""
    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def status(console: Console) -> Iterator[Callable[..., None]]:
    """Yields `show(message, done=0, total=None)`: a bar on a terminal, else one line for each new message."""
    if not console.is_terminal:
        last = ""

        def line(message: str, done: int = 0, total: int | None = None) -> None:
            nonlocal last
            if message != last:
                console.print(message, style="dim")
            last = message

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bars:
        bar = bars.add_task("starting", total=None)
        yield lambda message, done=0, total=None: bars.update(bar, description=message, completed=done, total=total)
