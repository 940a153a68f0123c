"""A server under fire: overload, fuzzed requests, and what that does to its memory. Prints the table in Markdown.

    python scripts/fire.py --minutes 10 --requests 50000 --json fire.json
    python scripts/fire.py --only fuzz --requests 5000
    python scripts/fire.py --only overload --minutes 1

Loopback only, everything seeded. Texts: SST-2 and IMDb under $NOPAD_DATA. Needs the extras serve, cpu, export and test
(the fuzzed models are small random checkpoints of every task). Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

PARTS = ("overload", "memory", "fuzz")
TASKS = ("modernbert-single-cls", "modernbert-embed-cls", "modernbert-rerank", "modernbert-token", "modernbert-mlm")
CHUNK = 2_000  # requests of one process at a time
OPENAPI_SHARE = 0.12  # of the fuzzed requests; schemathesis takes ten times as long to make one
RAW_SHARE = 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of overload")
    parser.add_argument("--requests", type=int, default=50_000, help="that are fuzzed")
    parser.add_argument("--times", type=float, default=2.0, help="the capacity, of overload")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that fuzz")
    parser.add_argument("--floods", type=int, default=20_000, help="requests of each kind whose memory is measured")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--bundle", help="a classifier for the overload; else the embedded one")
    parser.add_argument("--data", type=Path, default=os.environ.get("NOPAD_DATA"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    runs = {"overload": run_overload, "memory": run_memory, "fuzz": run_fuzz}
    for part in options.only or PARTS:
        started = time.monotonic()
        found[part], wrong = runs[part](options)
        found[part]["minutes in all"] = (time.monotonic() - started) / 60
        faults += [f"{part}: {each}" for each in wrong]
        print(f"\n## {part}\n\n| | |\n|---|---:|")
        for name, value in found[part].items():
            print(f"| {name} | {f'{value:.3f}' if isinstance(value, float) else value} |", flush=True)
    print("\n" + ("\n".join(f"- WRONG: {each}" for each in faults) or "Nothing was wrong."))
    if options.json:
        options.json.write_text(json.dumps({"found": found, "faults": faults}, indent=1) + "\n")
    sys.exit(1 if faults else 0)


@contextmanager
def served(options: argparse.Namespace, *more: str) -> Iterator[tuple[Any, int]]:
    """The server, and its port."""
    import socket

    from fire_overload import serving

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bundle = [options.bundle] if options.bundle else []
    with serving(port, *bundle, "--threads", "1", *more) as process:
        yield process, port


def run_overload(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from fire_overload import DEADLINES, capacity, expected_scores, mixed_texts, overload

    if options.data is None:
        sys.exit("set NOPAD_DATA, or give --data, to the folder with sst2/train.tsv and imdb/test.jsonl")
    texts = mixed_texts(Path(options.data), 3_000, options.seed)
    expected = expected_scores(texts, options.bundle)
    with served(options) as (process, port):
        asyncio.run(capacity(port, texts, 3.0))  # a first round to warm up
        most = asyncio.run(capacity(port, texts, 10.0))
    # As many requests as are answered within half the shortest deadline: what docs/http.md tells its readers to set.
    places = max(8, int(most * min(DEADLINES) / 2))
    with served(options, "--max-concurrent", str(places)) as (process, port):
        asyncio.run(capacity(port, texts, 3.0))
        offer = overload(
            process, port, texts, expected, rate=options.times * most, seconds=60 * options.minutes, seed=options.seed
        )
        found = asyncio.run(offer)
    found.capacity, found.places = most, places
    return found.row(), found.faults()


def run_memory(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Clients that leave, requests that are refused, huge bodies: what stays of them."""
    from fire_memory import KINDS, flood
    from fire_overload import memory

    found: dict[str, Any] = {}
    faults = []
    for kind, (share, more) in KINDS.items():
        count = int(options.floods * share)
        with served(options, *more) as (process, port):
            asyncio.run(flood(port, kind, count, options.seed))  # until the allocator has what it needs
            before = memory(process.pid)
            asyncio.run(flood(port, kind, count, options.seed + 1))
            after = memory(process.pid)
        found[f"{kind}, {count} requests: MiB before"], found[f"{kind}: MiB after"] = before, after
        if after >= 1.05 * before:
            faults.append(f"{kind}: memory grew from {before:.1f} to {after:.1f} MiB")
    return found, faults


def run_fuzz(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Fuzzed requests to servers of every task, in several processes."""
    from fire_fuzz import Outcome

    counts = {
        "openapi": int(options.requests * OPENAPI_SHARE),
        "raw": int(options.requests * RAW_SHARE),
    }
    counts["mutated"] = options.requests - sum(counts.values())
    total, sent = Outcome(), dict.fromkeys(counts, 0)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"default": None, **{name: make_bundle(name, Path(folder)) for name in TASKS}}
        jobs = []
        for kind, count in counts.items():
            for place, start in enumerate(range(0, count, CHUNK)):
                seed = 1_000_000 * options.seed + 1_000 * place + list(counts).index(kind)
                jobs.append((kind, min(CHUNK, count - start), seed, bundles, list(bundles)[place % len(bundles)]))
        with ProcessPoolExecutor(options.processes, max_tasks_per_child=1) as pool:
            for (kind, *_), outcome in zip(jobs, pool.map(fuzz_some, jobs), strict=True):
                total.add(outcome)
                sent[kind] += sum(outcome.statuses.values())
    rows = {f"requests, {kind}": count for kind, count in sent.items()}
    rows |= {
        f"answered {status}" if status else "closed unanswered (raw bytes)": count
        for status, count in sorted(total.statuses.items())
    }
    missing = options.requests - sum(sent.values())
    return {**rows, "wrong": total.wrong}, total.examples + ([f"{missing} not sent"] if missing > 0 else [])


def make_bundle(name: str, folder: Path) -> Path:
    """A small random checkpoint's bundle, which no gate has judged: that would take longer than the fuzzing."""
    from checkpoints import make_checkpoint
    from reference_models import CASES

    from nopad.export.bundle import write_bundle
    from nopad.model.checkpoint.load import load_checkpoint

    make_checkpoint(name, folder / f"checkpoint-{name}")
    checkpoint = load_checkpoint(folder / f"checkpoint-{name}", **CASES[name].load)
    (folder / name).mkdir()
    write_bundle(checkpoint, folder / name, cpu=("fp32",))
    return folder / name


def fuzz_some(job: tuple[str, int, int, dict[str, Path | None], str]) -> Any:
    """A part of the requests, to a server whose first model is the one named last; then it must answer as before."""
    from fire_fuzz import Outcome, ask, from_openapi, fuzz, fuzz_raw, mutated
    from fire_requests import valid_requests
    from running_server import Running

    from nopad.runtime.server.app import create_app
    from nopad.runtime.server.calls import Serving
    from nopad.runtime.server.models import Models
    from nopad.runtime.server.settings import Settings

    kind, count, seed, bundles, first = job
    if kind == "raw":
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a line for each that is no HTTP
        server = Running({"default": None}).start()
        try:
            return fuzz_raw(server.port, seed, count)
        finally:
            server.stop()
    names = [first, *(name for name in bundles if name != first)]
    models = Models()
    serving = Serving(Settings(), models)
    serving.open({name: bundles[name] for name in names}, threads=1, allow_unverified=True)
    app = create_app(serving)
    seeds = [sent for sent in valid_requests(names[:1]) if sent.method == "POST"]

    async def answers() -> list[Any]:
        return [got and (got.status, strip(got.body)) for got in [await ask(app, sent) for sent in seeds]]

    try:
        before = asyncio.run(answers())
        sent = list(from_openapi(app, seed, count)) if kind == "openapi" else []
        sent += mutated(seed, count - len(sent), names)  # some routes have no wrong requests
        outcome: Outcome = asyncio.run(fuzz(app, sent))
        for request, was, now in zip(seeds, before, asyncio.run(answers()), strict=True):
            if now != was:
                outcome.wrong += 1
                outcome.examples.append(f"after {kind} {seed}, {request.path} answers {now}, before {was}")
    finally:
        models.close()
    return outcome


def strip(body: bytes) -> bytes:
    """An answer without its times and ids."""
    import re

    return re.sub(rb'"(id|created)":("[^"]*"|\d+)', b"", body)


if __name__ == "__main__":
    main()
