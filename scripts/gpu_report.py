"""Everything about a GPU in one command: speed of the packed encoder beside transformers, and the gate on every engine.

    python scripts/gpu_report.py --output report.json                               # speed, base configuration
    python scripts/gpu_report.py --bundle bundle/ --reference checkpoint/ --data test.jsonl --output report.json

Speed: one process, interleaved, medians; real tokens per second (padding does not count), the share of the matrix
product peak that is measured beside it, peak memory. Competitors: this encoder (FlashAttention-2 through `varlen_attn`
from compute capability 8.0, block-local SDPA elsewhere), transformers with SDPA and padding, transformers with
FlashAttention-2 where the package flash-attn is installed. Without --checkpoint the weights are random: speed does not
depend on them. On a machine without a GPU it runs on the CPU in fp32, to show that it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from nopad.export.parity.run import gate_bundle, open_reference
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.source import open_source
from nopad.model.errors import NopadError
from nopad.model.packing import pack
from nopad.runtime.atomic import write_file
from nopad.runtime.bundle import open_bundle, record_parity
from nopad.runtime.console import messages
from nopad.runtime.data.labelled import read_labelled
from nopad.runtime.engines.gpus import gpus
from nopad.runtime.engines.selection import engine_order
from nopad.runtime.planning.cost_model import cost_model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="ModernBERT checkpoint folder [default: base, random weights]")
    parser.add_argument("--bundle", type=Path, help="gate every engine of this bundle that runs here")
    parser.add_argument("--reference", type=Path, help="the checkpoint the bundle was exported from")
    parser.add_argument("--data", type=Path, help="labelled texts for the gate")
    parser.add_argument("--limit", type=int, default=2000, help="texts of --data")
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048,4096,8192")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of a batch")
    parser.add_argument("--dtypes", help="comma-separated [default: fp16 and, from sm80, bf16]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    console = messages(quiet=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    modern = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    dtypes = (arguments.dtypes or ("fp16,bf16" if modern else "fp16" if device == "cuda" else "fp32")).split(",")
    devices = gpus()
    report: dict[str, Any] = {
        "gpus": [vars(gpu) for gpu in devices] or "none",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "cuda": torch.version.cuda},
        "speed": [],
        "parity": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.checkpoint or random_base(Path(scratch))
        for dtype in dtypes:
            peak = matmul_peak(device, DTYPES[dtype])
            console.print(f"{device} {dtype}: matrix products reach {peak / 1e12:.1f} TFLOP/s")
            runners = make_runners(folder, device, DTYPES[dtype])
            for length in map(int, arguments.lengths.split(",")):
                for ragged in (False, True):
                    rows = measure(runners, device, length, ragged, arguments.tokens, arguments.rounds)
                    for row in rows:
                        row |= {"dtype": dtype, "share_of_peak": row.pop("flops_per_second", 0.0) / peak}
                        console.print(
                            "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
                        )
                    report["speed"] += rows
            del runners
    if arguments.bundle is not None:
        report["parity"] = gate_engines(arguments, devices[0].sm if devices else None, console.print)
    write_file(arguments.output, (json.dumps(report, indent=1) + "\n").encode())
    console.print(f"written to {arguments.output}")


def random_base(folder: Path) -> Path:
    """ModernBERT-base's configuration with random weights."""
    transformers.ModernBertForSequenceClassification(transformers.ModernBertConfig()).save_pretrained(folder)
    return folder


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of several."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(10))


def timed(run: Run, device: str) -> float:
    """Seconds of one call, the GPU's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_runners(folder: Path, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Name -> model."""
    encoder = load_checkpoint(folder, task="text-classification").encoder.to(device, dtype).eval()
    runners: dict[str, Any] = {"nopad": encoder}
    kinds = ["sdpa"]
    if device == "cuda" and importlib.util.find_spec("flash_attn"):
        kinds.append("flash_attention_2")
    for kind in kinds:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation=kind, dtype=dtype
        )
        runners[f"transformers {kind}"] = model.to(device).eval()
    return runners


@torch.inference_mode()
def measure(
    runners: dict[str, Any], device: str, length: int, ragged: bool, tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """One workload: sequences of exactly `length` tokens, or of 1 to `length`."""
    rng = np.random.default_rng(length)
    count = max(1, tokens // length)
    lengths = rng.integers(1, length + 1, 2 * count) if ragged else np.full(count, length)
    config = runners["nopad"].encoder_config
    sequences = [rng.integers(10, config.vocab_size - 100, n) for n in lengths]
    batch = pack(sequences, multiple=config.block)
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index")
    packed = [torch.from_numpy(getattr(batch, name)).to(device) for name in names]
    mask = batch.pad_index >= 0
    padded = {
        "input_ids": torch.from_numpy(np.where(mask, batch.input_ids[np.maximum(batch.pad_index, 0)], 0)).to(device),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device),
    }
    calls: dict[str, Run] = {
        name: (lambda model=model: model(*packed)) if name == "nopad" else (lambda model=model: model(**padded))
        for name, model in runners.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    memory: dict[str, int] = {}
    failed: dict[str, str] = {}
    for round_ in range(-2, rounds):  # two to warm up
        for name, call in calls.items():
            if name in failed:
                continue
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                elapsed = timed(call, device)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
                torch.cuda.empty_cache()
                continue
            if device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated()
            if round_ >= 0:
                seconds[name].append(elapsed)
    work = cost_model(config).text_flops(lengths.tolist())
    rows = []
    for name in calls:
        row = {"competitor": name, "length": length, "ragged": ragged, "sequences": len(lengths)}
        if name in failed:
            rows.append({**row, "failed": failed[name]})
            continue
        median = statistics.median(seconds[name])
        row |= {"ms": 1e3 * median, "tokens_per_second": float(lengths.sum() / median)}
        row |= {"flops_per_second": work / median, "peak_memory_bytes": memory.get(name)}
        rows.append(row)
    return rows


def gate_engines(arguments: argparse.Namespace, sm: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    """The gate on every engine that can run here; its verdict goes into the bundle."""
    bundle = open_bundle(arguments.bundle)
    data = None
    if arguments.data:
        data = read_labelled(arguments.data, bundle.manifest, limit=arguments.limit)
    verdicts: dict[str, Any] = {}
    with open_reference(open_source(arguments.reference), bundle.manifest) as reference:
        for engine in engine_order(sm):
            try:
                report = gate_bundle(open_bundle(arguments.bundle), reference, engine=engine, data=data, longest=2048)
            except NopadError as error:
                verdicts[engine] = {"refused": str(error)}
                say(f"{engine}: {error}")
                continue
            record_parity(open_bundle(arguments.bundle), report["file"], engine, report, report["evaluation"])
            verdicts[engine] = {"passed": report["passed"], "file": report["file"], "evaluation": report["evaluation"]}
            say(f"{engine}: {'passed' if report['passed'] else 'FAILED'}, {report['evaluation']}")
    return verdicts


if __name__ == "__main__":
    main()
