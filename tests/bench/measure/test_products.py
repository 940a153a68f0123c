"""The matrix products are those that they are taken for."""

import numpy as np
import pytest

from nopad.bench.measure import products
from nopad.model.cpus import cpu_at_hand
from nopad.model.packages import importable


def test_every_library_multiplies_the_same_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "M", 8)
    monkeypatch.setattr(products, "K", 64)
    monkeypatch.setattr(products, "N", 32)
    found = products.products(1)
    assert set(found) == {"fp32", "int8"} | ({"bf16"} if cpu_at_hand().bf16 else set())
    assert set(found["int8"]) == {name for name in ("onnxruntime", "torch", "openvino") if importable(name)}
    left, right = products._floats()
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.5)):
        for library, product in found.get(precision, {}).items():
            assert np.abs(as_array(product()) - left @ right).max() < tolerance, (precision, library)
    left, right = (array.astype(np.int64) for array in products._integers())
    assert np.array_equal(as_array(found["int8"]["onnxruntime"]()), left @ right)
    if "torch" in found["int8"]:
        assert np.array_equal(as_array(found["int8"]["torch"]()), (left // 2) @ right)


def test_a_library_that_has_no_such_product_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "importable", lambda name: name in ("onnxruntime", "torch"))

    def fails(threads: int) -> products.Product:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(products, "_torch_int8", fails)
    monkeypatch.setattr(products, "_torch", fails)
    found = products.products(1)
    assert list(found["fp32"]) == list(found["int8"]) == ["onnxruntime"]


def as_array(result: object) -> np.ndarray:
    """What a library's product returns, as one matrix: of a list or OpenVINO's results the first."""
    if hasattr(result, "to_tuple"):
        return np.asarray(result.to_tuple()[0])
    if isinstance(result, list):
        return np.asarray(result[0])
    return result.float().numpy() if hasattr(result, "float") else np.asarray(result)
