"""The double of cuda-python offers nothing that the real package lacks."""

from __future__ import annotations

import pytest
from cuda_double import A10, FakeCuda, cudaError_t


def test_the_doubles_offer_only_names_that_cuda_python_has() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    double = FakeCuda(A10)
    calls = {name for name in (*vars(FakeCuda), *vars(double)) if name.startswith("cuda")}
    assert {"cudaMalloc", "cudaMemcpyAsync", "cudaError_t"} < calls
    assert not [name for name in calls if not hasattr(real, name)]
    assert {error.name: error.value for error in cudaError_t} == {
        error.name: getattr(real.cudaError_t, error.name).value for error in cudaError_t
    }
