"""`nopad serve`: bundles behind an HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nopad.runtime.console import common_options, emit, messages, threads_option
from nopad.runtime.engines.base import ENGINES


@click.command()
@click.argument("bundles", nargs=-1, metavar="[[NAME=]BUNDLE]...")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every network of the machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0 takes a free one.")
@click.option("--max-batch", type=click.IntRange(min=1), default=32, help="Texts of one request, at most.")
@click.option("--max-body", type=click.IntRange(min=1), default=2_000_000, help="Bytes of one request, at most.")
@click.option("--max-queue", type=click.IntRange(min=1), default=8_192, help="Texts that may wait; more get 429.")
@click.option(
    "--max-concurrent", type=click.IntRange(min=1), default=512, help="Requests answered at once; more get 429."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for a request; then it gets 408. [default: no limit, unless the request names one]",
)
@click.option(
    "--drain-seconds", type=click.FloatRange(min=0), default=30.0, help="After SIGTERM, wait so long for what runs."
)
@click.option("--api-key", "api_keys", multiple=True, help="Ask for this key; may be repeated.")
@click.option(
    "--api-key-file", type=click.Path(path_type=Path, dir_okay=False), help="Ask for one of these keys, one a line."
)
@click.option(
    "--admin-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Let whoever has one of these keys, one a line, change models: /admin/models. [default: nobody]",
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
@click.option(
    "--engine",
    default="auto",
    help=f"Engine to run on, or several in order, comma-separated: auto, {', '.join(ENGINES)}.",
)
@click.option(
    "--precision",
    help="Only files of this precision; auto: the fastest that is verified. [default: on a CPU the most exact]",
)
@click.option(
    "--token-budget", type=click.IntRange(min=1), help="Tokens of one micro-batch. [default: what suits the engine]"
)
@click.option("--allow-unverified", is_flag=True, help="Open bundles that have not passed the parity gate.")
@click.option(
    "--allow-host-code", is_flag=True, help="Run the native code in a version-compatible engine; only if you trust it."
)
@common_options
@threads_option
def serve(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    engine: str,
    precision: str | None,
    token_budget: int | None,
    allow_unverified: bool,
    allow_host_code: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **limits: Any,
) -> None:
    """Serve BUNDLEs over HTTP (without one: the embedded sentiment model), for clients of many libraries.

    \b
    nopad serve
    nopad serve bundle/ --port 8080
    nopad serve sentiment=bundle/ search=embedder/ --api-key-file keys.txt

    /docs on the server lists the routes. A model is called by NAME, which is else its folder's.
    SIGTERM or Ctrl-C ends it in order: new requests get 503, those that run are finished.
    """
    from nopad.runtime.server.calls import Serving
    from nopad.runtime.server.keys import read_keys
    from nopad.runtime.server.models import Models, bundles_by_name
    from nopad.runtime.server.run import Server, bind
    from nopad.runtime.server.settings import Settings

    named = bundles_by_name(bundles)
    keys = (*api_keys, *(read_keys(api_key_file) if api_key_file else ()))
    models = Models()
    serving = Serving(Settings(keys=keys, **limits), models)
    console = messages(quiet)
    with bind(host, port) as listening:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

        def load() -> None:
            serving.open(
                named,
                engine=engine if "," not in engine else [name.strip() for name in engine.split(",")],
                precision=precision,
                token_budget=token_budget,
                threads=threads,
                allow_unverified=allow_unverified,
                allow_host_code=allow_host_code,
            )
            if as_json:
                emit({"url": url, "models": {served.name: served.model.task for served in models}})
            console.print(f"{url} serves {', '.join(f'{served.name} ({served.model.task})' for served in models)}")

        try:
            Server(serving, load).run_until_stopped(listening)
        finally:
            models.close()
