"""nopad's server beside others: the same model, machine, threads, texts and client, in turns, in one run.

    python scripts/compare_servers.py CHECKPOINT BUNDLE --work OUT --infinity infinity-env/bin/infinity_emb \\
        --peers peers-env/bin/python --data sst2/train.tsv --data imdb/test.jsonl -- --rounds 3

docs/load.md says what the two environments hold. All servers run at once on the same cores, with the same number of
threads and at a lower priority than the client; whoever is not asked idles. Each server's answers are checked against
the bundle's offline ones, before and while times are taken. Options after `--` go to `nopad bench --serve`.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
READY_SECONDS = 300
# Texts in one forward, padded to the longest: what cost the libraries least CPU time on phrases mixed with reviews, in
# bf16. On a CPU more rows are only more padding: for ModernBERT 58 ms a text at 1 row, 118 at 8; for MiniLM 27 ms at 1,
# 19 at 4, 26 at 8.
ROWS = {"embeddings": 4, "text-classification": 1}
CHECK = ("--concurrency", "2", "--duration", "4", "--rounds", "1", "--limit", "20")  # before any time is taken
NICE = 10  # of the servers: the client is never kept waiting by them


@dataclass(frozen=True, kw_only=True)
class Server:
    """How a server is started, and how it is asked."""

    command: list[str]
    path: str = ""  # appended to its URL
    protocol: str | None = None
    template: str | None = None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def servers(options: argparse.Namespace, task: str) -> dict[str, tuple[Server, int]]:
    """Every server that takes part, and its port."""
    embed, threads = task == "embeddings", str(options.threads)
    ports = {name: free_port() for name in (*options.nopad, "infinity", "fastapi", "litserve")}
    own = {
        name: Server(
            command=[sys.executable, "-m", "nopad.runtime.cli", "serve", str(options.bundle), "--threads", threads,
                     "--port", str(ports[name]), "--precision", precision],
            protocol="openai" if embed else "tei-predict",
        )
        for name, precision in (("nopad", options.precision), ("nopad-fp32", "fp32")) if name in ports
    }  # fmt: skip
    rows = str(options.rows or ROWS[task])
    service = [str(options.checkpoint), "--threads", threads, "--dtype", options.dtype, "--rows", rows]
    service += ["--embed"] if embed else []
    others: dict[str, Server] = {}
    if options.infinity is not None:
        others["infinity"] = Server(
            command=[
                str(options.infinity), "v2", "--model-id", str(options.checkpoint.resolve()), "--device", "cpu",
                "--engine", options.infinity_engine, "--dtype", options.infinity_dtype, "--no-bettertransformer",
                "--batch-size", rows,
                "--compile" if options.infinity_compile else "--no-compile", "--log-level", "error",
                "--host", "127.0.0.1", "--port", str(ports["infinity"]),
            ],
            protocol="openai" if embed else "infinity-classify",
        )  # fmt: skip
    if options.peers is not None:
        for name in ("fastapi", "litserve"):
            script = str(HERE / "serve_peers" / f"{name}_service.py")
            others[name] = Server(
                command=[str(options.peers), script, *service, "--port", str(ports[name])],
                path="/predict" if name == "litserve" else "/",
                template='{"text": TEXT}',
            )
    chosen = {**own, **others}
    if options.only:
        chosen = {name: server for name, server in chosen.items() if name in options.only.split(",")}
    return {name: (server, ports[name]) for name, server in chosen.items()}


@contextlib.contextmanager
def running(found: dict[str, tuple[Server, int]], options: argparse.Namespace) -> Iterator[None]:
    """All servers, ready; ended afterwards."""
    numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(options.threads))
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    environment = {**os.environ, **numbers, **offline, "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("NOPAD_DATA", None)
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, (server, port) in found.items():
            log = (options.work / f"{name}.log").open("wb")
            command = ["nice", "-n", str(NICE), "taskset", "-c", options.cores, *server.command]
            print(f"{name}: {shlex.join(command)}", file=sys.stderr)
            started[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            wait_until_ready(name, port, started[name], options.work / f"{name}.log")
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # to whole groups: LitServe's workers outlive its server
            for process in started.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in started.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def wait_until_ready(name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        for path in ("/health", "/openapi.json"):
            url = f"http://127.0.0.1:{port}{path}"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.3)
    raise SystemExit(f"{name} did not come up:\n{log.read_text(errors='replace')[-3000:]}")


def bench(
    found: dict[str, tuple[Server, int]], options: argparse.Namespace, output: Path, *more: str
) -> dict[str, object]:
    """`nopad bench --serve` on all of them; its report."""
    command = [sys.executable, "-m", "nopad.runtime.cli", "bench", "--check", str(options.bundle),
               "--tolerance", str(options.tolerance), "--output", str(output), *more]  # fmt: skip
    command += [] if "--limit" in more else ["--limit", str(options.limit)]
    for path in options.data:
        command += ["--data", str(path)]
    for name, (server, port) in found.items():
        command += ["--serve", f"{name}=http://127.0.0.1:{port}{server.path}"]
        command += ["--protocol", f"{name}={server.protocol}"] if server.protocol else []
        command += ["--template", f"{name}={server.template}"] if server.template else []
    subprocess.run(["taskset", "-c", options.cores, *command], check=True)
    report: dict[str, Any] = json.loads((output / "load.json").read_text("utf-8"))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the report and the servers' logs")
    parser.add_argument("--infinity", type=Path, help="the command infinity_emb of its environment")
    parser.add_argument("--peers", type=Path, help="the python of the environment with litserve, fastapi, transformers")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--limit", type=int, default=200, help="texts of each file")
    parser.add_argument("--target-p99-ms", type=float, default=500.0)
    parser.add_argument("--tolerance", type=float, default=0.05, help="of a score, for libraries that compute in bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cores", default=f"0-{(os.cpu_count() or 1) - 1}")
    parser.add_argument("--nopad", nargs="*", default=["nopad", "nopad-fp32"])
    parser.add_argument("--precision", default="auto", help="of the server nopad")
    parser.add_argument("--dtype", default="bfloat16", help="of FastAPI's and LitServe's model")
    parser.add_argument(
        "--rows", type=int, help="texts in a forward of the others [default: what was fastest for them]"
    )
    parser.add_argument("--infinity-engine", default="torch")
    parser.add_argument("--infinity-dtype", default="bfloat16")
    parser.add_argument("--infinity-compile", action="store_true")
    parser.add_argument("--only", help="names, comma-separated")
    arguments, extra = sys.argv[1:], []
    if "--" in arguments:
        extra = arguments[arguments.index("--") + 1 :]
        arguments = arguments[: arguments.index("--")]
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are ended in any case
    options.work.mkdir(parents=True, exist_ok=True)
    task = json.loads((options.bundle / "manifest.json").read_text("utf-8"))["task"]
    found = servers(options, task)
    with running(found, options):
        first = bench(found, options, options.work / "check", *CHECK)
        wrong = {step["endpoint"]: step["errors"] for step in first["steps"] if step["errors"]}
        if wrong:
            raise SystemExit(f"answers that are not the bundle's, or none at all: {wrong}")
        bench(found, options, options.work / "load", "--target-p99-ms", str(options.target_p99_ms), *extra)


if __name__ == "__main__":
    main()
