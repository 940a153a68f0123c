"""`nopad serve`: bundles behind an HTTP server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from nopad.runtime.commands.options import engine_option, host_code_option, precision_option, token_budget_option
from nopad.runtime.config_file import as_toml, config_option
from nopad.runtime.console import check_ray_options, common_options, emit, messages, ray_options, threads_option
from nopad.runtime.engines.base import named_engines
from nopad.runtime.errors import UsageError
from nopad.runtime.server.settings import Job, Settings

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("bundles", nargs=-1, metavar="[[NAME=]BUNDLE]...")
@config_option
@click.option("--print-config", is_flag=True, help="Print the options in force as such a file, and do nothing else.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every network of the machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Answer KServe's protocol over gRPC, too, on this port of the same address; 0 takes a free one.",
)
@click.option(
    "--compress-from",
    type=click.IntRange(min=1),
    help="Compress answers of so many bytes, for clients that accept gzip or deflate. [default: none]",
)
@click.option("--uds", type=FILE, help="Listen on this Unix socket; on --host and --port too only if you give them.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=Settings.workers,
    help="Processes that answer, each with its own copy of the models and its share of --threads.",
)
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=Settings.max_batch, help="Texts of one request, at most."
)
@click.option(
    "--max-body", type=click.IntRange(min=1), default=Settings.max_body, help="Bytes of one request, at most."
)
@click.option(
    "--max-queue", type=click.IntRange(min=1), default=Settings.max_queue, help="Texts that may wait; more get 429."
)
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    default=Settings.max_concurrent,
    help="Requests answered at once; more get 429.",
)
@click.option(
    "--max-explain",
    type=click.IntRange(min=0),
    default=Settings.max_explain,
    help="Tokens that one request to /v1/explain may run: texts x runs x tokens; more get 422. 0: none.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=Settings.max_connections,
    help="Open connections; more wait until one is closed.",
)
@click.option(
    "--header-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=Settings.header_seconds,
    help="For a request's headers, and for the TLS handshake; then the connection is closed.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for a request; then it gets 408. [default: no limit, unless the request names one]",
)
@click.option(
    "--body-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=Settings.body_seconds,
    help="A client may take so long to send its body, then it gets 408; and to read on in its answer.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=Settings.drain_seconds,
    help="After SIGTERM, wait so long for what runs.",
)
@click.option(
    "--hang-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=Settings.hang_seconds,
    help="A micro-batch that takes longer hangs: not ready; of several workers, this one is replaced.",
)
@click.option("--api-key", "keys", multiple=True, help="Ask for this key; may be repeated.")
@click.option(
    "--api-key-file", "key_file", type=FILE, help="Ask for one of these keys, one a line; read again when it changes."
)
@click.option("--tls-cert", type=FILE, help="Certificate (chain) in PEM: serve https; read again when it changes.")
@click.option("--tls-key", type=FILE, help="Its private key in PEM. [default: it is in --tls-cert]")
@click.option(
    "--admin-key-file",
    type=FILE,
    help="Let whoever has one of these keys, one a line, change models: /admin/models; read again when it changes.",
)
@click.option(
    "--model-dir",
    "model_dirs",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Bundles below this folder may be loaded while the server runs; may be repeated.",
)
@click.option(
    "--max-memory",
    type=click.IntRange(min=1),
    help="Megabytes of the process, beyond which no model is loaded beside the others. [default: what is free]",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="Let browsers of this origin ask; may be repeated. '*': of any.",
)
@click.option("--ui/--no-ui", default=Settings.ui, help="The playground at /ui, a page to try the models on.")
@engine_option
@precision_option
@token_budget_option
@click.option("--allow-unverified", is_flag=True, help="Open bundles that have not passed the parity gate.")
@host_code_option
@click.option(
    "--metrics-names",
    type=click.Choice(["nopad", "tei", "both"]),
    default="both",
    help="Names on /metrics: nopad_*, text-embeddings-inference's te_*, or both.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Answer /metrics on this port, too.")
@click.option(
    "--drift-window",
    type=click.IntRange(min=500),
    default=2_000,
    help="Answers of a calibrated classifier that are held against its calibration.",
)
@click.option(
    "--otlp-endpoint",
    envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
    metavar="URL",
    help="Send traces to this OpenTelemetry collector: http://localhost:4318. [default: no traces]",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Lines of the log, on stderr.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    help="The least that is logged.",
)
@click.option("--access-log", is_flag=True, help="Log a line for each POST request; never a text of it.")
@ray_options
@click.option(
    "--replicas",
    metavar="N|LEAST:MOST",
    help="With --ray, so many copies of the server, or as many between these as the tokens in them want. [default: 1]",
)
@click.option(
    "--replica-tokens",
    type=click.IntRange(min=1),
    help="With --replicas LEAST:MOST, tokens that may wait and run in a replica before another is added. "
    "[default: 4096]",
)
@common_options
@threads_option
def serve(
    bundles: tuple[str, ...],
    configured: tuple[str, ...],
    print_config: bool,
    host: str,
    port: int,
    uds: Path | None,
    grpc_port: int | None,
    engine: str,
    precision: str | None,
    token_budget: int | None,
    allow_unverified: bool,
    allow_host_code: bool,
    threads: int | None,
    ray: str | None,
    gpus: float,
    replicas: str | None,
    replica_tokens: int | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Serve BUNDLEs over HTTP (without one: the embedded sentiment model), for clients of many libraries.

    \b
    nopad serve
    nopad serve bundle/ --port 8080
    nopad serve sentiment=bundle/ search=embedder/ --api-key-file keys.txt
    nopad serve --config nopad.toml
    nopad serve bundle/ --ray auto --replicas 1:8 --threads 4

    /docs on the server lists the routes, /ui is a page to try the models on.
    A model is called by NAME, which is else its folder's.
    SIGTERM or Ctrl-C ends it in order: new requests get 503, those that run are finished.
    The command line goes before the environment, that before --config.
    """
    from nopad.runtime.server.listen import address_of, listening_on, reserve, url_of
    from nopad.runtime.server.logs import logging_to_stderr
    from nopad.runtime.server.models import bundles_by_name
    from nopad.runtime.server.run import check, serve
    from nopad.runtime.server.workers import Supervisor

    context = click.get_current_context()
    named = bundles_by_name(bundles or configured)
    if print_config:
        click.echo(as_toml(context, named))
        return
    if grpc_port is not None:
        import nopad.runtime.server.grpc.service  # noqa: F401  (whether its packages are there, before anything begins)
    job = Job(
        settings=Settings(**settings),
        bundles=named,
        options={
            "engine": named_engines(engine),
            "precision": precision,
            "token_budget": token_budget,
            "threads": threads,
            "allow_unverified": allow_unverified,
            "allow_host_code": allow_host_code,
        },
        host=host,
    )
    check(job.settings)
    console = messages(quiet)
    if ray is not None:
        if uds is not None or grpc_port is not None:
            raise UsageError(f"not with --ray, whose proxies take the connections: {'--uds' if uds else '--grpc-port'}")
        _serve_on_ray(ray, job, port, console, as_json, gpus=gpus, replicas=replicas or "1", tokens=replica_tokens)
        return
    check_ray_options(ray, gpus=gpus, replicas=replicas, replica_tokens=replica_tokens)
    given = {name for name in ("host", "port") if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    with ExitStack() as stack:
        sockets = stack.enter_context(listening_on((host, port) if given or uds is None else None, uds))
        grpc = None
        if grpc_port is not None:
            grpc = address_of(stack.enter_context(reserve(host, grpc_port)))
            job = replace(job, settings=replace(job.settings, grpc_address=grpc))
        urls = [url_of(each, job.settings.tls_cert is not None) for each in sockets]

        def ready(tasks: Mapping[str, str]) -> None:
            what = ", ".join(f"{name} ({task})" for name, task in tasks.items())
            with suppress(OSError):  # a full disk behind stdout or stderr is no reason not to serve
                if as_json:
                    emit({"url": urls[0], "grpc": grpc, "models": dict(tasks)})
                console.print(f"{' and '.join(urls)} serve{'s' * (len(urls) == 1)} {what}")
                if grpc:
                    console.print(f"{grpc} answers gRPC")

        if job.settings.workers > 1:
            with logging_to_stderr(job.settings.log_format, job.settings.log_level):
                Supervisor(job, sockets, ready=ready).run()
        else:
            serve(job, sockets, loaded=ready)


def _serve_on_ray(
    address: str,
    job: Job,
    port: int,
    console: Console,
    as_json: bool,
    *,
    gpus: float,
    replicas: str,
    tokens: int | None,
) -> None:
    from nopad.runtime.ray.serving import Scale, serve_on

    url = f"http://{job.host}:{port}"

    def ready(tasks: Mapping[str, str]) -> None:
        if as_json:
            emit({"url": url, "grpc": None, "models": dict(tasks)})
        console.print(f"{url} serves {', '.join(f'{name} ({task})' for name, task in tasks.items())}")

    scale = Scale.parse(replicas, **({"tokens": tokens} if tokens else {}))
    serve_on(address, job, port=port, scale=scale, gpus=gpus, ready=ready)
