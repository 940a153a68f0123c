"""Forecasts for GPUs that were not measured: a roofline over the graph's groups. Always labelled a forecast.

A group takes the longer of its arithmetic and its memory traffic, and every kernel a fixed time on top:

    seconds = max(arithmetic, traffic) + kernels * KERNEL_SECONDS
    arithmetic = max(flops / (rate * sustained), waves * (tile flops * processors / (rate * share) + WAVE_SECONDS))
    traffic = (min(bytes, cache / 2) / CACHE_SPEED + the rest) / (bandwidth * BANDWIDTH_SHARE)

rate, bandwidth, cache and processors are the data sheet's (`data_sheets.py`); waves are the rounds in which the
processors work through the tiles of a product (the best of `TILES`) or the blocks of 64 queries of an attention.
What was fitted to published measurements, what was held out, and how far off it was: docs/forecast.md,
`scripts/fit_forecast.py`. Knows no engine; measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nopad.bench.forecast.count_architecture import count_architecture
from nopad.bench.forecast.data_sheets import Calibration, Gpu, find_gpus
from nopad.bench.forecast.groups import WIDTHS, Group, Shape, UncountableError, total_bytes, total_flops
from nopad.bench.schema import Workload
from nopad.model.config import attention_block
from nopad.model.packing import plan_batches, round_up
from nopad.runtime.batching import GPU_TOKENS
from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import GPU_TARGETS
from nopad.runtime.errors import UsageError

if TYPE_CHECKING:
    from nopad.bench.forecast.concrete_graph import Graph

LABEL = "forecast"
# Output tiles that a product may be cut into; cuBLAS and TensorRT choose among such shapes.
TILES = ((128, 128), (128, 64), (64, 64), (64, 32))
QUERIES = 64  # in a block of fused attention
# The share of DRAM's peak that copies reach (80 to 90 %), and how many times as fast the L2 is (3 to 5 on these GPUs).
BANDWIDTH_SHARE = 0.8
CACHE_SPEED = 4.0
# The share of the tensor cores' rate that fused attention reaches at head size 64: FlashAttention-2 35 % on H100, more
# on A100.
ATTENTION_SHARE = 0.35


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Constants of all GPUs, fitted to published latencies of BERT-base (`scripts/fit_forecast.py`)."""

    product_share: float  # of the rate, that a tile of a product reaches
    wave_seconds: float  # beginning and end of each wave of tiles
    kernel_seconds: float  # launch, and latency of an empty GPU


FIT = Fit(product_share=0.83, wave_seconds=1.9e-6, kernel_seconds=5.5e-6)
# Measured time over forecast: 95 % of the held-out measurements of TensorRT lie between the two (rounded outward).
ERRORS: dict[Calibration, tuple[float, float]] = {"table": (0.85, 1.3), "single": (0.6, 1.25)}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of groups by cause: a group counts as compute or as memory, whichever takes longer."""

    compute: float
    memory: float
    launch: float

    @property
    def seconds(self) -> float:
        """The sum."""
        return self.compute + self.memory + self.launch

    @property
    def bound(self) -> str:
        """`compute`, `memory` or `launch`, the largest."""
        return max(("compute", "memory", "launch"), key=lambda name: float(getattr(self, name)))


def arithmetic_seconds(group: Group, gpu: Gpu, fit: Fit = FIT) -> float:
    """Seconds of a group's FLOPs, by waves of tiles and by what the board sustains."""
    rate = gpu.rate(group.precision)
    if group.kind == "memory" or not group.flops:
        return 0.0
    if group.kind == "attention":
        blocks = group.batch * math.ceil(group.rows / QUERIES)
        work = 4.0 * QUERIES * group.columns * group.inner
        waved = math.ceil(blocks / gpu.processors) * (work * gpu.processors / (rate * ATTENTION_SHARE))
    else:
        waved = math.inf
        for height, width in TILES:
            tiles = group.batch * math.ceil(group.rows / height) * math.ceil(group.columns / width)
            work = 2.0 * height * width * group.inner
            wave = work * gpu.processors / (rate * fit.product_share) + fit.wave_seconds
            waved = min(waved, math.ceil(tiles / gpu.processors) * wave)
    return max(waved, group.flops / (rate * gpu.sustained))


def traffic_seconds(group: Group, gpu: Gpu) -> float:
    """Seconds of a group's bytes; those that fit into half of the L2 are assumed to come from there."""
    near = min(group.bytes, gpu.cache / 2)
    return (near / CACHE_SPEED + group.bytes - near) / (gpu.bandwidth * BANDWIDTH_SHARE)


def cost_of(groups: Sequence[Group], gpu: Gpu, fit: Fit = FIT) -> Cost:
    """What `groups` cost on `gpu`, one after another."""
    compute = moving = launch = 0.0
    for group in groups:
        arithmetic, traffic = arithmetic_seconds(group, gpu, fit), traffic_seconds(group, gpu)
        if arithmetic >= traffic:
            compute += arithmetic
        else:
            moving += traffic
        launch += group.kernels * fit.kernel_seconds
    return Cost(compute=compute, memory=moving, launch=launch)


def micro_batches(workload: Workload, *, token_budget: int = GPU_TOKENS) -> list[tuple[int, ...]]:
    """Lengths of the texts of each micro-batch, as the predictor plans them.

    A workload without `lengths` is assumed to have one text of the longest length, and others of equal length.
    """
    lengths = list(workload.lengths)
    if not lengths:
        others = workload.texts - 1
        left = max(workload.tokens - workload.longest, others)
        lengths = [workload.longest, *(left * (n + 1) // others - left * n // others for n in range(others))]
    calls = [lengths[at : at + workload.batch] for at in range(0, len(lengths), max(1, workload.batch))]
    return [
        tuple(call[index] for index in batch)
        for call in calls
        for batch in plan_batches(call, token_budget=token_budget, max_sequences=len(call))
    ]


def shape_of(lengths: Sequence[int], *, padded: bool, multiple: int) -> Shape:
    """The stream of one micro-batch; with `padded`, every text is as long as its longest."""
    longest = max(lengths)
    used = longest * len(lengths) if padded else sum(lengths)
    return Shape(tokens=round_up(used, multiple), sequences=len(lengths), longest=longest)


def forecast(
    bundle: Bundle, workloads: Sequence[Workload], gpus: Sequence[str], *, precisions: Sequence[str] | None = None
) -> tuple[dict[str, Any], ...]:
    """Forecasts of each workload on each GPU, packed, and padded for comparison.

    `precisions`: fp32, fp16, bf16, int8; None for those of the bundle's artifacts for GPUs, fp16 if it has none.
    One dict a row: `gpu`, `workload`, `subject`, `precision`, `seconds` of one pass, `low` and `high` (seconds: where
    95 % of the held-out measurements lay), `tokens_per_second` (real tokens), `bound`, `flops`, `bytes`, `efficiency`
    (FLOP/s over the data sheet's rate), `counted` (graph or architecture), `label` and `assumes`.
    Tokenization and copies are not included. Raises `UsageError` for an unknown GPU, precision or kind of bundle.
    """
    chosen = find_gpus(gpus)
    rows: list[dict[str, Any]] = []
    graphs: dict[str, Graph | None] = {}
    for precision in _precisions(bundle, precisions):
        counter = _Counter(bundle, precision, graphs)
        for workload in workloads:
            batches = micro_batches(workload)
            for subject, padded in (("nopad packed", False), ("padded", True)):
                counted = [
                    counter.count(shape_of(batch, padded=padded, multiple=counter.multiple)) for batch in batches
                ]
                groups = tuple(group for batch in counted for group in batch)
                rows += [
                    _row(gpu, workload, subject, precision, groups, counter.source)
                    for gpu in chosen
                    if gpu.bf16 or precision != "bf16"
                ]
    return tuple(rows)


def _row(
    gpu: Gpu, workload: Workload, subject: str, precision: str, groups: tuple[Group, ...], counted: str
) -> dict[str, Any]:
    cost = cost_of(groups, gpu)
    low, high = ERRORS[gpu.calibration]
    flops = total_flops(groups)
    return {
        "gpu": gpu.name,
        "workload": workload.name,
        "subject": subject,
        "precision": precision,
        "seconds": cost.seconds,
        "low": cost.seconds * low,
        "high": cost.seconds * high,
        "tokens_per_second": workload.tokens / cost.seconds,
        "bound": cost.bound,
        "flops": flops,
        "bytes": total_bytes(groups),
        "efficiency": flops / cost.seconds / gpu.rate(precision),
        "counted": counted,
        "label": LABEL,
        "assumes": f"{gpu.title}; TensorRT, attention fused at every length, pointwise chains fused; GPU time alone; "
        f"efficiency from {gpu.calibrated_on}; low and high from BERT, nothing of this model was measured",
    }


class _Counter:
    """Groups of a bundle's model at any shape; each shape is counted once."""

    def __init__(self, bundle: Bundle, precision: str, graphs: dict[str, Graph | None]) -> None:
        packed = [
            artifact
            for artifact in bundle.manifest.artifacts
            if artifact.layout == "packed" and artifact.target in GPU_TARGETS
        ]
        self.architecture = bundle.manifest.architecture
        self.precision = precision
        block = attention_block(bundle.manifest.half_window or 0)
        self.multiple = max((artifact.token_multiple for artifact in packed), default=block)
        self.graph: Graph | None = None
        self.known: dict[Shape, tuple[Group, ...]] = {}
        for artifact in sorted(
            packed, key=lambda artifact: artifact.precision != precision
        ):  # the precision's own graph first
            if artifact.target == "onnx" and self.graph is None:
                if artifact.file not in graphs:
                    graphs[artifact.file] = _open_or_none(bundle.file(artifact.file))
                self.graph = graphs[artifact.file]

    @property
    def source(self) -> str:
        return "graph" if self.graph else "architecture"

    def count(self, shape: Shape) -> tuple[Group, ...]:
        if shape not in self.known:
            self.known[shape] = self._count(shape)
        return self.known[shape]

    def _count(self, shape: Shape) -> tuple[Group, ...]:
        if self.graph:
            from nopad.bench.forecast.count_graph import count_graph

            try:
                return count_graph(self.graph, shape, precision=self.precision)
            except UncountableError:
                self.graph = None
                self.known.clear()
        return count_architecture(self.architecture, shape, precision=self.precision, block=self.multiple)


def _open_or_none(path: Path) -> Graph | None:
    try:
        from nopad.bench.forecast.concrete_graph import open_graph

        return open_graph(path)
    except (UncountableError, ImportError):  # onnx comes with the extra for export
        return None


def _precisions(bundle: Bundle, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None:
        unknown = [name for name in names if name not in WIDTHS]
        if unknown:
            raise UsageError(f"no forecast in {', '.join(unknown)}; there are {', '.join(WIDTHS)}")
        return tuple(dict.fromkeys(names))
    own = [
        artifact.precision
        for artifact in bundle.manifest.artifacts
        if artifact.target in GPU_TARGETS and artifact.precision != "fp32"
    ]
    return tuple(dict.fromkeys(own)) or ("fp16",)
