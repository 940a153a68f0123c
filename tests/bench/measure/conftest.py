"""The workload of these tests' runs."""

from __future__ import annotations

import pytest

from nopad.bench.workloads import Source, Texts
from nopad.runtime.bundle import open_bundle


@pytest.fixture
def workload() -> Texts:
    return Source(open_bundle(verify=False), None).named("4x16")
