"""Shared by the scripts that repeat a training with several seeds: means with intervals, Markdown tables, the CPU."""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from scipy import stats

from nopad.bench.report.intervals import CONFIDENCE, Interval
from nopad.model.cpus import cpu_at_hand


def mean_interval(values: Sequence[float]) -> Interval:
    """Low, mean, high: Student's 95 % interval of the mean, infinitely wide for a single value.

    A bootstrap of three values, as `nopad.bench` does of its rounds, would be far too narrow.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return -np.inf, mean, np.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean - half, mean, mean + half


def shown(interval: Interval, style: str) -> str:
    """As `0.812 (0.790 to 0.834)`, each number in the style of a format string."""
    low, middle, high = interval
    return f"{middle:{style}} ({low:{style}} to {high:{style}})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, all columns but the first aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def machine() -> str:
    """What figures of training depend on: CPU, threads, versions."""
    threads = f"{torch.get_num_threads()} thread(s)"
    return f"{cpu_at_hand().model}, {threads}, PyTorch {torch.__version__}, transformers {transformers.__version__}"
