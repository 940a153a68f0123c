"""Messages of gRPC <-> the JSON and binary tensors of the HTTP routes, which give them their meaning."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from nopad.runtime.server.errors import Fault
from nopad.runtime.server.grpc.messages import MESSAGES
from nopad.runtime.server.tensors import SIZE_KEY, packed

DATA_TYPES = {"TYPE_INT64": 9, "TYPE_FP32": 11, "TYPE_STRING": 13}  # of Triton's model configuration
OUTPUT_KEY = "binary_data_output"


def body_of(request: Any) -> tuple[bytes, int]:
    """An `InferRequest` as the body of an HTTP request, and the length of its JSON, which the tensors follow.

    Raises `Fault` for raw contents that are not of all inputs.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise Fault("validation", f"{len(request.inputs)} inputs, but raw contents of {len(raw)}")
    if not raw:
        raw = [packed(tensor.contents.bytes_contents) for tensor in request.inputs]
    inputs = [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "datatype": tensor.datatype,
            "parameters": {**_parameters(tensor.parameters), SIZE_KEY: len(data)},
        }
        for tensor, data in zip(request.inputs, raw, strict=True)
    ]
    head: dict[str, Any] = {"parameters": {**_parameters(request.parameters), OUTPUT_KEY: True}, "inputs": inputs}
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [{"name": want.name, "parameters": _parameters(want.parameters)} for want in request.outputs]
    text = json.dumps(head).encode()
    return b"".join([text, *raw]), len(text)


def infer_response(body: bytes, length: int) -> Any:
    """The body of an HTTP answer, whose JSON has `length` bytes, as an `InferResponse`."""
    head, place = json.loads(body[:length]), length
    response = MESSAGES["InferResponse"](
        model_name=head["model_name"], model_version=head["model_version"], id=head.get("id", "")
    )
    for key, value in head["parameters"].items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}.get(type(value), "double_param")
        response.parameters.add(key=key, value=MESSAGES["Value"](**{kind: value}))
    for output in head["outputs"]:
        size = output["parameters"][SIZE_KEY]
        response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        response.raw_output_contents.append(body[place : place + size])
        place += size
    return response


def config_response(config: dict[str, Any]) -> Any:
    """A model's configuration, as `GET .../config` answers it."""
    typed = {
        side: [{**tensor, "data_type": DATA_TYPES[tensor["data_type"]]} for tensor in config[side]]
        for side in ("input", "output")
    }
    return MESSAGES["ModelConfigResponse"](config={**_known("ModelConfig", config), **typed})


def message_of(name: str, body: dict[str, Any]) -> Any:
    """A message from JSON whose keys are its fields; keys that it has not are left out."""
    return MESSAGES[name](**_known(name, body))


def _known(name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {key: body[key] for key in MESSAGES[name].DESCRIPTOR.fields_by_name if key in body}


def _parameters(entries: Iterable[Any]) -> dict[str, Any]:
    chosen = ((entry.key, entry.value.WhichOneof("choice"), entry.value) for entry in entries)
    # Every output is raw here, whatever its flag says.
    return {key: getattr(value, which) for key, which, value in chosen if which and key != "binary_data"}
