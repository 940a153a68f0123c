"""A stand-in for Triton: its model repository, and the part of its Python backend's API that nopad's model may use.

Names, signatures and defaults are those of triton-inference-server/python_backend: `src/pb_stub.cc` (the module
`c_python_backend_utils`, as vendored in triton-inference-server/server at ca56352ddc8ef3a0dd315aad79f361debd2f282c) and
`src/resources/triton_python_backend_utils.py` (at 28aaeb7be16c71466bc571dc9d41bdbc356b1f4c), which re-exports it.
Graphs are run by ONNX Runtime. What Triton refuses is refused: BLS outside `execute`, tensors of other types, ranks and
sizes than `config.pbtxt` says, reading a tensor that lies on a GPU, wrong numbers and kinds of responses.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

TYPES = {np.dtype(np.int64): "TYPE_INT64", np.dtype(np.float32): "TYPE_FP32", np.dtype(object): "TYPE_STRING"}
TRITONSERVER_MEMORY_GPU, TRITONSERVER_MEMORY_CPU = "GPU", "CPU"


class TritonModelException(Exception):
    pass


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def code(self) -> int:
        return self._code

    def message(self) -> str:
        return self._message


class PreferredMemory:
    def __init__(self, preferred_memory_type: str, preferred_device_id: int = 0) -> None:
        self.kind = preferred_memory_type


class Tensor:
    def __init__(self, name: str, numpy_array: Any) -> None:
        assert isinstance(numpy_array, np.ndarray) and numpy_array.dtype in TYPES, numpy_array
        assert numpy_array.flags.c_contiguous
        self._name, self._array, self._on_cpu = name, numpy_array, True

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        if not self._on_cpu:
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array

    def is_cpu(self) -> bool:
        return self._on_cpu

    def shape(self) -> list[int]:
        return list(self._array.shape)


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceRequest:
    server: Server | None = None  # in whose `execute` we are

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
    ) -> None:
        self._inputs, self._outputs = list(inputs), list(requested_output_names)
        self._model, self._version, self._memory = model_name, model_version, preferred_memory

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def exec(self, decoupled: bool = False) -> InferenceResponse:
        assert not decoupled
        if InferenceRequest.server is None:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        memory = self._memory.kind if self._memory else None
        return InferenceRequest.server.run_graph(self._model, self._version, self._inputs, self._outputs, memory)


class Logger:
    lines: list[str] = []

    @staticmethod
    def log_info(message: str) -> None:
        Logger.lines.append(message)


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def read_config(folder: Path) -> Any:
    """A model's `config.pbtxt` as the published message; parsing refuses what the message does not have."""
    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig())


class Server:
    """The models of a repository, as `tritonserver --model-repository` loads them."""

    def __init__(self, repository: Path) -> None:
        self.streams: list[dict[str, tuple[int, ...]]] = []  # shapes of each call of a graph
        self.fail: str | None = None  # what a graph says instead of an answer
        self.shift = 0.0  # what a wrong graph adds to its answers
        self._configs = {folder.name: read_config(folder) for folder in repository.iterdir() if folder.is_dir()}
        self._graphs: dict[str, Any] = {}
        self._models: dict[str, Any] = {}
        for name, config in self._configs.items():
            assert config.name == name and (repository / name / "1").is_dir()
            if config.backend in ("onnxruntime", "tensorrt"):  # an engine's place is taken by a graph
                file = repository / name / "1" / (config.default_model_filename or "model.onnx")
                self._graphs[name] = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
            elif config.backend == "python":
                self._models[name] = self._start(repository / name, config)

    def _start(self, folder: Path, config: Any) -> Any:
        specification = importlib.util.spec_from_file_location("triton_model", folder / "1" / "model.py")
        assert specification and specification.loader
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json_format.MessageToJson(config, preserving_proto_field_name=True),
                "model_instance_kind": "CPU",
                "model_instance_name": f"{config.name}_0_0",
                "model_instance_device_id": "0",
                "model_repository": str(folder.absolute()),
                "model_version": "1",
                "model_name": config.name,
            }
        )
        return model

    def infer(self, name: str, requests: Sequence[Mapping[str, Any]]) -> list[InferenceResponse]:
        """What `execute` answers to these requests, which the dynamic batcher hands over together."""
        config = self._configs[name]
        made = []
        for inputs in requests:
            tensors = [Tensor(key, np.asarray(value, dtype=object)) for key, value in inputs.items()]
            _check(config.input, tensors, batch=config.max_batch_size > 0)
            needed = {each.name for each in config.input if not each.optional}
            assert needed <= set(inputs)
            made.append(InferenceRequest(inputs=tensors, requested_output_names=[each.name for each in config.output]))
        assert sum(len(each.inputs()[0].as_numpy()) for each in made) <= config.max_batch_size
        assert len(made) == 1 or config.HasField("dynamic_batching")
        InferenceRequest.server = self
        try:
            responses = self._models[name].execute(made)
        finally:
            InferenceRequest.server = None
        assert isinstance(responses, list) and len(responses) == len(made)
        for request, response in zip(made, responses, strict=True):
            assert isinstance(response, InferenceResponse)
            if not response.has_error():
                _check(config.output, response.output_tensors(), batch=True)
                texts = len(request.inputs()[0].as_numpy())
                assert {tensor.shape()[0] for tensor in response.output_tensors()} == {texts}
        return responses

    def close(self) -> None:
        for model in self._models.values():
            model.finalize()

    def run_graph(
        self, name: str, version: int, tensors: Sequence[Tensor], wanted: Sequence[str], memory: str | None
    ) -> InferenceResponse:
        if name not in self._graphs or version not in (-1, 1):
            return InferenceResponse(error=TritonError(f"Request for unknown model: '{name}' is not found"))
        if self.fail is not None:
            return InferenceResponse(error=TritonError(self.fail))
        config = self._configs[name]
        assert config.max_batch_size == 0 and wanted
        _check(config.input, tensors, batch=False)
        assert {tensor.name() for tensor in tensors} == {each.name for each in config.input}
        self.streams.append({tensor.name(): tuple(tensor.shape()) for tensor in tensors})
        arrays = self._graphs[name].run(list(wanted), {tensor.name(): tensor.as_numpy() for tensor in tensors})
        outputs = [Tensor(name, array + np.float32(self.shift)) for name, array in zip(wanted, arrays, strict=True)]
        _check(config.output, outputs, batch=False)
        for output in outputs:
            output._on_cpu = memory == TRITONSERVER_MEMORY_CPU  # a graph's answer may lie anywhere unless one asks
        return InferenceResponse(outputs)


def _check(declared: Sequence[Any], tensors: Sequence[Tensor], *, batch: bool) -> None:
    """Types, ranks and sizes, as the configuration has them; `batch`: with a batch's dimension before them."""
    by_name = {each.name: each for each in declared}
    for tensor in tensors:
        config = by_name[tensor.name()]
        assert TYPES[tensor._array.dtype] == model_config_pb2.DataType.Name(config.data_type), tensor.name()
        sizes = tensor.shape()[1:] if batch else tensor.shape()
        assert len(sizes) == len(config.dims), (tensor.name(), sizes)
        assert all(wanted in (-1, size) for size, wanted in zip(sizes, config.dims, strict=True)), (config, sizes)


@contextmanager
def triton(repository: Path) -> Iterator[Server]:
    """A server of this repository, while `triton_python_backend_utils` is this module."""
    name = "triton_python_backend_utils"
    before: ModuleType | None = sys.modules.get(name)
    sys.modules[name] = sys.modules[__name__]
    Logger.lines.clear()
    try:
        server = Server(repository)
        try:
            yield server
        finally:
            server.close()
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
