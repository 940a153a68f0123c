"""`nopad bench --serve URL`: load on servers. Heavy modules are imported when they are needed."""

from __future__ import annotations

import asyncio
import datetime
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nopad.runtime.console import FILES, common_options, emit, messages, reading_options, status
from nopad.runtime.errors import UsageError

if TYPE_CHECKING:
    from nopad.bench.load.endpoints import Target
    from nopad.bench.load.run import Plan
    from nopad.bench.load.schema import LoadReport
    from nopad.bench.load.texts import Pool

_FOLDER = click.Path(path_type=Path)
_PROTOCOLS = "tei-predict, tei-embed, hub, openai, infinity-classify, nopad-classify, kserve"  # those of protocols.py


def _rates(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """None if nothing was said, () for auto."""
    if value is None or value.strip() == "auto":
        return None if value is None else ()
    try:
        rates = tuple(dict.fromkeys(float(part) for part in value.split(",") if part.strip()))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < 1e6 for rate in rates):
        raise click.BadParameter(f"{value!r} is neither auto nor a list of numbers like 10,20,50")
    return rates


def _callers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    numbers = _rates(context, parameter, value) or ()
    if not all(number.is_integer() for number in numbers):
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,8,32")
    return tuple(map(int, numbers))


@click.command("serve")
@click.option(
    "--serve",
    metavar="[NAME=]URL",
    multiple=True,
    required=True,
    help="A server; repeat it for several, which take turns. The first is compared with the others.",
)
@click.option(
    "--protocol",
    metavar="[NAME=]P",
    multiple=True,
    help=f"{_PROTOCOLS}; of the server NAME alone, or of all. [default: what the server says of itself]",
)
@click.option(
    "--template",
    metavar="[NAME=]JSON",
    multiple=True,
    help="Body for a service of your own at URL, as '{\"text\": TEXT}'; TEXTS becomes a list of texts.",
)
@click.option("--model", metavar="[NAME=]M", multiple=True, help="The model that requests name. [default: the first]")
@click.option(
    "--rate", metavar="R,..", callback=_rates, help="Requests/s to offer. [default: auto, a sweep until it breaks]"
)
@click.option("--concurrency", metavar="N,..", callback=_callers, help="Closed loop: so many callers who wait.")
@click.option("--arrivals", default="poisson", help="poisson, constant, bursts:SIZE, or on-off:SECONDS:SECONDS.")
@click.option("--texts-per-request", type=click.IntRange(1, 4096), default=1, help="Texts in one request.")
@click.option("--duration", type=click.FloatRange(min=0.1), default=15.0, help="Seconds of each step that count.")
@click.option("--warmup", type=click.FloatRange(min=0), default=2.0, help="Seconds of each step before that.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, help="How often each load is repeated.")
@click.option("--target-p99-ms", type=click.FloatRange(min=0, min_open=True), help="Latency that counts as good.")
@click.option(
    "--deadline-ms", type=click.FloatRange(min=1), help="Tell the server a deadline: a header, for KServe a parameter."
)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=30.0, help="Seconds until the client gives up.")
@click.option("--data", metavar="FILE", multiple=True, help=f"Texts, each file with an equal share: {FILES}.")
@reading_options
@click.option("--text-field", help="Column, field or dotted path of the text in --data. [default: the usual names]")
@click.option("--limit", type=click.IntRange(min=1), default=1000, help="Only the first N rows of each file.")
@click.option(
    "--data-folder",
    envvar="NOPAD_DATA",
    type=_FOLDER,
    help="Without --data: a folder with imdb/test.jsonl, sst2/train.tsv. [default: $NOPAD_DATA; else generated words]",
)
@click.option("--tokenizer", metavar="BUNDLE", help="Count tokens with the tokenizer of this bundle.")
@click.option(
    "--check", metavar="BUNDLE", help="Compare every answer with this bundle's offline ones; counts tokens, too."
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=1e-4, help="Difference of a score that --check allows."
)
@click.option("--header", metavar="NAME:VALUE", multiple=True, help="Of every request, as 'authorization: Bearer KEY'.")
@click.option("--seed", type=int, default=0, help="Of arrivals, texts and the order of turns.")
@click.option("--output", "-o", type=_FOLDER, help="Folder for load.json, load.md, load.html. [default: no files]")
@common_options
def load(serve: tuple[str, ...], output: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Put load on running servers, of nopad or of others, and find what they carry.

    \b
    nopad bench --serve http://localhost:8000 --target-p99-ms 100
    nopad bench --serve nopad=http://localhost:8000 --serve tei=http://localhost:8080 --data texts.jsonl -o results/
    nopad bench --serve http://localhost:8000 --concurrency 1,8,64 --check bundle/
    nopad bench --serve http://localhost:9000/classify --template '{"text": TEXT}' --rate 10,20,40

    Requests arrive at planned times, whatever became of those before, and latency counts from the planned time. Wrong
    and failed answers are counted by kind. After Ctrl-C the steps so far are kept, marked incomplete.
    """
    from nopad.bench.load.files import check_folder, to_json, write_all
    from nopad.bench.load.markdown import to_markdown

    if output is not None:
        check_folder(output)
    console = messages(quiet)
    reports: list[LoadReport] = []
    try:
        with status(console) as show:
            _run(serve, options, output, show, lambda text: console.print(text, style="yellow"), reports.append)
    finally:
        if reports and output is not None:
            write_all(reports[-1], output)
            console.print(f"written to {output}", style="dim")
    if as_json:
        emit(to_json(reports[-1]))
    else:
        click.echo(to_markdown(reports[-1]), nl=False)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """How one server is asked, as the options say."""

    name: str
    url: str
    protocol: str | None
    template: str | None
    model: str | None


def _asked(serve: tuple[str, ...], options: dict[str, Any]) -> list[_Asked]:
    from nopad.bench.load.endpoints import split_name
    from nopad.bench.load.protocols import PROTOCOLS

    servers = [split_name(given) for given in serve]
    names = [name for name, _ in servers]
    if len(set(names)) < len(names):
        raise UsageError("two servers with one name: give them names of their own, as --serve NAME=URL")
    of = {option: _by_name(options[option], names) for option in ("protocol", "template", "model")}
    for protocol in of["protocol"].values():
        if protocol not in PROTOCOLS:
            raise UsageError(f"--protocol {protocol}: there are {', '.join(PROTOCOLS)}")
    return [
        _Asked(name=name, url=url, **{option: values.get(name, values.get("")) for option, values in of.items()})
        for name, url in servers
    ]


def _by_name(given: tuple[str, ...], names: list[str]) -> dict[str, str]:
    """Values by server; below "" the one for all."""
    values = {}
    for text in given:
        name, separator, value = text.partition("=")
        values.update({name: value} if separator and name in names else {"": text})
    return values


def _run(
    serve: tuple[str, ...],
    options: dict[str, Any],
    output: Path | None,
    show: Callable[..., None],
    remark: Callable[[str], None],
    keep: Callable[[LoadReport], None],
) -> None:
    """Measure; every state of the report goes to `keep`."""
    from nopad.bench.load.checks import offline
    from nopad.bench.load.files import write_json

    asked, plan = _asked(serve, options), _plan(options)
    pool = _pool(options, remark)
    check = None
    if options["check"]:
        show("answering the texts offline")
        check = offline(Path(options["check"]), pool.texts, threads=None, tolerance=options["tolerance"])

    def publish(report: LoadReport) -> None:
        keep(report)
        if output is not None:
            write_json(report, output)

    async def measure() -> None:
        from nopad.bench.load.run import Run

        targets = await _detect(asked, plan)
        report = _report(targets, pool, options)
        await Run(plan, targets, pool, report, check=check, publish=publish, show=show).measure()

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure())


async def _detect(asked: list[_Asked], plan: Plan) -> list[Target]:
    from nopad.bench.load.client import session
    from nopad.bench.load.endpoints import detect

    async with session(plan.headers) as pool:
        return [
            await detect(pool, one.name, one.url, protocol=one.protocol, model=one.model, template=one.template)
            for one in asked
        ]


def _plan(options: dict[str, Any]) -> Plan:
    from nopad.bench.load.arrivals import parse
    from nopad.bench.load.run import Plan

    def in_seconds(milliseconds: float | None) -> float | None:
        return None if milliseconds is None else milliseconds / 1000

    headers = {}
    for line in options["header"]:
        name, separator, value = line.partition(":")
        if not separator or not name.strip():
            raise UsageError(f"--header {line!r}: as 'NAME: VALUE'")
        headers[name.strip()] = value.strip()
    return Plan(
        rates=options["rate"] or (),
        sweep=options["rate"] == () or (options["rate"] is None and not options["concurrency"]),
        callers=options["concurrency"],
        arrivals=parse(options["arrivals"]),
        rounds=options["rounds"],
        seconds=options["duration"],
        warmup=options["warmup"],
        each=options["texts_per_request"],
        target=in_seconds(options["target_p99_ms"]),
        deadline=in_seconds(options["deadline_ms"]),
        timeout=options["timeout"],
        seed=options["seed"],
        headers=headers,
    )


def _pool(options: dict[str, Any], remark: Callable[[str], None]) -> Pool:
    from nopad.bench.load.texts import pool_of
    from nopad.runtime.bundle import open_bundle
    from nopad.runtime.data.table import DataSource

    about = options["check"] or options["tokenizer"]
    pool, remarks = pool_of(
        [DataSource(path=path, encoding=options["encoding"], columns=options["columns"]) for path in options["data"]],
        text_field=options["text_field"],
        limit=options["limit"],
        folder=options["data_folder"],
        bundle=open_bundle(about) if about else None,
    )
    for text in remarks:
        remark(text)
    return pool


def _report(targets: list[Target], pool: Pool, options: dict[str, Any]) -> LoadReport:
    from nopad.bench.load.schema import LoadReport
    from nopad.bench.measure import machine
    from nopad.model.packages import version_of

    kept = ("rate", "concurrency", "arrivals", "rounds", "duration", "warmup", "texts_per_request", "target_p99_ms",
            "deadline_ms", "timeout", "tolerance", "seed")  # fmt: skip
    target = options["target_p99_ms"]
    versions = {name: version for name in ("nopad", "aiohttp", "uvloop", "numpy") if (version := version_of(name))}
    return LoadReport(
        command=shlex.join(["nopad", *sys.argv[1:]]),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        complete=False,
        machine=machine.describe(),
        versions=versions,
        settings={name: list(value) if isinstance(value := options[name], tuple) else value for name in kept},
        target_p99=None if target is None else target / 1000,
        endpoints=tuple(target.endpoint for target in targets),
        workload=pool.workload(),
    )
