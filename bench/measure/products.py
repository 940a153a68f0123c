"""Matrix products of one size in each library and precision: what this machine's cores can do at best.

The right operand is constant, as weights are, so a library packs it once. Knows no model and no subject.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nopad.model.cpus import cpu_at_hand, usable_cores
from nopad.model.packages import importable
from nopad.runtime.engines.onnx_session import STOP_SPINNING, session_options
from nopad.runtime.engines.openvino import import_openvino, openvino_core
from nopad.runtime.errors import EnvironmentProblem

# 1,024 tokens through a layer of ModernBERT-base (hidden size 768 to query, key and value).
M, K, N = 1024, 768, 2304
FLOPS = 2.0 * M * K * N  # of one product; of integers, as many operations
Product = Callable[[], object]
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # ONNX's element types


def products(threads: int) -> dict[str, dict[str, Product]]:
    """By precision and library: a product with `threads` threads, for every library that is installed and has one."""
    makers: Mapping[str, Mapping[str, Callable[[int], Product]]] = {
        "fp32": {"onnxruntime": _onnxruntime, "torch": _torch, "openvino": _openvino, "numpy": _numpy},
        "bf16": {"torch": _torch_bf16, "openvino": _openvino_bf16} if cpu_at_hand().bf16 else {},
        "int8": {"onnxruntime": _onnxruntime_int8, "torch": _torch_int8, "openvino": _openvino_int8},
    }
    found: dict[str, dict[str, Product]] = {}
    for precision, libraries in makers.items():
        for library, make in libraries.items():
            if importable(library):
                try:
                    product = make(threads)
                    product()
                except Exception:  # a release without this product: another library's stands
                    continue
                found.setdefault(precision, {})[library] = product
    return found


def fp32_product(threads: int) -> Product:
    """The product that shows how quiet the machine is: ONNX Runtime's, numpy's where that is missing."""
    if importable("onnxruntime"):
        return _onnxruntime(threads)
    a, b = _floats()
    return lambda: a @ b


def _floats() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.standard_normal((M, K), dtype=np.float32), random.standard_normal((K, N), dtype=np.float32)


def _integers() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.integers(0, 255, (M, K), dtype=np.uint8), random.integers(-127, 127, (K, N), dtype=np.int8)


def _numpy(threads: int) -> Product:
    if threads != usable_cores():
        raise EnvironmentProblem(
            "numpy's threads are set before it is imported, to all cores unless a variable says so"
        )
    a, b = _floats()
    return lambda: a @ b


def _torch_tensors(threads: int, *arrays: Any) -> list[Any]:
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    return [torch.from_numpy(array) for array in arrays]


def _torch(threads: int) -> Product:
    a, b = _torch_tensors(threads, *_floats())
    return lambda: a @ b


def _torch_bf16(threads: int) -> Product:
    a, b = (tensor.bfloat16() for tensor in _torch_tensors(threads, *_floats()))
    return lambda: a @ b


def _torch_int8(threads: int) -> Product:
    torch = importlib.import_module("torch")
    left, right = _integers()
    a, b = _torch_tensors(threads, (left // 2).astype(np.int8), right)
    return lambda: torch._int_mm(a, b)


def _onnxruntime(threads: int) -> Product:
    a, b = _floats()
    return _session(threads, a, _graph("MatMul", b.tobytes(), _FLOAT, _FLOAT, _FLOAT))


def _onnxruntime_int8(threads: int) -> Product:
    a, b = _integers()
    return _session(threads, a, _graph("MatMulInteger", b.tobytes(), _UINT8, _INT8, _INT32))


def _session(threads: int, a: Any, graph: bytes) -> Product:
    onnxruntime = importlib.import_module("onnxruntime")
    options = session_options(onnxruntime, threads, STOP_SPINNING)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _openvino(threads: int) -> Product:
    return _compiled(threads, "f32")


def _openvino_bf16(threads: int) -> Product:
    return _compiled(threads, "bf16")


def _openvino_int8(threads: int) -> Product:
    return _compiled(threads, "f32", quantized=True)


def _compiled(threads: int, hint: str, quantized: bool = False) -> Product:
    """OpenVINO's product of float32 activations; `quantized`: rounded to 8 bits first, by weights of 8 bits."""
    openvino = import_openvino()
    ops = openvino.opset13
    a, b = _floats()
    inputs = ops.parameter([M, K], np.float32)
    left, right = inputs, ops.constant(b)
    if quantized:
        low, high = np.float32(-4), np.float32(4)
        left = ops.fake_quantize(inputs, low, high, low, high, 256)
        right = ops.multiply(ops.convert(ops.constant(_integers()[1]), "f32"), np.float32(0.01))
    model = openvino.Model([ops.matmul(left, right, False, False)], [inputs])
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    request = openvino_core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(a))
    return lambda: request.infer()


def _graph(operator: str, weights: bytes, a_type: int, b_type: int, c_type: int) -> bytes:
    """An ONNX model, c = a @ weights, in protobuf's wire format: the package onnx may not be installed."""
    matrix = b"".join((_number(1, K), _number(1, N), _number(2, b_type), _bytes(8, b"b"), _bytes(9, weights)))
    node = _bytes(1, b"a") + _bytes(1, b"b") + _bytes(2, b"c") + _bytes(4, operator.encode())
    graph = b"".join(
        (
            _bytes(1, node),
            _bytes(2, b"probe"),
            _bytes(5, matrix),
            _bytes(11, _value(b"a", K, a_type)),
            _bytes(12, _value(b"c", N, c_type)),
        )
    )
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17))  # IR version 8, opset 17


def _value(name: bytes, columns: int, element: int) -> bytes:
    shape = b"".join(_bytes(1, _number(1, size)) for size in (M, columns))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, element) + _bytes(2, shape)))


def _bytes(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
