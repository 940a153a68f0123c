"""The table of measured speeds: which row is a CPU's, and that its figures can be followed to a source."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from repository import ROOT
from several_files import AMD, OLD, XEON

from nopad.model.cpus import Cpu
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.cpu_speeds import TABLE, speeds_of
from nopad.runtime.engines.hardware import Precision


@pytest.mark.parametrize(
    ("cpu", "row"),
    [
        (AMD, "AMD with avx512_bf16"),
        (XEON, "Intel with avx512_vnni"),
        (Cpu("Intel", "Xeon", ("avx512_vnni", "avx512_bf16", "amx_bf16")), "Intel with amx_bf16"),
        (OLD, "any other"),
        (Cpu("ARM", "ARM Neoverse-V1", ("asimd", "bf16")), "any other"),
        (Cpu("unknown", "unknown"), "any other"),
    ],
)
def test_every_cpu_has_a_row(cpu: Cpu, row: str) -> None:
    assert speeds_of(cpu).cpus.startswith(row)


def test_the_rows_are_of_engines_for_cpus_and_name_their_source() -> None:
    for row in TABLE:
        assert row.speed("onnx-cpu", "fp32") == 1.0
        for engine, precision in row.speeds:
            assert ENGINES[engine].cpu and precision in get_args(Precision)
        for document in re.findall(r"docs/[\w./-]+\.md", row.source):
            assert (ROOT / document).is_file(), document
        assert "docs/" in row.source or "not measured" in row.source
