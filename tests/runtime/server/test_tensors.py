"""Tensors in JSON and in the binary extension: what was written is read, and nothing else."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nopad.runtime.server.errors import Fault
from nopad.runtime.server.tensors import Infer, Output, Wanted, read_request, write_response

texts = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=8)


def packed(strings: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in (text.encode() for text in strings))


@given(texts, texts, st.booleans(), st.booleans())
def test_strings_come_through_in_json_and_in_binary(
    first: list[str], second: list[str], binary_first: bool, binary_second: bool
) -> None:
    inputs, body = [], b""
    for name, strings, binary in (("text", first, binary_first), ("text_pair", second, binary_second)):
        tensor = {"name": name, "shape": [len(strings)], "datatype": "BYTES"}
        if binary:
            body += packed(strings)
            inputs.append({**tensor, "parameters": {"binary_data_size": len(packed(strings))}})
        else:
            inputs.append({**tensor, "data": strings})
    head = json.dumps({"id": "7", "inputs": inputs}).encode()
    request, found = read_request(head + body, str(len(head)))
    assert request.id == "7" and found == {"text": first, "text_pair": second}


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 250).map(str), st.text(max_size=5)))
def test_any_other_bytes_are_refused_as_the_clients_fault(body: bytes, header_length: str | None) -> None:
    try:
        _, strings = read_request(body, header_length)
    except (Fault, ValidationError) as error:
        assert not isinstance(error, Fault) or error.kind in ("validation", "text")
    else:
        assert header_length is not None and int(header_length) == 0 and strings == {"text": [body.decode()]}


@given(st.integers(1, 4), st.integers(1, 5))
def test_outputs_are_written_where_the_sizes_say(rows: int, columns: int) -> None:
    scores = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    names = [f"ä{i}" for i in range(rows)]
    outputs = [Output("scores", scores.shape, scores), Output("label", [rows], names)]
    body, length = write_response({"labels": ()}, outputs, Infer(inputs=[], parameters={"binary_data_output": True}))
    assert length is not None
    head, raw = json.loads(body[:length]), body[length:]
    sizes = [row["parameters"]["binary_data_size"] for row in head["outputs"]]
    assert sizes == [4 * rows * columns, len(packed(names))] and len(raw) == sum(sizes)
    assert np.array_equal(np.frombuffer(raw[: sizes[0]], "<f4").reshape(rows, columns), scores)
    assert raw[sizes[0] :] == packed(names)
    plain, none = write_response({"labels": ()}, outputs, Infer(inputs=[], outputs=[Wanted(name="label")]))
    assert none is None
    assert json.loads(plain)["outputs"] == [{"name": "label", "shape": [rows], "datatype": "BYTES", "data": names}]
