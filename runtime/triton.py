"""The Python model of a Triton model repository: texts -> packed micro-batches -> the graph, asked through Triton.

`nopad export --triton` writes the repository (docs/triton.md). Its `model.py` imports `TritonPythonModel` from here, so
tokenizer, packing and decoding are those of `nopad.runtime`; the graph is a model of the server's own, asked by
business logic scripting (BLS). `triton_python_backend_utils` is triton-inference-server/python_backend's. No engine's
library is imported.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nopad.model.packing import PackedBatch
from nopad.runtime.answer_tensors import TEXT, TEXT_PAIR, outputs_of
from nopad.runtime.batching import GPU_TOKENS, cpu_token_budget
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.engines.base import GPU_TARGETS
from nopad.runtime.engines.chain import Candidate
from nopad.runtime.engines.feeds import graph_inputs, on_stream
from nopad.runtime.errors import BundleError, EngineError, NopadError, ShapeError, TextError
from nopad.runtime.inference import Inference
from nopad.runtime.manifest import Artifact
from nopad.runtime.model import Model
from nopad.runtime.profiles import choose_profile, shape_of
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.selfcheck import self_check
from nopad.runtime.tokenizer import open_bundle_encoder
from nopad.runtime.types import Failure, FloatArray, Text

# Parameters of the model's configuration: the graph's model, and the bundle's file that it runs.
GRAPH, FILE = "graph", "file"


class TritonPythonModel:
    """What Triton's Python backend makes of `model.py`, one for each instance, and calls from one thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle's files beside `model.py`. Raises `BundleError` or a subclass: the model is not loaded.

        `args`: the backend's, with `model_repository` (the model's folder), `model_version`, `model_config` (JSON).
        """
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"])["parameters"]
        self._bundle = open_bundle(Path(args["model_repository"]) / args["model_version"], artifacts=False)
        self._encoder = open_bundle_encoder(self._bundle)
        self._graph = GraphModel(
            self._pb,
            parameters[GRAPH]["string_value"],
            int(args["model_version"]),
            artifact=_artifact(self._bundle, parameters[FILE]["string_value"]),
            pad_token_id=self._bundle.manifest.pad_token_id,
        )
        self._model: Model | None = None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request. The texts of all are packed into common micro-batches; a bad one fails alone."""
        asked: list[list[Text] | NopadError] = []
        for request in requests:
            try:
                asked.append(self._texts(request))
            except TextError as error:
                asked.append(error)
        texts = [text for each in asked if isinstance(each, list) for text in each]
        try:
            answers = iter(list(self._opened().results(texts)) if texts else [])
        except NopadError as error:  # the engine's; what is wrong with a text is in its place among the answers
            return [self._refused(each if isinstance(each, NopadError) else error) for each in asked]
        return [
            self._refused(each) if isinstance(each, NopadError) else self._answered(list(islice(answers, len(each))))
            for each in asked
        ]

    def finalize(self) -> None:
        """Release the model."""
        if self._model is not None:
            self._model.close()

    def _opened(self) -> Model:
        """The model, checked against the bundle's probes by the first request: BLS works only while one is executed.

        Raises `EngineError` where the graph does not answer as it was verified; the next request tries again.
        """
        if self._model is None:
            artifact = self._graph.artifact
            candidate = Candidate(name=self._graph.name, artifact=artifact, open=lambda: self._graph)
            inference = Inference(bundle=self._bundle, encoder=self._encoder, candidates=[candidate])
            model = Model(inference, prompt=resolve_prompt(self._bundle.manifest, None, None))
            self._pb.Logger.log_info(f"nopad: {self_check(model).note}")
            self._model = model
        return self._model

    def _texts(self, request: Any) -> list[Text]:
        first, second = self._strings(request, TEXT.name), self._strings(request, TEXT_PAIR.name)
        if not first:
            raise TextError(f"the request has no texts in '{TEXT.name}'")
        if second is None:
            return list(first)
        if len(first) != len(second):
            raise TextError(f"'{TEXT.name}' has {len(first)} elements, '{TEXT_PAIR.name}' {len(second)}")
        return list(zip(first, second, strict=True))

    def _strings(self, request: Any, name: str) -> list[str] | None:
        tensor = self._pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        strings = []
        for index, element in enumerate(tensor.as_numpy().ravel()):
            try:
                strings.append(element.decode("utf-8"))
            except UnicodeDecodeError:
                raise TextError(f"input '{name}': text {index} is not valid UTF-8") from None
        return strings

    def _answered(self, answers: Sequence[Any]) -> Any:
        for index, answer in enumerate(answers):
            if isinstance(answer, Failure):
                error = answer.error
                return self._refused(TextError(f"text {index}: {error}") if isinstance(error, TextError) else error)
        manifest = self._bundle.manifest
        tensors = []
        for output in outputs_of(manifest.task, manifest.labels, answers):
            values: Any = output.values
            if not isinstance(values, np.ndarray):  # each text's own row, as Triton wants it of a batch
                values = np.array([value.encode("utf-8") for value in values], dtype=np.object_).reshape(-1, 1)
            tensors.append(self._pb.Tensor(output.name, values))
        return self._pb.InferenceResponse(output_tensors=tensors)

    def _refused(self, error: Exception) -> Any:
        codes = self._pb.TritonError
        code = codes.INVALID_ARG if isinstance(error, TextError) else codes.INTERNAL
        return self._pb.InferenceResponse(output_tensors=[], error=codes(str(error), code))


class GraphModel:
    """An `Engine`: the graph, a model of the same Triton server and of the same version, asked through BLS."""

    name = "triton"
    threads: int | None = None

    def __init__(self, pb: Any, model: str, version: int, *, artifact: Artifact, pad_token_id: int) -> None:
        self.artifact = artifact
        self.profiles = artifact.profiles
        self.token_budget = GPU_TOKENS if artifact.target in GPU_TARGETS else cpu_token_budget(os.cpu_count() or 1)
        self._pb, self._model, self._version, self._pad_token_id = pb, model, version, pad_token_id

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits of a batch. Raises `EngineError` with what Triton says, `ShapeError` for one that fits no profile."""
        if self.profiles and choose_profile(self.profiles, batch) is None:
            raise ShapeError(f"{self._model} has no profile for {shape_of(batch)}; send shorter texts")
        feeds = graph_inputs(batch, self.artifact, self._pad_token_id)
        (output,) = self.artifact.outputs
        request = self._pb.InferenceRequest(
            model_name=self._model,
            model_version=self._version,
            requested_output_names=[output],
            inputs=[self._pb.Tensor(name, np.ascontiguousarray(values)) for name, values in feeds.items()],
            # A graph on a GPU would leave its logits there, where numpy cannot read them.
            preferred_memory=self._pb.PreferredMemory(self._pb.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(f"Triton's model {self._model} failed: {response.error().message()}")
        tensor = self._pb.get_output_tensor_by_name(response, output)
        if tensor is None:
            raise EngineError(f"Triton's model {self._model} answered without its output {output!r}")
        # A copy: the tensor's memory is the server's.
        return on_stream(np.array(tensor.as_numpy(), dtype=np.float32), batch, self.artifact)

    def close(self) -> None:
        """Nothing: the graph's model is the server's."""


def _artifact(bundle: Bundle, file: str) -> Artifact:
    for artifact in bundle.manifest.artifacts:
        if artifact.file == file:
            return artifact
    raise BundleError(f"the manifest in {bundle.path} knows no {file}; write the model repository again")
