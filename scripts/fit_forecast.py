"""Fits the constants of `nopad bench --forecast` to published latencies, and says how far off they are elsewhere.

    python scripts/fit_forecast.py            # fitted constants, fit error, held-out errors
    python scripts/fit_forecast.py --table    # forecast beside published, every entry of the T4 table, as Markdown

Fitted: BERT-base (fp16, int8) on T4, L4 and A100. A single number each gives what A10 and H100 sustain. Held out:
BERT-large on the three, and BERT-base and BERT-large on A30 and L40S, calibrated on a single number as well.
Prints; writes nothing: the constants stand in `forecast.py` and `data_sheets.py` of `bench/forecast/`. numpy only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nopad.bench.forecast.count_architecture import count_architecture
from nopad.bench.forecast.data_sheets import GPUS, Gpu
from nopad.bench.forecast.forecast import FIT, Fit, cost_of
from nopad.bench.forecast.groups import WIDTHS, Group, Shape, attention, memory, product

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published_bert.json").read_text())
SIZES = {"base": (12, 768, 3072, 12), "large": (24, 1024, 4096, 16)}  # layers, hidden, intermediate, heads
FITTED = ("t4", "l4", "a100")
# Not in nopad's list; here to test how far a single number calibrates a GPU. Data sheets, Ampere and Ada white papers.
OTHERS = {
    "a30": dataclasses.replace(
        GPUS["a100"], name="a30", fp16=165e12, int8=330e12, bandwidth=933e9, cache=24e6, processors=56
    ),
    "l40s": dataclasses.replace(
        GPUS["l4"], name="l40s", fp16=362e12, int8=733e12, bandwidth=864e9, cache=96e6, processors=142
    ),
}
RTX_4090 = dataclasses.replace(
    GPUS["l4"], name="rtx4090", fp16=165e12, int8=660e12, bandwidth=1008e9, cache=72e6, processors=128
)
MODERNBERT = {
    name: {
        "model_type": "modernbert",
        "num_layers": layers,
        "local_layers": [layer for layer in range(layers) if layer % 3],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_heads": hidden // 64,
    }
    for name, layers, hidden, intermediate in (("base", 22, 768, 1152), ("large", 28, 1024, 2624))
}
MEAN_TOKENS = 177  # of MLPerf's SQuAD samples: 54 % of 384 is padding (arXiv:2208.08124)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published latency, in seconds."""

    gpu: str
    model: str
    precision: str
    length: int
    batch: int
    seconds: float


def entries() -> Iterator[Entry]:
    """The tables of NVIDIA's demo/BERT: TensorRT, no copies, average."""
    for gpu, tables in PUBLISHED["demo_bert"]["gpus"].items():
        for name, row in tables.items():
            model, precision, length = name.split("-")
            for batch, milliseconds in zip(PUBLISHED["demo_bert"]["batches"], row, strict=True):
                yield Entry(
                    gpu=gpu,
                    model=model,
                    precision=precision,
                    length=int(length[1:]),
                    batch=batch,
                    seconds=milliseconds / 1e3,
                )


def engine_groups(model: str, precision: str, batch: int, length: int) -> tuple[Group, ...]:
    """What demo/BERT runs: padded, one product for q, k and v, int8 in attention and norms too where it is int8."""
    layers, h, i, heads = SIZES[model]
    t, width = batch * length, WIDTHS[precision]

    def linear(columns: int, inner: int) -> Group:
        return product(t, columns, inner, precision=precision, width=width)

    norm = memory(3.0 * width * t * h, precision=precision)
    core = attention(batch * heads, length, length, h // heads, precision=precision)
    layer = (linear(3 * h, h), core, linear(h, h), norm, linear(i, h), linear(h, i), norm)
    return (memory(2.0 * width * t * h, precision=precision), *layer * layers)


def ratio(entry: Entry, gpu: Gpu, fit: Fit = FIT) -> float:
    """Measured over forecast."""
    groups = engine_groups(entry.model, entry.precision, entry.batch, entry.length)
    return entry.seconds / cost_of(groups, gpu, fit).seconds


def sustained_for(gpu: Gpu, fit: Fit, groups: tuple[Group, ...], seconds: float) -> Gpu:
    """`gpu` with the sustained share at which its forecast of `groups` is `seconds`; 1 where the forecast is longer."""
    low, high = 0.02, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        slower = cost_of(groups, dataclasses.replace(gpu, sustained=middle), fit).seconds > seconds
        low, high = (middle, high) if slower else (low, middle)
    return dataclasses.replace(gpu, sustained=round(high, 3))


def mlperf_groups(precision: str, samples: int = 1024) -> tuple[Group, ...]:
    """BERT-large on MLPerf's samples, packed."""
    return engine_groups("large", precision, samples, MEAN_TOKENS)


def mlperf_seconds(name: str, samples: int = 1024) -> float:
    """Seconds that a published Offline throughput needs for `samples` samples."""
    return float(samples / PUBLISHED["mlperf"]["samples_per_second"][name])


def modernbert_groups(model: str, length: int) -> tuple[Group, ...]:
    """ModernBERT on 16,384 tokens in texts of one length, without gathers."""
    shape = Shape(tokens=16_384, sequences=16_384 // length, longest=length)
    return count_architecture(MODERNBERT[model], shape, precision="fp16", gather=False)


def minimum(loss: Callable[[Any], float], start: list[float], steps: int) -> Any:
    """The minimizer of `loss`, by the simplex method of Nelder and Mead."""
    points = [np.array(start), *(np.array(start) + 0.2 * axis for axis in np.eye(len(start)))]
    values = [loss(point) for point in points]
    for _ in range(steps):
        order = np.argsort(values)
        points, values = [points[k] for k in order], [values[k] for k in order]
        centre = np.mean(points[:-1], axis=0)
        mirrored = 2 * centre - points[-1]
        value = loss(mirrored)
        if value < values[0]:
            further = 3 * centre - 2 * points[-1]
            beyond = loss(further)
            points[-1], values[-1] = (further, beyond) if beyond < value else (mirrored, value)
        elif value < values[-2]:
            points[-1], values[-1] = mirrored, value
        else:
            nearer = (centre + points[-1]) / 2
            inside = loss(nearer)
            if inside < values[-1]:
                points[-1], values[-1] = nearer, inside
            else:
                points = [points[0], *((points[0] + point) / 2 for point in points[1:])]
                values = [values[0], *map(loss, points[1:])]
    return points[int(np.argmin(values))]


def fit_constants(steps: int = 400) -> tuple[Fit, dict[str, Gpu]]:
    """Constants and GPUs with the least squared log ratio over BERT-base."""
    chosen = [entry for entry in entries() if entry.gpu in FITTED and entry.model == "base"]
    work = [engine_groups(entry.model, entry.precision, entry.batch, entry.length) for entry in chosen]

    def constants(point: Any) -> tuple[Fit, dict[str, Gpu]]:
        share, wave, kernel, t4, l4 = map(float, np.exp(point))
        fit = Fit(product_share=share, wave_seconds=wave, kernel_seconds=kernel)
        shares = {"t4": t4, "l4": l4, "a100": 1.0}  # a free share of A100 ended at 1
        return fit, {name: dataclasses.replace(GPUS[name], sustained=shares[name]) for name in FITTED}

    def loss(point: Any) -> float:
        fit, gpus = constants(point)
        if fit.product_share > 1 or max(gpu.sustained for gpu in gpus.values()) > 1:
            return math.inf
        return sum(
            math.log(entry.seconds / cost_of(groups, gpus[entry.gpu], fit).seconds) ** 2
            for entry, groups in zip(chosen, work, strict=True)
        )

    start = np.log([0.8, 1.9e-6, 5.5e-6, 0.33, 0.48]).tolist()
    return constants(minimum(loss, start, steps))


def summary(ratios: list[float]) -> str:
    """Errors of forecasts in words."""
    logs = np.abs(np.log(ratios))
    low, high = np.quantile(ratios, (0.025, 0.975))
    median, largest, rms = map(np.expm1, (np.median(logs), logs.max(), np.sqrt(np.mean(logs**2))))
    mean = np.exp(np.mean(np.log(ratios)))
    return (
        f"{len(ratios):4} entries, median error {median:.0%}, rms {rms:.0%}, largest {largest:.0%}; "
        f"measured/forecast {low:.2f} to {high:.2f} (95 %), mean {mean:.2f}"
    )


def singles(fit: Fit) -> dict[str, Gpu]:
    """A30 and L40S with the share that their largest fp16 entry gives; A10 and H100 with MLPerf's."""
    fitted = {}
    for name, gpu in OTHERS.items():
        (entry,) = [e for e in entries() if e.gpu == name and calibrates(e)]
        groups = engine_groups(entry.model, entry.precision, entry.batch, entry.length)
        fitted[name] = sustained_for(gpu, fit, groups, entry.seconds)
    fitted["a10"] = sustained_for(GPUS["a10"], fit, mlperf_groups("fp16"), mlperf_seconds("a10 fp16"))
    fitted["h100"] = sustained_for(GPUS["h100"], fit, mlperf_groups("int8"), mlperf_seconds("h100 int8"))
    return fitted


def calibrates(entry: Entry) -> bool:
    """Whether this entry is the single number that calibrates A30 and L40S."""
    return (entry.model, entry.precision, entry.length, entry.batch) == ("large", "fp16", 384, 128)


def report(fit: Fit, gpus: dict[str, Gpu]) -> None:
    """Print constants and errors."""
    print(fit, {name: round(gpu.sustained, 3) for name, gpu in gpus.items()})
    published = list(entries())
    for title, keep in (("fitted  ", "base"), ("held out", "large")):
        every = [e for e in published if e.gpu in FITTED and e.model == keep]
        print(f"{title} BERT-{keep} on t4, l4, a100:", summary([ratio(e, gpus[e.gpu], fit) for e in every]))
        for name in FITTED:
            for precision in ("fp16", "int8"):
                ratios = [ratio(e, gpus[name], fit) for e in every if (e.gpu, e.precision) == (name, precision)]
                print(f"  {name:5} {precision}", summary(ratios))
    single = singles(fit)
    print("sustained from one number:", {name: gpu.sustained for name, gpu in single.items()})
    every = [e for e in published if e.gpu in OTHERS and not calibrates(e)]
    print("held out A30, L40S:", summary([ratio(e, single[e.gpu], fit) for e in every]))
    for name in OTHERS:
        for precision in ("fp16", "int8"):
            ratios = [ratio(e, single[name], fit) for e in every if (e.gpu, e.precision) == (name, precision)]
            print(f"  {name:5} {precision}", summary(ratios))
    known_gpus = {**gpus, **single, "h200": dataclasses.replace(GPUS["h200"], sustained=single["h100"].sustained)}
    print("MLPerf, seconds measured/forecast (fp8 counted at int8's rate):")
    for name in PUBLISHED["mlperf"]["samples_per_second"]:
        gpu, precision = name.split()
        groups = mlperf_groups("int8" if precision == "fp8" else precision)
        print(f"  {name:10} {mlperf_seconds(name) / cost_of(groups, known_gpus[gpu], fit).seconds:.2f}")
    rows = PUBLISHED["modernbert"]["rows"]
    print("ModernBERT on RTX 4090, PyTorch, measured/forecast, share from base 512:")
    gpu = sustained_for(RTX_4090, fit, modernbert_groups("base", 512), 32 * 512 / 1e3 / rows["base 512"])
    for name, thousands in rows.items():
        model, length = name.split()
        groups = modernbert_groups(model, int(length))
        seconds = max(16_384, int(length)) / 1e3 / thousands
        print(f"  {name:12} {seconds / cost_of(groups, gpu, fit).seconds:.2f} (share {gpu.sustained})")
    print("FasterTransformer, half of each batch real, measured/forecast, padded and packed:")
    for name, row in PUBLISHED["faster_transformer"]["rows"].items():
        gpu, precision, batch, length = name.split()
        b, s = int(batch[1:]), int(length[1:])
        padded, packed = (
            cost_of(engine_groups("base", precision, b, n), known_gpus[gpu], fit).seconds for n in (s, s // 2)
        )
        print(f"  {name:18} {row[0] / 1e3 / padded:.2f} {row[1] / 1e3 / packed:.2f}")


def table(fit: Fit) -> None:
    """Print the T4 table."""
    print("| model | precision | tokens | " + " | ".join(f"b{b}" for b in PUBLISHED["demo_bert"]["batches"]) + " |")
    print("|---" * 13 + "|")
    published = list(entries())
    for model in SIZES:
        for precision in ("fp16", "int8"):
            for length in (128, 384):
                row = [
                    e for e in published if (e.gpu, e.model, e.precision, e.length) == ("t4", model, precision, length)
                ]
                cells = [f"{e.seconds * 1e3:.4g} ({e.seconds / ratio(e, GPUS['t4'], fit) * 1e3:.4g})" for e in row]
                print(f"| {model} | {precision} | {length} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="the T4 table with the committed constants")
    if parser.parse_args().table:
        table(FIT)
    else:
        fit, gpus = fit_constants()
        report(fit, gpus)


if __name__ == "__main__":
    main()
