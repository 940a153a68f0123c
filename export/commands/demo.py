"""`nopad demo`: the whole way on the embedded checkpoint, with figures beside transformers."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nopad.export.parity.samples import SAMPLES
from nopad.runtime.console import common_options, emit, messages, status, threads_option

REVIEWS = (
    "A dull hour of my life that I want back.",
    "A tender, sharply written film that trusts its audience. I have already bought tickets to see it again.",
    "The first act promises a thriller, the second forgets about it, and the third apologises with an explosion.",
    "I came for the songs and stayed for the silences between them: a quiet, perfect little movie.",
    "Two stars, both for the dog.",
)
ROUNDS = 5


@click.command()
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Keep the bundle here. [default: not kept]")
@common_options
@threads_option
def demo(output: Path | None, as_json: bool, quiet: bool, threads: int | None) -> int:
    """Export the embedded checkpoint, prove its parity, predict, and compare the speed with transformers.

    Needs no network. Speed: real tokens per second on the same texts, same threads, interleaved, medians of 5 rounds;
    transformers as most use it, in padded batches with SDPA.
    """
    import torch

    from nopad.export.bundle import export_checkpoint
    from nopad.export.commands.gate_report import print_report, set_threads
    from nopad.export.reference.transformers import Reference
    from nopad.runtime.bundle import DEFAULT_CHECKPOINT
    from nopad.runtime.predictor import load

    set_threads(threads)
    console = messages(quiet)
    with tempfile.TemporaryDirectory() as scratch, status(console) as progress:
        result = export_checkpoint(DEFAULT_CHECKPOINT, output or Path(scratch) / "bundle", progress=progress)
        reference = Reference(DEFAULT_CHECKPOINT, "text-classification")
        with load(result.bundle.path, threads=torch.get_num_threads(), allow_unverified=True) as model:
            answers = model.predict(list(REVIEWS))
            progress("measuring")
            speed = _speed(model, reference)
    assert result.report is not None
    if as_json:
        emit(
            {
                "predictions": [
                    {"text": text, "label": answer.label, "score": answer.score}
                    for text, answer in zip(REVIEWS, answers, strict=True)
                ],
                "parity": {"passed": result.report["passed"], "rows": len(result.report["rows"])},
                "export_seconds": round(result.export_seconds, 2),
                "tokens_per_second": speed,
            }
        )
        return 0 if result.report["passed"] else 1
    out = Console(highlight=False)
    table = Table(box=None, pad_edge=False, title="predictions of the exported bundle", title_justify="left")
    for name in ("label", "confidence", "review"):
        table.add_column(name, overflow="fold")
    for text, answer in zip(REVIEWS, answers, strict=True):
        table.add_row(answer.label, f"{answer.score:.1%}", text)
    out.print(table)
    out.print(f"\nparity of the bundle (exported in {result.export_seconds:.1f} s, {result.bytes / 1e6:.1f} MB)")
    print_report(result.report, result.parity_seconds)
    out.print()
    table = Table(box=None, pad_edge=False, title="real tokens per second", title_justify="left")
    table.add_column("on the same texts")
    for name in ("tokens/s", "ratio"):
        table.add_column(name, justify="right")
    for name, value in speed.items():
        table.add_row(name, f"{value:,.0f}", f"{value / speed['transformers']:.2f}x")
    out.print(table)
    return 0 if result.report["passed"] else 1


def _speed(model: Any, reference: Any) -> dict[str, float]:
    """Medians of real tokens per second on texts of very different lengths, as reviews are."""
    texts = [" ".join(SAMPLES[: 1 + 3 * i % len(SAMPLES)]) for i in range(32)] + list(REVIEWS) * 4
    tokens = sum(answer.tokens_used for answer in model.predict(texts))
    reference.batch_logits(texts, model.manifest.max_length)  # warm-up of both
    seconds: dict[str, list[float]] = {"nopad": [], "transformers": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model.predict(texts)
        middle = time.perf_counter()
        reference.batch_logits(texts, model.manifest.max_length)
        seconds["nopad"].append(middle - start)
        seconds["transformers"].append(time.perf_counter() - middle)
    return {name: round(tokens / statistics.median(values), 1) for name, values in seconds.items()}
