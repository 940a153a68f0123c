"""Texts per second of `nopad predict --ray` with one and with more replicas, once the first answers are there.

    python scripts/scale_on_ray.py --input reviews.jsonl [--bundle bundle/] [--ray local] [--replicas 1,2] [--threads 1]

The start of Ray and of the replicas is not counted: the clock runs from the first window of answers to the last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def rate(command: list[str], output: Path) -> float:
    """Texts per second from the first answers of a run to its end."""
    partial = output.with_name(output.name + ".partial")
    process = subprocess.Popen([*command, "--output", str(output)])
    first = began = last = ended = 0.0
    while process.poll() is None:
        size = partial.stat().st_size if partial.exists() else 0
        if size > last:
            ended = time.monotonic()
            if not last:
                first, began = partial.read_bytes().count(b"\n"), ended
            last = size
        time.sleep(0.02)
    if process.returncode not in (0, 3):
        sys.exit(process.returncode)
    lines = output.read_bytes().count(b"\n")
    if lines == first:
        sys.exit(f"all {lines} texts were answered at once: give more")
    return (lines - first) / (ended - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True)
    parser.add_argument("--bundle")
    parser.add_argument("--ray", default="local")
    parser.add_argument("--replicas", default="1,2")
    parser.add_argument("--threads", default="1")
    given = parser.parse_args()
    base = [sys.executable, "-m", "nopad.runtime.cli", "predict", *([given.bundle] if given.bundle else [])]
    base += ["--quiet", "--ray", given.ray, "--threads", given.threads, "--input", given.input]
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in given.replicas.split(","):
            rates[count] = rate([*base, "--replicas", count], Path(folder) / f"{count}.jsonl")
            print(json.dumps({"replicas": int(count), "texts_per_second": round(rates[count], 1)}), flush=True)
        outputs = {(Path(folder) / f"{count}.jsonl").read_bytes() for count in rates}
    first = next(iter(rates.values()))
    print(
        json.dumps({"ratio": {count: round(one / first, 2) for count, one in rates.items()}, "same": len(outputs) == 1})
    )


if __name__ == "__main__":
    main()
