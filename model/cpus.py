"""What the CPU of this machine is: its maker, its name, and the instruction sets that decide which engine is fast.

Reads Linux's `/proc/cpuinfo` or asks macOS's `sysctl`; anywhere else the CPU is unknown and has no features. Knows no
engine. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Instruction sets that matter here, in the words of Linux: x86's `flags`, ARM's `Features`.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8",
            "asimd", "asimddp", "i8mm", "bf16", "sve")  # fmt: skip
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
_UNKNOWN = "unknown"
_VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel", "HygonGenuine": "Hygon", "CentaurHauls": "Zhaoxin"}
# ARM's registers name makers and cores by numbers (Arm's MIDR_EL1; the list of util-linux's lscpu).
_IMPLEMENTERS = {"0x41": "ARM", "0x46": "Fujitsu", "0x48": "HiSilicon", "0x51": "Qualcomm", "0x61": "Apple",
                 "0x6d": "Microsoft", "0xc0": "Ampere"}  # fmt: skip
_ARM_PARTS = {"0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1",
              "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2"}  # fmt: skip
# macOS's names of the same features; it has its own for x86, too.
_APPLE_ARM = {"asimd": "AdvSIMD", "asimddp": "FEAT_DotProd", "i8mm": "FEAT_I8MM", "bf16": "FEAT_BF16"}
_APPLE_X86 = {"avx2": "AVX2", "avx512f": "AVX512F", "avx512_vnni": "AVX512VNNI"}


@dataclass(frozen=True)
class Cpu:
    """A CPU. `features` are those of `FEATURES` that it has, in that order."""

    vendor: str  # AMD, Intel, ARM, Apple, ..., unknown
    model: str  # AMD EPYC 9454; unknown
    features: tuple[str, ...] = ()

    @property
    def bf16(self) -> bool:
        """Whether it multiplies bf16 numbers in instructions of its own."""
        return any(feature in self.features for feature in _BF16)

    @property
    def vnni(self) -> bool:
        """Whether it multiplies 8-bit integers in instructions that cannot overflow."""
        return any(feature in self.features for feature in _VNNI)

    @property
    def key(self) -> str:
        """A short name that stays the same, for files: the CPU's name, and a digest of all that is known of it."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.model.lower()).strip("-")[:40].rstrip("-")
        digest = hashlib.sha256("|".join((self.vendor, self.model, *self.features)).encode()).hexdigest()
        return f"{slug or _UNKNOWN}-{digest[:8]}"

    def __str__(self) -> str:
        return f"{self.model} ({', '.join(self.features) or 'no instruction sets known'})"


@functools.cache
def cpu_at_hand() -> Cpu:
    """The CPU of this machine."""
    try:
        if platform.system() == "Darwin":
            return parse_sysctl(_sysctl())
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text(errors="replace"))
    except (OSError, subprocess.SubprocessError):
        return Cpu(_UNKNOWN, platform.processor() or platform.machine() or _UNKNOWN)


def usable_cores() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_cpuinfo(text: str) -> Cpu:
    """The CPU that the text of Linux's `/proc/cpuinfo` describes; of several kinds of cores, what all of them have."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), []).append(value.strip())

    def first(name: str) -> str:
        return next(iter(fields.get(name, ())), "")

    vendor = first("vendor_id") or first("CPU implementer")
    vendor = {**_VENDORS, **_IMPLEMENTERS}.get(vendor, vendor) or _UNKNOWN
    part = first("CPU part")
    model = first("model name") or (f"{vendor} {_ARM_PARTS.get(part, part)}" if part else _UNKNOWN)
    cores = [set(line.split()) for line in fields.get("flags", []) + fields.get("Features", [])]
    common = set.intersection(*cores) if cores else set()
    return Cpu(vendor, model, tuple(feature for feature in FEATURES if feature in common))


def parse_sysctl(answers: Mapping[str, str]) -> Cpu:
    """The CPU that macOS's `sysctl` describes: the value of each name, without those that it does not know."""
    model = answers.get("machdep.cpu.brand_string", _UNKNOWN)
    x86 = f"{answers.get('machdep.cpu.features', '')} {answers.get('machdep.cpu.leaf7_features', '')}".split()
    has = {name for name, theirs in _APPLE_X86.items() if theirs in x86}
    has |= {name for name, theirs in _APPLE_ARM.items() if answers.get(f"hw.optional.arm.{theirs}") == "1"}
    vendor = next((known for known in ("Apple", "Intel") if known in model), _UNKNOWN)
    return Cpu(vendor, model, tuple(feature for feature in FEATURES if feature in has))


def _sysctl() -> dict[str, str]:
    """Every name of `sysctl -a` with its value."""
    lines = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=10, check=True).stdout
    pairs = (line.partition(": ") for line in lines.splitlines())
    return {name: value.strip() for name, _, value in pairs}
