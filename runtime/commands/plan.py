"""`nopad plan`: optimization profiles for TensorRT engines, from the lengths of real texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.batching import GPU_TOKENS
from nopad.runtime.console import FILES, common_options, emit, messages, reading_options, status
from nopad.runtime.data.fields import TEXT_COLUMNS
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import OutputError, UsageError

if TYPE_CHECKING:
    from nopad.runtime.planning.lengths import Lengths, PlannedModel
    from nopad.runtime.planning.search import Plan, ProfileForecast


@click.command()
@click.option("--data", "-d", metavar="FILE", help=f"Texts: {FILES}; - for stdin.")
@click.option(
    "--lengths",
    metavar="FILE",
    help='Token lengths instead of texts: lines of "length" or "length count", or JSON {"length": count}; - for stdin. '
    "[default, without --data: those of the texts that the checkpoint was trained on]",
)
@click.option(
    "--model", "-m", metavar="FOLDER", help="A bundle, or a checkpoint before its export. [default: the embedded model]"
)
@click.option(
    "--field", help=f"Column, field or dotted path of the text. [default: {', '.join(TEXT_COLUMNS[:6])}, ...]"
)
@click.option("--second-field", help="Field of the second text, for models of text pairs.")
@reading_options
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows of --data.")
@click.option("--memory", default="2GiB", help="For the activations of all profiles together; weights come on top.")
@click.option("--most", type=click.IntRange(min=1, max=16), default=4, help="At most so many profiles.")
@click.option(
    "--max-length",
    metavar="N|model",
    help="Longest text to take, in tokens; model: as long as the model does. [default: the longest text given]",
)
@click.option(
    "--token-budget", type=click.IntRange(min=1), default=GPU_TOKENS, help="Tokens of one micro-batch at run time."
)
@click.option(
    "--fused",
    is_flag=True,
    help="The engine keeps no attention scores in memory, as TensorRT-RTX in half precision.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the profiles here, for export --profiles.")
@common_options
def plan(
    data: str | None,
    lengths: str | None,
    model: str | None,
    field: str | None,
    second_field: str | None,
    limit: int | None,
    memory: str,
    most: int,
    max_length: str | None,
    token_budget: int,
    fused: bool,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **reading: Any,
) -> None:
    """Plan optimization profiles: few shapes for a TensorRT engine that waste little on texts like yours.

    \b
    nopad plan --data reviews.jsonl --model checkpoint/ --output profiles.json
    nopad plan --model checkpoint/ --output profiles.json
    nopad plan --lengths histogram.txt --memory 4GiB

    Costs are forecasts of a model (nopad.runtime.planning.cost_model says which), not measurements.
    """
    from nopad.runtime.planning.lengths import Lengths, open_model, parse_bytes, read_lengths
    from nopad.runtime.planning.search import plan_profiles

    if data is not None and lengths is not None:
        raise UsageError("give --data FILE (texts) or --lengths FILE (token lengths), not both")
    memory_bytes = parse_bytes(memory)
    opened = open_model(model)
    source = data or lengths or (str(opened.lengths) if opened.lengths else None)
    if source is None:
        raise UsageError(
            "give --data FILE (texts) or --lengths FILE (token lengths), or as --model a checkpoint that nopad train "
            "has written with the lengths of its texts"
        )
    longest = _longest(max_length, opened)
    _check_output(output)
    console = messages(quiet)
    if data is None:
        texts = Lengths(counts=read_lengths(source), cut=0, failed=0, first_failure=None)
    else:
        texts = _count(opened, DataSource(path=source, **reading), field, second_field, limit, console)
    result = plan_profiles(
        texts.counts,
        architecture=opened.architecture,
        memory_bytes=memory_bytes,
        most=most,
        block=opened.block,
        max_length=min(longest or max(texts.counts), opened.max_length),
        token_budget=token_budget,
        keeps_scores=not fused,
    )
    result = dataclasses.replace(result, cut=max(result.cut, texts.cut))
    if output is not None:
        _write(output, result, source, opened)
    if as_json:
        rows = {"rows_failed": texts.failed, "output": str(output) if output else None}
        emit({"source": source, "model": opened.name, **rows, **result.to_json()})
    else:
        _print(result, opened)
    _remarks(console, result, texts, opened, output)


def _count(
    model: PlannedModel,
    source: DataSource,
    field: str | None,
    second_field: str | None,
    limit: int | None,
    console: Console,
) -> Lengths:
    from nopad.runtime.planning.lengths import lengths_of_texts

    with status(console) as show:
        message = f"counting tokens of {source.path}"
        show(message)
        return lengths_of_texts(
            model, source, field, second_field, limit=limit, progress=lambda rows: show(message, rows)
        )


def _longest(max_length: str | None, model: PlannedModel) -> int | None:
    if max_length is None or max_length == "model":
        return None if max_length is None else model.max_length
    if not (max_length.isascii() and max_length.isdigit()) or not 1 <= int(max_length) <= model.max_length:
        raise UsageError(f"--max-length {max_length} is neither 'model' nor a length of 1 to {model.max_length} tokens")
    return int(max_length)


def _check_output(output: Path | None) -> None:
    """Refuse early to replace a file that is not a profiles file."""
    from nopad.runtime.errors import InputFileError
    from nopad.runtime.profiles import read_profiles

    if output is None:
        return
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: the folder {output.parent} does not exist")
    if output.exists():
        try:
            read_profiles(output)
        except InputFileError:
            raise OutputError(f"{output} exists and holds no profiles, so it is left alone; name another") from None


def _write(output: Path, plan: Plan, source: str, model: PlannedModel) -> None:
    from nopad.runtime.atomic import write_file
    from nopad.runtime.profiles import write_profiles

    about = {
        "source": source,
        "model": model.name,
        "texts": plan.texts,
        "memory_bytes": plan.memory_bytes,
        "token_budget": plan.token_budget,
        "cost_ratio": round(plan.cost_ratio, 4),
        "waste": round(plan.waste, 4),
    }
    write_file(output, write_profiles(plan.profiles, planned=about))


def _print(plan: Plan, model: PlannedModel) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{plan.texts} texts for {model.name}, {plan.simulated} of them simulated")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in ("tokens", "sequences", "longest", "texts", "volume", "batches", "waste", "launch", "MiB"):
        table.add_column(name, justify="right", overflow="fold")
    for number, forecast in enumerate(plan.forecasts, 1):
        table.add_row(str(number), *_cells(forecast))
    table.add_row("wide", *_cells(plan.wide), style="dim")
    console.print(table)
    several = len(plan.forecasts) > 1
    saved = f"expected cost {plan.cost_ratio:.1%} of one wide profile's" if several else "one profile is enough"
    console.print(
        f"{saved}; waste {plan.waste:.1%} (wide {plan.wide.waste:.1%}), "
        f"launches {plan.launches:.1%} (wide {plan.wide.launches:.1%})"
    )


def _cells(forecast: ProfileForecast) -> list[str]:
    return [
        *(f"{best}/{most}" for _, best, most in dataclasses.asdict(forecast.profile).values()),
        *(f"{share:.1%}" for share in (forecast.texts, forecast.tokens)),
        str(forecast.micro_batches),
        *(f"{share:.1%}" for share in (forecast.waste, forecast.launches)),
        f"{forecast.memory_bytes / 2**20:.0f}",
    ]


def _remarks(console: Console, plan: Plan, texts: Lengths, model: PlannedModel, output: Path | None) -> None:
    console.print(
        "sizes are opt/max; volume: share of all tokens; batches: of simulated texts; waste: share of the work that "
        "is filler and padding; launch: share of the cost that is starting kernels; MiB: of activations, reserved; "
        "wide: one profile for everything, in the same memory"
    )
    if texts.failed:
        rows = texts.failed + texts.counts.total()
        console.print(f"{texts.failed} of {rows} rows have no text ({texts.first_failure})", style="bold")
    if plan.cut:
        console.print(f"{plan.cut} texts are longer than {plan.max_length} tokens and count as cut")
    if plan.max_length < model.max_length:
        console.print(
            f"a text over {plan.max_length} tokens will need another engine; --max-length model takes all "
            f"{model.max_length}"
        )
    if output is not None:
        console.print(f"profiles written to {output}: nopad export ... --profiles {output}")
