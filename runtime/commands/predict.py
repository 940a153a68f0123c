"""`nopad predict`: answer texts from the command line, or a file of any length."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.commands.options import engine_option, host_code_option, precision_option, token_budget_option
from nopad.runtime.console import (
    FILES,
    bundle_and_texts,
    check_ray_options,
    common_options,
    emit,
    messages,
    ray_options,
    reading_options,
    threads_option,
)
from nopad.runtime.data.fields import TEXT_COLUMNS
from nopad.runtime.data.table import DataSource
from nopad.runtime.engines.base import named_engines
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Manifest
from nopad.runtime.offline.answers import Reading, Scoring, answer_file

if TYPE_CHECKING:
    from nopad.runtime.predictor import Model

# The options of `load` that answers depend on: an interrupted job is resumed only with the same values.
_DECIDING = ("engine", "precision", "truncation", "stride", "merge", "token_budget", "prompt_name", "prompt")


@click.command()
@click.argument("arguments", nargs=-1, metavar="[BUNDLE] [TEXT]...")
@click.option(
    "--input",
    "-i",
    "source",
    metavar="FILE",
    help=f"{FILES}; - for stdin. FILE#NAME: that sheet of a spreadsheet, or split of a folder.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="Write answers here: CSV, TSV or Parquet by its ending, else JSONL. Without it, or with -, JSONL to stdout.",
)
@click.option(
    "--field",
    help="Column or field of the text; dots go into JSON: meta.review.text, messages.0.content. "
    f"[default: {', '.join(TEXT_COLUMNS[:6])}, ...]",
)
@click.option("--second-field", help="Field of the second text, for models of text pairs.")
@click.option("--keep", metavar="NAME,..", help="Columns of the input to carry into the answers; '*' for all.")
@click.option("--scores", is_flag=True, help="In CSV and Parquet, a column score_LABEL for each label.")
@reading_options
@engine_option
@precision_option
@click.option("--top-k", type=click.IntRange(min=1), help="Only the best K labels (or tokens, for fill-mask).")
@click.option(
    "--entities",
    type=click.Choice(["none", "simple", "first", "average", "max"]),
    help="Group the tokens of entities as transformers' pipeline does. [default: by the model's own tags]",
)
@click.option("--ignore-labels", metavar="NAME,..", help="Labels of entities to leave out. [default: O]")
@click.option(
    "--truncation",
    type=click.Choice(["truncate", "error", "window"]),
    default="truncate",
    help="A text over the model's max length: read its beginning (and say so), refuse it, or read it in windows.",
)
@click.option(
    "--stride",
    type=click.IntRange(min=0),
    help="Tokens that neighbouring windows share. [default: 128, at most a quarter of a window]",
)
@click.option(
    "--merge",
    type=click.Choice(["mean", "max", "first"]),
    help="How the answers of a text's windows become one. [default: mean; max for rerank]",
)
@token_budget_option
@click.option("--prompt-name", help="Put this prompt of the bundle's before each text. [default: the bundle's own]")
@click.option("--prompt", help="Put these words before each text, instead of a prompt of the bundle's.")
@click.option("--allow-unverified", is_flag=True, help="Open a bundle that has not passed the parity gate.")
@host_code_option
@click.option("--resume", is_flag=True, help="Go on with an interrupted --output.")
@ray_options
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="With --ray, so many opened models, each in a process of its own. [default: all that there is room for]",
)
@common_options
@threads_option
def predict(
    arguments: tuple[str, ...],
    source: str | None,
    output: Path | None,
    field: str | None,
    second_field: str | None,
    keep: str | None,
    scores: bool,
    encoding: str | None,
    columns: tuple[str, ...],
    top_k: int | None,
    entities: str | None,
    ignore_labels: str | None,
    resume: bool,
    ray: str | None,
    replicas: int | None,
    gpus: float,
    as_json: bool,
    quiet: bool,
    **opening: Any,
) -> int:
    """Answer each TEXT, or every line of --input, with BUNDLE (without one: the embedded sentiment model).

    \b
    nopad predict "a dull hour of my life that I want back"
    nopad predict bundle/ "a dull film" "splendid"
    nopad predict bundle/ --input reviews.jsonl --output labels.jsonl

    A bad line fails alone: its answer is {"line": N, "error": "..."}, and the exit code is 3 at the end.
    """
    bundle, texts = bundle_and_texts(arguments)
    output = None if output == Path("-") else output
    _check_usage(texts, source, output, keep=keep, scores=scores, resume=resume)
    check_ray_options(ray, replicas=replicas, gpus=gpus)
    console = messages(quiet)
    asked: dict[str, Any] = {"top_k": top_k, "entities": entities, "ignore_labels": ignore_labels}
    if source is None:
        if ray is not None:
            raise UsageError("--ray needs --input FILE; texts are answered here")
        with _load(bundle, **opening) as model:
            code = _print(model, texts, _wanted(model.task, **asked), as_json, console)
            _say_if_degraded(model, console)
            return code
    reading = Reading(
        source=DataSource(path=source, encoding=encoding, columns=columns),
        field=field,
        second_field=second_field,
        keep=tuple(name.strip() for name in keep.split(",")) if keep else (),
    )
    if ray is not None and output is None:
        raise UsageError("--ray needs --output FILE: Ray writes messages of its own to stdout")
    if ray is None:
        scoring = _here(bundle, opening, asked, console)
    else:
        scoring = _on_ray(bundle, opening, asked, reading, address=ray, replicas=replicas, gpus=gpus)
    with scoring as (manifest, wanted, score):
        outcome = answer_file(
            manifest,
            score,
            reading,
            output,
            scores=scores,
            wanted=wanted,
            options={name: opening[name] for name in _DECIDING},
            resume=resume,
            console=console,
            emit=emit,
        )
    if outcome.truncated:
        console.print(f"{outcome.truncated} texts were longer than {manifest.max_length} tokens and cut")
    if outcome.failed:
        console.print(f'{outcome.failed} of {outcome.lines} lines failed; see their "error"', style="bold")
    return 3 if outcome.failed else 0


@contextmanager
def _here(
    bundle: str | None, opening: Mapping[str, Any], asked: Mapping[str, Any], console: Console
) -> Iterator[tuple[Manifest, dict[str, Any], Scoring]]:
    """What answers a file in this process: the manifest, the options of `Model.results`, and the answers."""
    from nopad.runtime.offline.answers import answers

    with _load(bundle, **opening) as model:
        wanted = _wanted(model.task, **asked)
        yield model.manifest, wanted, lambda rows, done: answers(model, rows, wanted)
        _say_if_degraded(model, console)


@contextmanager
def _on_ray(
    bundle: str | None,
    opening: Mapping[str, Any],
    asked: Mapping[str, Any],
    reading: Reading,
    *,
    address: str,
    replicas: int | None,
    gpus: float,
) -> Iterator[tuple[Manifest, dict[str, Any], Scoring]]:
    """The same on a Ray cluster."""
    from nopad.runtime.bundle import open_bundle
    from nopad.runtime.ray.scoring import scoring_on

    if reading.source.path == "-":
        raise UsageError("--ray needs --input FILE, which is read more than once; stdin cannot be")
    opened = open_bundle(bundle, verify=False)
    wanted = _wanted(opened.manifest.task, **asked)
    options = {**opening, "engine": named_engines(opening["engine"])}
    with scoring_on(
        address, bundle, opened.manifest, reading, options=options, wanted=wanted, replicas=replicas, gpus=gpus
    ) as score:
        yield opened.manifest, wanted, score


def _load(bundle: str | None, engine: str, **options: Any) -> Model:
    """Load the model; `engine` is a name, or several separated by commas."""
    from nopad.runtime.predictor import load

    return load(bundle, engine=named_engines(engine), **options)


def _wanted(task: str, *, top_k: int | None, entities: str | None, ignore_labels: str | None) -> dict[str, Any]:
    """`--top-k`, `--entities` and `--ignore-labels` as `Model.results` takes them."""
    if entities is None and ignore_labels is None:
        return {"top_k": top_k}
    if task != "token-classification":
        raise UsageError(f"--entities and --ignore-labels are for token-classification, this bundle does {task}")
    names = {} if ignore_labels is None else {"ignore_labels": [name.strip() for name in ignore_labels.split(",")]}
    return {"top_k": top_k, "strategy": entities, **names}


def _check_usage(
    texts: Sequence[str], source: str | None, output: Path | None, *, keep: str | None, scores: bool, resume: bool
) -> None:
    if bool(texts) == bool(source):
        raise UsageError("give either texts or --input FILE" + (", not both" if texts else ""))
    if output is not None and source is None:
        raise UsageError("--output needs --input FILE; the answers to texts go to stdout")
    if source is None and (keep or scores):
        raise UsageError(f"{'--keep' if keep else '--scores'} needs --input FILE")
    if resume and (output is None or source in (None, "-")):
        raise UsageError("--resume needs --input FILE and --output FILE")


def _say_if_degraded(model: Model, console: Console) -> None:
    status = model.status()
    for engine in status.engines if status.degraded else ():
        if engine.failures:
            console.print(
                f"engine {engine.name} ({engine.precision}) failed on {engine.failures} batches, another answered: "
                f"{engine.reason}"
            )


def _print(model: Model, texts: tuple[str, ...], wanted: Mapping[str, Any], as_json: bool, console: Console) -> int:
    from nopad.runtime.offline.answers import as_object
    from nopad.runtime.types import Failure

    failed = 0
    table = Table(box=None, pad_edge=False)
    for text, answer in zip(texts, model.results(iter(texts), **wanted), strict=True):
        if isinstance(answer, Failure):
            failed += 1
            if as_json:
                emit({"text": text, "error": str(answer.error)})
            else:
                click.echo(f"nopad: {text!r}: {answer.error}", err=True)
            continue
        if answer.truncated:
            console.print(f"read {answer.tokens_used} of {answer.tokens} tokens of {text[:40]!r}")
        if as_json:
            emit({"text": text, **as_object(answer)})
        else:
            if not table.columns:
                for name in ("answer", "score", "text"):
                    table.add_column(name, overflow="fold", no_wrap=name != "text")
            for first, second in _cells(answer, wanted["top_k"]):
                table.add_row(first, second, text if len(text) <= 60 else text[:57] + "...")
    if table.rows:
        Console(file=sys.stdout, highlight=False, markup=False, emoji=False).print(table)
    return 3 if failed else 0


def _cells(answer: Any, top_k: int | None) -> list[tuple[str, str]]:
    from nopad.runtime.types import Embedding, MaskFill, Tagging, TokenEmbeddings

    if isinstance(answer, Tagging):
        return [(f"{entity.label}: {entity.text}", f"{entity.score:.4f}") for entity in answer.entities] or [("-", "")]
    if isinstance(answer, MaskFill):
        return [(token, f"{score:.4f}") for mask in answer.masks for token, score in mask]
    if isinstance(answer, Embedding):
        return [(f"vector of {len(answer.vector)}", f"norm {float((answer.vector**2).sum() ** 0.5):.4f}")]
    if isinstance(answer, TokenEmbeddings):
        return [("{} vectors of {}".format(*answer.vectors.shape), "")]
    if top_k:
        return [(label, f"{score:.4f}") for label, score in answer.scores.items()]
    return [((", ".join(answer.labels) or "-") + (" (abstained)" if answer.abstained else ""), f"{answer.score:.4f}")]
