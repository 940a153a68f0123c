"""Tensors of the Open Inference Protocol, in JSON and in Triton's binary extension: texts in, texts and numbers out."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from nopad.runtime.answer_tensors import Output
from nopad.runtime.server.calls import to_json
from nopad.runtime.server.errors import Fault
from nopad.runtime.types import FloatArray, IntArray

HEADER_LENGTH = "inference-header-content-length"  # of the JSON, where tensors follow it
LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor
SIZE_KEY = "binary_data_size"
NUMBER = re.compile("[0-9]{1,12}")


class Tensor(BaseModel):
    """An input. In JSON its elements are in `data`; else they follow the JSON, in so many bytes as `parameters` say."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class Wanted(BaseModel):
    """An output by its name."""

    name: str
    parameters: dict[str, Any] = {}


class Infer(BaseModel):
    """The JSON of a request."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[Tensor]
    outputs: list[Wanted] | None = None


def read_request(body: bytes, header_length: str | None) -> tuple[Infer, dict[str, list[str]]]:
    """The request, and the strings of each of its inputs, which must all be BYTES [n] or [n, 1].

    `header_length`: of the JSON, where tensors follow it. "0": the body is one text. Raises `Fault` and pydantic's
    `ValidationError`.
    """
    if header_length is None:
        text, rest = body, b""
    elif not NUMBER.fullmatch(header_length) or int(header_length) > len(body):
        raise Fault(
            "validation", f"Inference-Header-Content-Length is no length within the {len(body)} bytes of the body"
        )
    elif int(header_length) == 0:
        tensor = Tensor(name="text", shape=[1], datatype="BYTES")
        return Infer(inputs=[tensor], parameters={"binary_data_output": True}), {"text": [_text("text", body, 0)]}
    else:
        text, rest = body[: int(header_length)], body[int(header_length) :]
    request = Infer.model_validate_json(text)
    strings: dict[str, list[str]] = {}
    for tensor in request.inputs:
        if tensor.name in strings:
            raise Fault("validation", f"input '{tensor.name}' is given twice")
        if tensor.datatype != "BYTES":
            raise Fault("validation", f"input '{tensor.name}' has datatype {tensor.datatype}, and must be BYTES")
        size = tensor.parameters.get(SIZE_KEY)
        if size is None:
            elements = _flat(tensor)
        elif not isinstance(size, int) or not 0 <= size <= len(rest) or tensor.data is not None:
            raise Fault("validation", f"input '{tensor.name}': {SIZE_KEY} is not the size of the bytes that follow")
        else:
            elements = [
                _text(tensor.name, part, place) for place, part in enumerate(_elements(tensor.name, rest[:size]))
            ]
            rest = rest[size:]
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]) or tensor.shape[0] != len(elements):
            raise Fault(
                "validation",
                f"input '{tensor.name}' has shape {tensor.shape} and {len(elements)} elements: "
                "it must be [n] or [n, 1]",
            )
        strings[tensor.name] = elements
    if rest:
        raise Fault("validation", f"{len(rest)} bytes follow the last tensor")
    return request, strings


def write_response(head: dict[str, Any], outputs: Sequence[Output], request: Infer) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where tensors follow that.

    `head`: the keys beside `outputs`. Only the outputs that the request names, in its order; each in binary where it
    or the request asks for that.
    """
    have = {output.name: output for output in outputs}
    wanted = request.outputs or [Wanted(name=name) for name in have]
    shown, parts = [], []
    for want in wanted:
        if want.name not in have:
            raise Fault("validation", f"unexpected inference output '{want.name}'; there are {', '.join(have)}")
        output = have[want.name]
        classes = want.parameters.get("classification", 0)
        if classes:
            output = _classified(output, classes, head["labels"])
        row: dict[str, Any] = {"name": output.name, "shape": list(output.shape), "datatype": output.datatype}
        if want.parameters.get("binary_data", request.parameters.get("binary_data_output", False)):
            parts.append(_raw(output.values))
            row["parameters"] = {SIZE_KEY: len(parts[-1])}
        else:
            values = output.values
            row["data"] = values.ravel() if isinstance(values, np.ndarray) else list(values)
        shown.append(row)
    text = to_json({**{key: value for key, value in head.items() if key != "labels"}, "outputs": shown})
    return b"".join([text, *parts]), len(text) if parts else None


def _classified(output: Output, classes: Any, labels: Sequence[str]) -> Output:
    """Triton's classification extension: the best classes of each row as "value:index:label"."""
    scores = output.values
    if not isinstance(scores, np.ndarray) or scores.ndim < 2 or not isinstance(classes, int) or classes < 0:
        raise Fault("validation", f"output '{output.name}': classification is a number of classes of FP32 scores")
    count = min(classes, scores.shape[1])
    strings = [
        ":".join([f"{row[i]:f}", str(i), *([labels[i]] if labels else [])])
        for row in scores
        for i in np.argsort(-row, kind="stable")[:count]
    ]
    return Output(output.name, [scores.shape[0], count], strings)


def packed(elements: Iterable[bytes]) -> bytes:
    """The elements of a BYTES tensor, each after its length."""
    return b"".join(LENGTH.pack(len(element)) + element for element in elements)


def _raw(values: FloatArray | IntArray | Sequence[str]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype("<f4" if values.dtype.kind == "f" else "<i8").tobytes()
    return packed(value.encode() for value in values)


def _elements(name: str, raw: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(raw):
        end = place + LENGTH.size
        size = LENGTH.unpack_from(raw, place)[0] if end <= len(raw) else math.inf
        if end + size > len(raw):
            raise Fault("validation", f"input '{name}': an element of its BYTES is longer than the rest of the tensor")
        place = end + int(size)
        yield raw[end:place]


def _text(name: str, raw: bytes, index: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Fault("text", f"input '{name}': text {index} is not valid UTF-8", index=index) from None


def _flat(tensor: Tensor) -> list[str]:
    found: list[str] = []
    for element in tensor.data or []:  # nested by its shape, or flat
        found += element if isinstance(element, list) else [element]
    if not all(isinstance(element, str) for element in found):
        raise Fault("validation", f"input '{tensor.name}': the elements of BYTES in JSON are strings")
    return found
