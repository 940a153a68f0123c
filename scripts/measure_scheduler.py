"""What the scheduler costs: 64 callers with a text each beside the offline batch, and a lone caller's latency.

    python scripts/measure_scheduler.py sst2/train.tsv --threads 1
    python scripts/measure_scheduler.py reviews.txt --bundle BUNDLE --texts 512 --rounds 9

The last column of each line is a text. All ways take turns, in random order; a ratio is of one round. By wall time,
which other processes of the machine distort, and by CPU time, which knows no overlap of callers and engine. Prints
Markdown.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nopad.runtime import Model, load
from nopad.runtime.scheduler.events import BatchRun, Event

CALLERS = 64


def ways(model: Model, texts: list[str]) -> dict[str, Callable[[], object]]:
    """The same texts: without a scheduler, as a list, by threads, by coroutines."""
    pool = ThreadPoolExecutor(CALLERS)

    def thread(number: int) -> None:
        for text in texts[number::CALLERS]:
            model.predict([text])

    async def coroutine(number: int) -> None:
        for text in texts[number::CALLERS]:
            await model.apredict(text)

    async def coroutines() -> None:
        await asyncio.gather(*map(coroutine, range(CALLERS)))

    return {
        "offline, no scheduler": lambda: direct(model, texts),
        "offline": lambda: model.predict(texts),
        f"{CALLERS} threads": lambda: list(pool.map(thread, range(CALLERS))),
        f"{CALLERS} coroutines": lambda: asyncio.run(coroutines()),
    }


def direct(model: Model, texts: list[str]) -> None:
    inference = model._inference
    list(inference.answers(texts, inference.decoder()))


def spread(values: Sequence[float], form: str) -> str:
    ordered = sorted(values)
    return " to ".join(format(value, form) for value in (ordered[0], ordered[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bundle")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--texts", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    lines = [line.split("\t")[-1] for line in options.file.read_text("utf-8").splitlines() if line.strip()][1:]
    draw = random.Random(0)
    texts = draw.sample(lines, min(options.texts, len(lines)))
    events: list[Event] = []
    with load(options.bundle, threads=options.threads, observer=events.append) as model:
        table = ways(model, texts)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in table}
        filled: dict[str, list[int]] = {name: [] for name in table}
        for turn in range(options.rounds + 1):  # the first does not count
            for name in draw.sample(list(table), len(table)):
                events.clear()
                wall, cpu = time.perf_counter(), time.process_time()
                table[name]()
                spent = time.perf_counter() - wall, time.process_time() - cpu
                if turn:
                    runs[name].append(spent)
                    filled[name] += [event.tokens for event in events if isinstance(event, BatchRun)]
        print("| | texts/s | of offline, no scheduler | by CPU time | tokens a batch |\n|---|---:|---:|---:|---:|")
        (base, *_) = runs.values()
        for name, spent_by in runs.items():
            by = [[own[i] / other[i] for own, other in zip(base, spent_by, strict=True)] for i in (0, 1)]
            cells = [f"{statistics.median(ratios):.2f} ({spread(ratios, '.2f')})" for ratios in by]
            rate = len(texts) / statistics.median(wall for wall, _ in spent_by)
            tokens = f"{statistics.median(filled[name]):.0f}" if filled[name] else ""
            print(f"| {name} | {rate:.0f} | {' | '.join(cells)} | {tokens} |")
        alone: list[tuple[float, float]] = []
        for text in texts[: 40 * options.rounds]:
            pair: list[float] = []
            for ask in (lambda: direct(model, [text]), lambda: model.predict([text])):  # noqa: B023
                started = time.perf_counter()
                ask()
                pair.append(1e3 * (time.perf_counter() - started))
            alone.append((pair[0], pair[1]))
        without, through = ([pair[i] for pair in alone] for i in (0, 1))
        for name, values in (("without", without), ("through the scheduler", through)):
            print(f"\na lone text {name}: p50 {statistics.median(values):.3f} ms, least {min(values):.3f} ms")
        print(f"\nadded, pair by pair: p50 {statistics.median(b - a for a, b in alone):.3f} ms")


if __name__ == "__main__":
    main()
