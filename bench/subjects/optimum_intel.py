"""optimum-intel as a subject: transformers' call and tokenizer, on the graph that it exported to OpenVINO."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

from nopad.bench.subjects.exports import OV_CLASSES
from nopad.bench.subjects.padded_graphs import openvino_precision, openvino_settings, openvino_version
from nopad.bench.subjects.spec import Spec
from nopad.bench.subjects.transformers import TransformersRunner, open_padding_tokenizer
from nopad.model.head import PER_TOKEN
from nopad.model.packages import version_of
from nopad.runtime.engines.openvino import without_telemetry


class OptimumIntelRunner(TransformersRunner):
    """A model class of optimum-intel, with the library's own hints, or forced to fp32."""

    def __init__(self, spec: Spec) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._max_length, self._per_token, self._spec = spec.max_length, spec.task in PER_TOKEN, spec
        self._device = self._torch.device("cpu")
        with warnings.catch_warnings(), without_telemetry():
            warnings.simplefilter("ignore")
            library: Any = importlib.import_module("optimum.intel")
            self._model = getattr(library, OV_CLASSES[spec.task]).from_pretrained(
                spec.path, export=False, compile=True, ov_config=openvino_settings(spec), local_files_only=True
            )
        self._tokenizer = open_padding_tokenizer(Path(spec.path), self._model.config.pad_token_id)
        self._takes = set(self._model.input_names)
        self.precision = openvino_precision(self._model.request)
        self.version = f"optimum-intel {version_of('optimum-intel')}, {openvino_version()}"

    def threads(self) -> int:
        """Threads of the compiled model."""
        return int(self._model.request.get_property("INFERENCE_NUM_THREADS"))
