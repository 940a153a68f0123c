"""GPUs by their makers' data sheets, and the share of the rate that published BERT runs sustain. Knows no model.

Rates are dense (no 2:4 sparsity), fp16 and bf16 with fp32 sums; memory is decimal. `sustained` is measured, not quoted:
a 70 W board cannot hold its boost clock under matrix products. It is fitted by `scripts/fit_forecast.py` to the
measurement that `calibrated_on` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nopad.runtime.errors import UsageError

# What a GPU was calibrated on: a table of latencies, or a single throughput.
Calibration = Literal["table", "single"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; rates in operations/s (a multiply-add is two), bandwidth in bytes/s, cache in bytes."""

    name: str
    title: str
    sm: str  # compute capability, sm75
    fp16: float  # tensor cores; bf16 runs at the same rate where the GPU has it
    int8: float
    fp32: float  # what TensorRT runs fp32 products on by default: TF32 tensor cores, or plain fp32 (T4)
    bf16: bool
    bandwidth: float
    cache: float  # L2
    processors: int  # streaming multiprocessors
    source: str
    sustained: float  # share of the tensor rate that large products hold; 1: no limit was seen
    calibration: Calibration
    calibrated_on: str

    def rate(self, precision: str) -> float:
        """Peak of matrix products in fp32, fp16, bf16 or int8."""
        return {"fp32": self.fp32, "fp16": self.fp16, "bf16": self.fp16, "int8": self.int8}[precision]


_DEMO = "NVIDIA/TensorRT demo/BERT README, BERT-base"
_MLPERF = "MLPerf Inference, NVIDIA, BERT-large Offline"
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="t4",
            title="NVIDIA T4 16 GB, 70 W",
            sm="sm75",
            fp16=65e12,
            int8=130e12,
            fp32=8.1e12,
            bf16=False,
            bandwidth=320e9,
            cache=4e6,
            processors=40,
            source="NVIDIA T4 data sheet; Turing architecture white paper (40 processors, 4 MB L2)",
            sustained=0.32,
            calibration="table",
            calibrated_on=f"{_DEMO} on T4",
        ),
        Gpu(
            name="l4",
            title="NVIDIA L4 24 GB, 72 W",
            sm="sm89",
            fp16=121e12,
            int8=242e12,
            fp32=60e12,
            bf16=True,
            bandwidth=300e9,
            cache=48e6,
            processors=58,
            source="NVIDIA L4 data sheet (figures with sparsity halved); Ada architecture white paper (58, 48 MB L2)",
            sustained=0.47,
            calibration="table",
            calibrated_on=f"{_DEMO} on L4",
        ),
        Gpu(
            name="a10",
            title="NVIDIA A10 24 GB, 150 W",
            sm="sm86",
            fp16=125e12,
            int8=250e12,
            fp32=62.5e12,
            bf16=True,
            bandwidth=600e9,
            cache=6e6,
            processors=72,
            source="NVIDIA A10 data sheet; GA102 architecture white paper (72 processors, 6 MB L2)",
            sustained=0.495,
            calibration="single",
            calibrated_on=f"{_MLPERF}, v1.0, A10x8, bert-99.9 (fp16): 522.6 samples/s a GPU",
        ),
        Gpu(
            name="a100",
            title="NVIDIA A100 40 GB, 400 W",
            sm="sm80",
            fp16=312e12,
            int8=624e12,
            fp32=156e12,
            bf16=True,
            bandwidth=1555e9,
            cache=40e6,
            processors=108,
            source="NVIDIA A100 data sheet; Ampere architecture white paper (108 processors, 40 MB L2)",
            sustained=1.0,
            calibration="table",
            calibrated_on=f"{_DEMO} on A100 (40 GB)",
        ),
        Gpu(
            name="h100",
            title="NVIDIA H100 SXM 80 GB, 700 W",
            sm="sm90",
            fp16=989e12,
            int8=1979e12,
            fp32=494e12,
            bf16=True,
            bandwidth=3350e9,
            cache=50e6,
            processors=132,
            source="NVIDIA H100 data sheet (figures with sparsity halved); Hopper white paper (132, 50 MB L2)",
            sustained=1.0,
            calibration="single",
            calibrated_on=f"{_MLPERF}, v3.0, DGX H100 x1, bert-99 (int8): 9369 samples/s",
        ),
        Gpu(
            name="h200",
            title="NVIDIA H200 SXM 141 GB, 700 W",
            sm="sm90",
            fp16=989e12,
            int8=1979e12,
            fp32=494e12,
            bf16=True,
            bandwidth=4800e9,
            cache=50e6,
            processors=132,
            source="NVIDIA H200 data sheet (figures with sparsity halved); Hopper white paper (132, 50 MB L2)",
            sustained=1.0,
            calibration="single",
            calibrated_on="H100's: the same processor with faster memory",
        ),
    )
}


def find_gpus(names: Sequence[str]) -> tuple[Gpu, ...]:
    """The GPUs of these names, in any case. Raises `UsageError` for a name that is not in the table."""
    lowered = tuple(dict.fromkeys(name.lower() for name in names))
    unknown = [name for name in lowered if name not in GPUS]
    if unknown:
        raise UsageError(f"no data sheet for {', '.join(unknown)}; a forecast can be made for {', '.join(GPUS)}")
    return tuple(GPUS[name] for name in lowered)
