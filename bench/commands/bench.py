"""`nopad bench BUNDLE`, and the way to `bench compare` and `bench --serve`. Heavy modules are imported when needed."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from nopad.model.cpus import usable_cores
from nopad.runtime.console import (
    FILES,
    common_options,
    emit,
    field_options,
    messages,
    reading_options,
    status,
    threads_option,
)
from nopad.runtime.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from nopad.bench.measure.record import Record
    from nopad.bench.subjects.plans import SubjectPlan
    from nopad.bench.workloads import Texts
    from nopad.runtime.bundle import Bundle

PUBLISH_SECONDS = 1.0  # at least this long between two writes of the file
_FOLDER = click.Path(path_type=Path)


class _WithOthers(click.Command):
    """`bench`: by its first argument the subcommand `compare`, by its option --serve load on servers."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        """The context of the command that the arguments ask for."""
        if args[:1] == ["compare"]:
            from nopad.bench.commands.compare import compare

            return compare.make_context(f"{info_name} compare", args[1:], parent=parent, **extra)
        if any(argument == "--serve" or argument.startswith("--serve=") for argument in args):
            from nopad.bench.commands.load import load

            args = ["--help"] if "--help" in args or "-h" in args else args
            return load.make_context(info_name, args, parent=parent, auto_envvar_prefix="NOPAD_BENCH", **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (value or "").split(",") if part.strip()))


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    names = _names(context, parameter, value)
    if not all(name.isascii() and name.isdigit() and 0 < int(name) < 10**6 for name in names):
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,8,32")
    return tuple(map(int, names))


@click.command(
    cls=_WithOthers,
    epilog="Two results are compared by: nopad bench compare OLD NEW [--help]. Running servers are put under load by: "
    "nopad bench --serve URL [--help]",
)
@click.argument("bundle", required=False)
@click.option(
    "--reference",
    "-r",
    metavar="CKPT",
    help="The checkpoint that the bundle was exported from: competitors run it. [default: none; with the embedded "
    "model, its own]",
)
@click.option(
    "--against",
    metavar="NAMES",
    callback=_names,
    help="Competitors, or none; hf-sdpa is the reference, and always there. transformers: hf-sdpa, hf-sdpa-bf16, "
    "hf-eager, hf-fa2; compiled, which takes minutes: hf-compile, hf-compile-bf16, hf-zentorch, hf-zentorch-bf16. "
    "Graphs: optimum, openvino (fp32), openvino-default, optimum-intel, optimum-intel-fp32. Embeddings: st, st-bf16, "
    "st-onnx, st-openvino, fastembed. BERT-base: bert. [default: those of the task, but compiled ones and bert]",
)
@click.option(
    "--engine",
    metavar="NAMES",
    callback=_names,
    help="Engines of the bundle. [default: of each file, all that this CPU can run; with a GPU, the first]",
)
@click.option("--precision", metavar="NAMES", callback=_names, help="Only files of these precisions. [default: all]")
@click.option(
    "--workload",
    "-w",
    "workload_names",
    metavar="NAME",
    multiple=True,
    help="sst2-64, imdb-32, or TEXTSxTOKENS as 8x512; may be repeated. [default: sst2-64, imdb-32, 1x512, 1x2048, "
    "1x8192]",
)
@click.option("--lengths", metavar="N,..", callback=_numbers, help="Fixed lengths in tokens: a grid with --batches.")
@click.option("--batches", metavar="N,..", callback=_numbers, help="Texts in one call, for --lengths and --data.")
@click.option("--data", metavar="FILE", help=f"Your own texts, labelled or not: {FILES}.")
@reading_options
@field_options("--data")
@click.option("--label-field", help="The same of the label. [default: the usual names]")
@click.option("--limit", type=click.IntRange(min=1), default=256, help="Only the first N rows of --data.")
@click.option(
    "--data-folder",
    envvar="NOPAD_DATA",
    type=_FOLDER,
    help="Folder with imdb/test.jsonl, sst2/train.tsv, longdocs/*.txt. [default: $NOPAD_DATA; else generated words]",
)
@click.option("--bert", metavar="CKPT", help="Checkpoint for --against bert. [default: random weights]")
@click.option("--bert-vocab", type=_FOLDER, help="vocab.txt of that random BERT. [default: the bundle's tokenizer]")
@click.option("--rounds", type=click.IntRange(1, 1000), default=7, help="Turns that each subject takes.")
@click.option("--seed", type=int, default=0, help="Of the order within a round.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Take fewer rounds, and leave out, to end by then.",
)
@click.option(
    "--memory-limit",
    type=click.FloatRange(min=0.01),
    metavar="GB",
    help="Of one process. [default: 90 % of what is free]",
)
@click.option("--allow-unverified", is_flag=True, help="Measure files that have not passed the parity gate, too.")
@click.option("--no-build-time", is_flag=True, help="Do not export the checkpoint anew only to time that.")
@click.option("--forecast", metavar="GPUS", callback=_names, help="Add a forecast for t4,l4,a10,a100,h100,h200.")
@click.option("--no-measure", is_flag=True, help="Only the forecast.")
@click.option("--output", "-o", type=_FOLDER, help="Folder for bench.json, bench.md, bench.html. [default: no files]")
@common_options
@threads_option
def bench(bundle: str | None, **options: Any) -> None:
    """Measure BUNDLE (default: the embedded model) beside its competitors: same texts, threads and process, in turns.

    \b
    nopad bench bundle/ --reference checkpoint/ --output results/
    nopad bench bundle/ --lengths 128,512,2048 --batches 1,8,32 --against none
    nopad bench compare results-old/ results/

    Competitors come with the extra `bench` (zentorch, a compiler for AMD's CPUs, with `zentorch`); optimum-onnx pins
    transformers below 4.58, so give them an environment of their own. Whatever is not installed, or needs bf16 on a CPU
    without it, is named in the report, and the rest is measured. After Ctrl-C the rounds so far are kept, marked
    incomplete.
    """
    _bench(bundle, _Options(**options))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    reference: str | None
    against: tuple[str, ...]
    engine: tuple[str, ...]
    precision: tuple[str, ...]
    workload_names: tuple[str, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    data: str | None
    encoding: str | None
    columns: tuple[str, ...]
    text_field: str | None
    second_field: str | None
    label_field: str | None
    limit: int
    data_folder: Path | None
    bert: str | None
    bert_vocab: Path | None
    rounds: int
    seed: int
    time_limit: float | None
    memory_limit: float | None
    allow_unverified: bool
    no_build_time: bool
    forecast: tuple[str, ...]
    no_measure: bool
    output: Path | None
    as_json: bool
    quiet: bool
    threads: int | None


def _bench(path: str | None, options: _Options) -> None:
    from nopad.bench.measure import machine
    from nopad.bench.report.files import check_folder
    from nopad.bench.subjects.builds import cache_beside
    from nopad.runtime.bundle import DEFAULT_CHECKPOINT, open_bundle

    threads = options.threads or usable_cores()
    machine.check_threads(threads, os.environ)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # for every subject's tokenizer
    if options.no_measure and not options.forecast:
        raise UsageError("--no-measure leaves only the forecast: say for which GPUs with --forecast")
    console = messages(options.quiet)
    opened = open_bundle(path)
    if options.output is not None:
        check_folder(options.output)
    reference = options.reference or (str(DEFAULT_CHECKPOINT) if path is None else None)
    if reference is None and not options.no_measure and options.against not in ((), ("none",)):
        raise UsageError("--against needs --reference CHECKPOINT: competitors run that")
    with cache_beside(options.output) as cache, status(console) as show:
        show("reading the texts")
        workloads, remarks = _workloads(opened, options)
        plans = [] if options.no_measure else _plans(opened, reference, options, threads, cache)
        for remark in remarks:
            console.print(remark, style="yellow")
        record = _record(opened, path, options, threads, workloads, plans)
        try:
            if options.forecast:
                from nopad.bench.forecast.forecast import forecast

                show("forecasting")
                record.forecasts = tuple(forecast(opened, [texts.workload for texts in workloads], options.forecast))
            if plans:
                _measure(opened, plans, workloads, record, options, show)
            record.complete = True
        finally:
            _write(record, options, console)
    _print(record, options)


def _record(
    bundle: Bundle,
    path: str | None,
    options: _Options,
    threads: int,
    workloads: Sequence[Texts],
    plans: Sequence[SubjectPlan],
) -> Record:
    from nopad.bench.measure.record import Record
    from nopad.bench.subjects.competitors import REFERENCE

    manifest = bundle.manifest
    return Record(
        command=shlex.join(["nopad", *sys.argv[1:]]),
        threads=threads,
        reference=REFERENCE if any(plan.name == REFERENCE for plan in plans) else None,
        model={
            "name": bundle.path.resolve().name if path else "the embedded model",
            "task": manifest.task,
            "verdict": manifest.verdict,
            "architecture": dict(manifest.architecture),
            "source": dict(manifest.source),
        },
        settings={name: getattr(options, name) for name in ("rounds", "seed", "time_limit", "memory_limit")},
        workloads=[texts.workload for texts in workloads],
        subjects=[plan.subject for plan in plans],
    )


def _measure(
    bundle: Bundle,
    plans: Sequence[SubjectPlan],
    workloads: Sequence[Texts],
    record: Record,
    options: _Options,
    show: Callable[..., None],
) -> None:
    from nopad.bench.measure.run import Run, Settings

    settings = Settings(
        threads=record.threads,
        rounds=options.rounds,
        seed=options.seed,
        head=bundle.manifest.head,
        memory_limit=int(options.memory_limit * 1e9) if options.memory_limit else None,
        time_limit=options.time_limit,
    )
    publish = _publisher(record, options.output)
    Run(plans, workloads, record, settings, publish=publish, show=show).measure()


def _workloads(bundle: Bundle, options: _Options) -> tuple[list[Texts], list[str]]:
    from nopad.bench.workloads import DEFAULTS, OwnTexts, Source, check_names, grid_size
    from nopad.runtime.data.table import DataSource

    longest, remarks = bundle.manifest.max_length, []
    names = list(options.workload_names)
    if options.lengths or (options.batches and options.data is None):
        names += [f"{texts}x{tokens}" for tokens in options.lengths or (128, 512) for texts in options.batches or (1,)]
    if not names and options.data is None:
        names = [name for name in DEFAULTS if (grid_size(name) or (0, 0))[1] <= longest]
        too_long = [name for name in DEFAULTS if name not in names]
        remarks += (
            [f"left out, as this bundle takes {longest} tokens at most: {', '.join(too_long)}"] if too_long else []
        )
    names = list(dict.fromkeys(names))
    check_names(names, longest)
    folder = options.data_folder
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--data-folder {folder} is not a folder")
    source = Source(bundle, folder)
    workloads = [source.named(name) for name in names]
    if options.data is not None:
        own = OwnTexts(
            source=DataSource(path=options.data, encoding=options.encoding, columns=options.columns),
            **{name: getattr(options, name) for name in ("text_field", "second_field", "label_field", "limit")},
        )
        workloads += [source.own(own, batch) for batch in options.batches or (32,)]
    generated = any(texts.workload.source != Path(options.data or "").name for texts in workloads)
    return workloads, [*remarks, *(source.remarks if generated else [])]


def _plans(bundle: Bundle, reference: str | None, options: _Options, threads: int, cache: Path) -> list[SubjectPlan]:
    from nopad.bench.subjects.competitors import BERT, REFERENCE, check_against, default_against
    from nopad.bench.subjects.plans import plan_bert, plan_competitors, plan_engines
    from nopad.model.checkpoint.hub import resolve_checkpoint
    from nopad.model.checkpoint.json_files import read_raw_config

    names, checkpoint = options.against, None
    if reference is not None and names != ("none",):
        checkpoint = resolve_checkpoint(reference)
        raw = read_raw_config(checkpoint)
        kind = {
            "embeddings": bundle.manifest.task == "embeddings",
            "library_folder": (checkpoint / "modules.json").is_file(),
        }
        check_against(names, **kind)
        names = names or default_against(**kind)
    plans = plan_engines(
        bundle,
        threads=threads,
        engines=options.engine,
        precisions=options.precision,
        allow_unverified=options.allow_unverified,
        timed_from=None if options.no_build_time else checkpoint,
        yardstick=REFERENCE if checkpoint else None,
    )
    if checkpoint is None:  # then nopad's first engine is the yardstick
        return [plans[0], *(dataclasses.replace(plan, yardstick=plans[0].name) for plan in plans[1:])]
    names = tuple(dict.fromkeys([REFERENCE, *names]))
    plans += plan_competitors(names, checkpoint, bundle, cache, threads=threads, raw_config=raw)
    if BERT in names:
        if options.bert_vocab is not None and not options.bert_vocab.is_file():
            raise UsageError(f"--bert-vocab {options.bert_vocab} is not a file")
        targets = {plan.spec.target for plan in plans if plan.spec.precision == "fp32"}
        plans += plan_bert(
            resolve_checkpoint(options.bert) if options.bert else None,
            options.bert_vocab,
            bundle,
            cache,
            threads=threads,
            target="cpu" if "cpu" in targets else "onnx",
        )
    return plans


def _publisher(record: Record, output: Path | None) -> Callable[[], None]:
    from nopad.bench.report.files import write_json

    last = [float("-inf")]

    def publish() -> None:
        if output is not None and time.monotonic() - last[0] >= PUBLISH_SECONDS:
            write_json(record.report(), output)
            last[0] = time.monotonic()

    return publish


def _write(record: Record, options: _Options, console: Console) -> None:
    """Write all files of the run, interrupted or not."""
    from nopad.bench.report.files import HTML, MARKDOWN, write_json
    from nopad.bench.report.markdown import to_markdown
    from nopad.runtime.atomic import write_file

    if options.output is None:
        return
    report = record.report()
    write_json(report, options.output)
    write_file(options.output / MARKDOWN, to_markdown(report).encode())
    try:
        from nopad.bench.report.html import write_html

        write_html(report, options.output / HTML)
    except (ImportError, EnvironmentProblem) as error:
        console.print(f"no {HTML}: {error}", style="yellow")
    console.print(f"written to {options.output}", style="dim")


def _print(record: Record, options: _Options) -> None:
    from nopad.bench.report.files import to_json
    from nopad.bench.report.markdown import to_markdown

    report = record.report()
    if options.as_json:
        emit(to_json(report))
    else:
        click.echo(to_markdown(report), nl=False)
