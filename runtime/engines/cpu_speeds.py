"""How fast each engine is in each precision on each kind of CPU: the measured table, with its sources.

Numbers only: `nopad.runtime.engines.selection` makes an order of them, `nopad doctor` shows them, and `nopad tune`
measures what is true of one machine, one bundle and one kind of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nopad.model.cpus import Cpu


@dataclass(frozen=True, kw_only=True)
class CpuSpeeds:
    """Speeds on one kind of CPU, in real tokens/s as multiples of onnx-cpu in fp32 there."""

    cpus: str  # in words
    vendor: str | None  # None: any
    feature: str | None  # an instruction set that it must have; None: any
    speeds: Mapping[tuple[str, str], float]  # (engine, precision)
    source: str

    def describes(self, cpu: Cpu) -> bool:
        """Whether `cpu` is of this kind."""
        return self.vendor in (None, cpu.vendor) and self.feature in (None, *cpu.features)

    def speed(self, engine: str, precision: str) -> float:
        """Of a pair that nobody has measured: 0.0."""
        return self.speeds.get((engine, precision), 0.0)


# The first that describes a CPU counts. All figures are of ModernBERT-base, medians over short texts, texts up to 512
# tokens, 1 x 512 and 1 x 2048.
_AMD_BF16 = {
    ("openvino", "int8"): 2.5,
    ("onnx-cpu", "int8"): 2.1,
    ("openvino", "bf16"): 1.85,
    ("torch", "bf16"): 1.3,
    ("onnx-cpu", "fp32"): 1.0,
    ("openvino", "fp32"): 0.95,
    ("torch", "fp32"): 0.7,
}
TABLE: tuple[CpuSpeeds, ...] = (
    CpuSpeeds(
        cpus="AMD with avx512_bf16 (Zen 4 and newer)",
        vendor="AMD",
        feature="avx512_bf16",
        speeds=_AMD_BF16,
        source="2 cores of an AMD EPYC with avx512_bf16, 2 threads: docs/cpu.md; torch, 1 thread: docs/findings.md",
    ),
    CpuSpeeds(
        cpus="Intel with amx_bf16 (Sapphire Rapids and newer)",
        vendor="Intel",
        feature="amx_bf16",
        speeds={**_AMD_BF16, ("openvino", "bf16"): 2.0, ("openvino", "fp32"): 1.05},
        source="not measured: fp32 as on an Intel Xeon without AMX (docs/cpu.md), the rest at least as on an AMD with "
        "avx512_bf16",
    ),
    CpuSpeeds(
        cpus="Intel with avx512_vnni",
        vendor="Intel",
        feature="avx512_vnni",
        speeds={("onnx-cpu", "int8"): 1.9, ("openvino", "fp32"): 1.05, ("onnx-cpu", "fp32"): 1.0},
        source="2 cores of an Intel Xeon (avx512_vnni, AMX hidden), 2 threads: "
        "docs/benchmarks/modernbert-base-and-bert-2-xeon-cores.md, OpenVINO's from 1x512, where nothing is padded",
    ),
    CpuSpeeds(
        cpus="any other",
        vendor=None,
        feature=None,
        speeds={("onnx-cpu", "fp32"): 1.0, ("openvino", "fp32"): 0.95},
        source="not measured on this kind of CPU: fp32 as on an AMD EPYC",
    ),
)


def speeds_of(cpu: Cpu) -> CpuSpeeds:
    """The row of the table that describes a CPU; there is always one."""
    return next(row for row in TABLE if row.describes(cpu))
