"""`nopad tune`: what answers your texts fastest on this machine, measured and recorded beside the bundle."""

from __future__ import annotations

import dataclasses
import datetime
import random
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.console import FILES, common_options, emit, messages, reading_options, status, threads_option
from nopad.runtime.data.fields import TEXT_COLUMNS
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError, UsageError

if TYPE_CHECKING:
    from nopad.runtime.bundle import Bundle
    from nopad.runtime.tokenizer import TextEncoder, Tokens
    from nopad.runtime.tuning import Measured, Tuning

ROWS = 20_000  # of the data that are read
TEXTS = 512  # of those, by chance: as many as are sorted and packed together when a file is answered


@click.command()
@click.argument("bundle", required=False)
@click.option("--data", "-d", metavar="FILE", required=True, help=f"Texts as you will have them: {FILES}; - for stdin.")
@click.option(
    "--field", help=f"Column, field or dotted path of the text. [default: {', '.join(TEXT_COLUMNS[:6])}, ...]"
)
@click.option("--second-field", help="Field of the second text, for models of text pairs.")
@reading_options
@click.option("--seconds", type=click.FloatRange(min=1), default=60, help="Measure for about so long.")
@click.option(
    "--precision",
    metavar="NAME,..|auto",
    help="Try files of these precisions; auto: of all. [default: only the precision that load takes unasked]",
)
@common_options
@threads_option
def tune(
    bundle: str | None,
    data: str,
    field: str | None,
    second_field: str | None,
    seconds: float,
    precision: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **reading: Any,
) -> None:
    """Measure what answers your texts fastest on this machine, and record it for load.

    \b
    nopad tune bundle/ --data reviews.jsonl
    nopad tune bundle/ --data reviews.jsonl --precision auto

    Engines, micro-batches and threads take turns on the same texts. The winner is written to tuning.json in the bundle
    (without BUNDLE, the embedded default, to your cache), for this CPU and these versions; load and every command
    follow it where you name nothing else. Only files that have passed the parity gate take part.
    """
    from nopad.runtime.bundle import open_bundle
    from nopad.runtime.engines.gpus import gpu_at_hand
    from nopad.runtime.tokenizer import open_bundle_encoder
    from nopad.runtime.tune_file import write_entry
    from nopad.runtime.tuning import tune as measure

    opened = open_bundle(bundle)
    precisions = _precisions(precision, opened)
    encoder = open_bundle_encoder(opened)
    texts = _read(opened, encoder, DataSource(path=data, **reading), field, second_field)
    console = messages(quiet)
    with status(console) as show:
        result = measure(
            opened,
            encoder,
            texts,
            sm=gpu_at_hand,
            precisions=precisions,
            threads=threads,
            seconds=seconds,
            progress=lambda message, done, total: show(message, done, total),
        )
    path = write_entry(opened, _entry(opened, result, precision))
    if as_json:
        for one in result.measured:
            emit({**_figures(one), "chosen": one is result.winner})
        emit({"path": str(path), "texts": result.texts, "tokens": result.tokens, **_figures(result.winner)})
    else:
        _print(result)
    winner = result.winner.setting
    console.print(
        f"{path}: load takes {winner.engine} in {winner.precision}, micro-batches of {winner.token_budget} tokens"
        + (f", {winner.threads} thread{'s' if winner.threads > 1 else ''}" if winner.threads else "")
    )


def _precisions(named: str | None, bundle: Bundle) -> tuple[str, ...] | None:
    holds = tuple(dict.fromkeys(artifact.precision for artifact in bundle.manifest.artifacts))
    if named is None or named == "auto":
        return holds if named else None
    precisions = tuple(name.strip() for name in named.split(","))
    for name in precisions:
        if name not in holds:
            raise UsageError(f"--precision {name}: {bundle.path} holds {', '.join(holds)}")
    return precisions


def _read(
    bundle: Bundle, encoder: TextEncoder, source: DataSource, field: str | None, second_field: str | None
) -> list[Tokens]:
    """Some of the texts, by chance, as tokens with the bundle's default prompt. Raises `InputFileError` without any."""
    from nopad.runtime.data.records import read_rows
    from nopad.runtime.errors import TextError
    from nopad.runtime.prompts import resolve_prompt

    rows = [row for row in islice(read_rows(source, field, second_field), ROWS) if row.error is None]
    chosen = random.Random(0).sample(rows, min(TEXTS, len(rows)))
    encoded = encoder.encode([row.text for row in chosen], resolve_prompt(bundle.manifest, None, None))
    texts = [text for text in encoded if not isinstance(text, TextError)]
    if not texts:
        raise InputFileError(f"{source.path} has no text that this model can read")
    return texts


def _entry(bundle: Bundle, result: Tuning, asked: str | None) -> Any:
    from nopad.model.cpus import cpu_at_hand, usable_cores
    from nopad.runtime.atomic import sha256_of
    from nopad.runtime.bundle import MANIFEST
    from nopad.runtime.engines.gpus import gpu_at_hand
    from nopad.runtime.tune_file import Tuned, machine_key, versions_of

    setting = result.winner.setting
    return Tuned(
        machine=machine_key(bundle, gpu_at_hand),
        cpu=cpu_at_hand().model,
        cores=usable_cores(),
        manifest=sha256_of(bundle.path / MANIFEST),
        versions=versions_of(setting.engine),
        asked=asked,
        tokens_per_second=round(result.winner.rate, 1),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        **dataclasses.asdict(setting),
    )


def _figures(one: Measured) -> dict[str, Any]:
    slowest, fastest = one.range
    return {
        **dataclasses.asdict(one.setting),
        "tokens_per_second": round(one.rate, 1),
        "slowest": round(slowest, 1),
        "fastest": round(fastest, 1),
        "turns": len(one.seconds),
        "problem": one.problem,
    }


def _print(result: Tuning) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("", "tokens/s", "slowest", "fastest", "turns", "engine", "precision", "micro-batch", "threads"):
        words = name in ("", "engine", "precision")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    table.add_column("file", overflow="fold")
    for one in result.measured:
        setting, (slowest, fastest) = one.setting, one.range
        table.add_row(
            "*" if one is result.winner else "",
            *(f"{rate:,.0f}" if rate else "-" for rate in (one.rate, slowest, fastest)),
            str(len(one.seconds)),
            setting.engine,
            setting.precision,
            *(str(number or "-") for number in (setting.token_budget, setting.threads)),
            setting.file if one.problem is None else one.problem,
        )
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{result.texts} texts, {result.tokens:,} tokens a turn; median of the turns, slowest to fastest")
    console.print(table)
