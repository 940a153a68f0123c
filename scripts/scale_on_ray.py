"""Texts per second of `nopad predict --ray` with one replica and with more; prints the table of docs/ray.md.

    python scripts/scale_on_ray.py --input sentences.jsonl [--texts 40000] [--minutes 5.5] [--replicas 1,2]

One cluster of this machine serves all runs. A round is a run with each number of replicas, every other round in
reverse; rounds go on for `--minutes`. Of a run the part after its first third counts: neither Ray, nor the command, nor
the replicas start within it. All outputs must be the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nopad.bench.report.intervals import Interval, median_interval
from nopad.model.cpus import cpu_at_hand, usable_cores
from nopad.runtime.ray.cluster import LOCAL, cluster

STARTING = 1 / 3  # of the texts: answered while replicas still begin
FEWEST = 4  # times at which answers came
LOOK_SECONDS = 0.01


def rate(command: Sequence[str], output: Path) -> float:
    """Texts per second of one run, after its start."""
    partial = output.with_name(output.name + ".partial")
    process = subprocess.Popen([*command, "--output", str(output)])
    grown: list[tuple[float, int]] = []  # when the answers had become so many bytes
    while process.poll() is None:
        size = partial.stat().st_size if partial.exists() else 0
        if size > (grown[-1][1] if grown else 0):
            grown.append((time.monotonic(), size))
        time.sleep(LOOK_SECONDS)
    if process.returncode not in (0, 3):  # 3: a row of the input is broken
        sys.exit(process.returncode)
    answers = output.read_bytes()
    counted = [(when, answers.count(b"\n", 0, size)) for when, size in grown]
    steady = [(when, lines) for when, lines in counted if lines >= STARTING * answers.count(b"\n")]
    if len(steady) < FEWEST:
        sys.exit(f"answers came {len(steady)} times after the start, which says nothing: give more --texts")
    # A line through all of them: replicas answer windows at the same time, so that the ends alone hang on chance.
    slope, _ = np.polyfit([when - steady[0][0] for when, _ in steady], [lines for _, lines in steady], 1)
    return float(slope)


def measured(
    base: Sequence[str], replicas: Sequence[int], minutes: float, folder: Path
) -> tuple[dict[int, list[float]], bool]:
    """The rates of each number of replicas, by round, and whether all outputs are the same."""
    rates: dict[int, list[float]] = {count: [] for count in replicas}
    outputs: set[bytes] = set()
    began = time.monotonic()
    for number in itertools.count(1):
        for count in replicas if number % 2 else reversed(replicas):
            output = folder / f"{number}-{count}.jsonl"
            rates[count].append(rate([*base, "--replicas", str(count)], output))
            outputs.add(output.read_bytes())
            print(f"round {number}, {count} replicas: {rates[count][-1]:.1f} texts/s", file=sys.stderr, flush=True)
        passed = time.monotonic() - began
        if passed + passed / number > 60 * minutes:
            break
    return rates, len(outputs) == 1


def table(rates: dict[int, list[float]], threads: int) -> str:
    """Medians over rounds; ratios within a round, which has one state of the machine."""
    first = next(iter(rates.values()))
    lines = [f"| replicas, {threads} thread each | texts/s | times the first |", "|---:|---:|---:|"]
    for count, mine in rates.items():
        ratio = median_interval([one / other for one, other in zip(mine, first, strict=True)])
        lines.append(f"| {count} | {_shown(median_interval(mine), '.1f')} | {_shown(ratio, '.2f')} |")
    return "\n".join(lines)


def _shown(interval: Interval, style: str) -> str:
    low, middle, high = interval
    return (
        f"{middle:{style}}"
        if low == high or not math.isfinite(high)
        else f"{middle:{style}} ({low:{style}} to {high:{style}})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="a file with a text a line, or a JSON object")
    parser.add_argument("--texts", type=int, default=40_000, help="of the file's beginning (%(default)s)")
    parser.add_argument("--bundle", help="default: the embedded one")
    parser.add_argument("--replicas", default="1,2", help="their numbers (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of a replica (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5.5, help="of all rounds; one at least (%(default)s)")
    given = parser.parse_args()
    replicas = [int(count) for count in given.replicas.split(",")]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, cluster(LOCAL):
        import ray

        folder = Path(name)
        texts = folder / f"texts{given.input.suffix}"
        with given.input.open("rb") as whole, texts.open("wb") as part:
            part.writelines(itertools.islice(whole, given.texts))
        base = [sys.executable, "-m", "nopad.runtime.cli", "predict", *([given.bundle] if given.bundle else [])]
        base += ["--quiet", "--threads", str(given.threads), "--input", str(texts)]
        base += ["--ray", ray.get_runtime_context().gcs_address]
        rates, same = measured(base, replicas, given.minutes, folder)
    print(table(rates, given.threads))
    rounds = len(next(iter(rates.values())))
    print(
        f"\nMedians of {rounds} rounds with their 95 % intervals, the ratio within a round; {given.texts} texts of "
        f"{given.input.name}, {usable_cores()} cores of {cpu_at_hand()}, Ray {ray.__version__}, "
        f"Python {platform.python_version()}, load {load:.1f} before. "
        f"Outputs of all runs: {'the same bytes' if same else 'NOT THE SAME'}."
    )
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
