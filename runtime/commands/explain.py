"""`nopad explain`: which words of a text speak for its label, and which against it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text as Line

from nopad.runtime.console import (
    FILES,
    bundle_and_texts,
    common_options,
    emit,
    messages,
    reading_options,
    status,
    threads_option,
)
from nopad.runtime.engines.base import ENGINES, named_engines
from nopad.runtime.errors import UsageError
from nopad.runtime.types import BYS, METHODS, REMOVALS, Explanation, Failure, Text

if TYPE_CHECKING:
    from nopad.runtime.data.records import Row

_NAMED = 5  # words of each side that are listed below a text
_BLUE, _ORANGE, _PAPER = (11, 111, 184), (200, 80, 10), (255, 255, 255)  # those of plots


@click.command()
@click.argument("arguments", nargs=-1, metavar="[BUNDLE] [TEXT]...")
@click.option("--input", "-i", "source", metavar="FILE", help=f"{FILES}; - for stdin.")
@click.option("--field", help="Column or field of the text in --input. [default: the usual names]")
@click.option("--second-field", help="Field of the second text, for models of text pairs.")
@reading_options
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N texts of --input.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="occlusion",
    help="occlusion and shapley run on every engine; the others need a bundle with --target torch.",
)
@click.option("--by", type=click.Choice(BYS), default="word", help="What is removed at once, and gets a score.")
@click.option("--label", help="Explain this label. [default: each text's own answer]")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    help="The most runs for a text (gradients, for integrated-gradients). [default: what the method needs]",
)
@click.option(
    "--removal", type=click.Choice(REMOVALS), default="drop", help="Removed words are dropped, or become masks."
)
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the marked texts here, too."
)
@click.option(
    "--engine",
    help=f"Engine to run on: auto, {', '.join(ENGINES)}. [default: auto; torch for methods that need gradients]",
)
@click.option("--precision", help="Only files of this precision; auto: the fastest that is verified.")
@click.option(
    "--truncation",
    type=click.Choice(["truncate", "error", "window"]),
    default="truncate",
    help="A text over the model's max length: explain its beginning, refuse it, or read it in windows.",
)
@click.option("--allow-unverified", is_flag=True, help="Open a bundle that has not passed the parity gate.")
@common_options
@threads_option
def explain(
    arguments: tuple[str, ...],
    source: str | None,
    field: str | None,
    second_field: str | None,
    encoding: str | None,
    columns: tuple[str, ...],
    limit: int | None,
    html: Path | None,
    engine: str | None,
    as_json: bool,
    quiet: bool,
    precision: str | None,
    truncation: str,
    allow_unverified: bool,
    threads: int | None,
    **asked: Any,
) -> int:
    """Mark the words of each TEXT, or of every text of --input, that speak for the label of BUNDLE, or against it.

    \b
    nopad explain "a dull hour of my life that I want back"
    nopad explain bundle/ --method shapley --html why.html --input reviews.jsonl --limit 20
    nopad explain bundle/ --method integrated-gradients --by sentence --label negative "a dull film. Splendid!"

    Scores are parts of the label's log-odds. docs/explain.md says what each method costs and how well it judges.
    """
    from nopad.runtime.atomic import write_file
    from nopad.runtime.data.table import DataSource
    from nopad.runtime.explain.explaining import GRADIENTS
    from nopad.runtime.explain.page import page
    from nopad.runtime.offline.answers import as_object
    from nopad.runtime.predictor import load

    bundle, texts = bundle_and_texts(arguments)
    if bool(texts) == bool(source):
        raise UsageError("give either texts or --input FILE" + (", not both" if texts else ""))
    if source is None and (field or second_field or limit):
        raise UsageError("--field, --second-field and --limit are of --input FILE")
    console, failed = messages(quiet), 0
    default = "torch" if asked["method"] in GRADIENTS and bundle is not None else "auto"
    explained: list[tuple[Text, Explanation]] = []
    options: dict[str, Any] = {
        "precision": precision,
        "truncation": truncation,
        "allow_unverified": allow_unverified,
        "threads": threads,
    }
    data = DataSource(path=source or "-", encoding=encoding, columns=columns)
    progress = messages(quiet or source is None)
    with load(bundle, engine=named_engines(engine or default), **options) as model, status(progress) as show:
        rows = _rows(texts, source, data, field, second_field)
        for number, row in enumerate(rows):
            if number == limit:
                break
            show("explaining", number)
            found: Explanation | Failure | None = None
            if row.error is None:
                (found,) = model.explain([row.text], on_error="return", **asked)
            if found is None or isinstance(found, Failure):
                failed += 1
                reason = row.error if found is None else str(found.error)
                if as_json:
                    emit({**_origin(row, source), "error": reason})
                else:
                    click.echo(f"nopad: {f'line {row.line}' if source else repr(row.text)}: {reason}", err=True)
                continue
            if html is not None:
                explained.append((row.text, found))
            if as_json:
                emit({**_origin(row, source), **as_object(found)})
            else:
                _print(row.text, found)
            if found.truncated:
                console.print(f"explained {found.tokens_used} of {found.tokens} tokens; --truncation window reads all")
    if html is not None:
        write_file(html, page(explained).encode("utf-8", "backslashreplace"))
        console.print(f"{html} shows {len(explained)} texts")
    return 3 if failed else 0


def _rows(
    texts: tuple[str, ...], source: str | None, data: Any, field: str | None, second_field: str | None
) -> Iterator[Row]:
    from nopad.runtime.data.records import Row, read_rows

    if source is not None:
        return read_rows(data, field, second_field)
    return (Row(line=number, text=text) for number, text in enumerate(texts, 1))


def _origin(row: Row, source: str | None) -> dict[str, Any]:
    text = list(row.text) if isinstance(row.text, tuple) else row.text
    return {"text": text} if source is None else {"line": row.line, "text": text}


def _print(text: Text, explanation: Explanation) -> None:
    from nopad.runtime.explain.page import SHADES, headline, segments

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(headline(explanation))
    for part in segments(text, explanation):
        line = Line()
        for piece, attribution, shade in part:
            strength = abs(shade) / SHADES
            colour = _BLUE if shade > 0 else _ORANGE
            mixed = [round(strength * c + (1 - strength) * p) for c, p in zip(colour, _PAPER, strict=True)]
            ink = "white" if strength > 0.6 else "black"
            line.append(piece, style=f"{ink} on rgb({mixed[0]},{mixed[1]},{mixed[2]})" if attribution and shade else "")
        console.print(line)
    ordered = sorted(explanation.attributions, key=lambda each: -each.score)
    for name, chosen in (
        ("for    ", [each for each in ordered[:_NAMED] if each.score > 0]),
        ("against", [each for each in ordered[: -_NAMED - 1 : -1] if each.score < 0]),
    ):
        if chosen:
            console.print(f"  {name}  " + "  ".join(f"{each.score:+.2f} {_short(each.text)}" for each in chosen))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:37] + "..."
