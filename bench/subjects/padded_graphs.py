"""optimum-onnx's padded graph as two subjects: on ONNX Runtime, and on OpenVINO.

Both get their tokens from `tokenizers` directly, which is less work than through their usual tokenizer classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nopad.bench.subjects.spec import Spec
from nopad.model.head import PER_TOKEN
from nopad.runtime.engines.onnx_session import STOP_SPINNING, session_options
from nopad.runtime.engines.openvino import import_openvino, openvino_core
from nopad.runtime.types import FloatArray, Text


class _PaddedGraph:
    """What the runners of padded ONNX graphs share: tokens as padded arrays."""

    precision = "fp32"

    def __init__(self, spec: Spec) -> None:
        from tokenizers import Tokenizer

        from nopad.runtime.bundle import open_bundle

        self._per_token = spec.task in PER_TOKEN
        self._tokenizer: Any = Tokenizer.from_file(str(Path(spec.path) / "tokenizer.json"))
        self._tokenizer.enable_truncation(spec.max_length)
        pad = open_bundle(spec.path, verify=False).manifest.pad_token_id
        self._tokenizer.enable_padding(pad_id=pad, pad_token=self._tokenizer.id_to_token(pad) or "[PAD]")

    def _encode(self, texts: Sequence[Text]) -> dict[str, Any]:
        encodings = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings], dtype=np.int64),
        }

    def _rows(self, logits: Any, mask: Any) -> list[FloatArray]:
        if not self._per_token:
            return list(logits)
        return [row[:length] for row, length in zip(logits, mask.sum(1), strict=True)]

    def tokens(self, texts: Sequence[Text]) -> tuple[int, int]:
        """Real and computed tokens: every text counts as long as the longest."""
        mask = self._encode(texts)["attention_mask"]
        return int(mask.sum()), int(mask.size)


class OptimumRunner(_PaddedGraph):
    """optimum-onnx's padded graph on ONNX Runtime; on a GPU if its provider is there."""

    def __init__(self, spec: Spec) -> None:
        ort: Any = importlib.import_module("onnxruntime")
        super().__init__(spec)
        # No spinning after a run: it would be on the cores of the next subject.
        options = session_options(ort, spec.threads, STOP_SPINNING)
        providers = [name for name in ("CUDAExecutionProvider",) if name in ort.get_available_providers()]
        self._session: Any = ort.InferenceSession(
            str(Path(spec.path) / (spec.file or "")), options, providers=[*providers, "CPUExecutionProvider"]
        )
        self._input_names = [node.name for node in self._session.get_inputs()]
        self.version = f"onnxruntime {ort.__version__}"

    def threads(self) -> int:
        """Threads of the session."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def run(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Logits of each text, all in one padded call."""
        feeds = self._encode(texts)
        logits = self._session.run(None, {name: feeds[name] for name in self._input_names})[0]
        return self._rows(logits, feeds["attention_mask"])

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class OpenVinoRunner(_PaddedGraph):
    """OpenVINO on optimum-onnx's padded graph, tuned for latency: in fp32, or with its default hint of a precision."""

    def __init__(self, spec: Spec) -> None:
        core = openvino_core()
        super().__init__(spec)
        settings = {"PERFORMANCE_HINT": "LATENCY", **openvino_settings(spec)}
        self._compiled: Any = core.compile_model(str(Path(spec.path) / (spec.file or "")), "CPU", settings)
        self.precision = openvino_precision(self._compiled)
        self._request: Any = self._compiled.create_infer_request()
        self._input_names = [port.get_any_name() for port in self._compiled.inputs]
        self.version = openvino_version()

    def threads(self) -> int:
        """Threads of the compiled model."""
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def run(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Logits of each text, all in one padded call."""
        feeds = self._encode(texts)
        self._request.infer({name: feeds[name] for name in self._input_names})
        return self._rows(self._request.get_output_tensor(0).data.copy(), feeds["attention_mask"])

    def close(self) -> None:
        """Drop the compiled model."""
        self._request = self._compiled = None


def openvino_settings(spec: Spec) -> dict[str, Any]:
    """OpenVINO's threads, and fp32 where that is asked for: its default is bf16 on a CPU that has it."""
    hint = {"INFERENCE_PRECISION_HINT": "f32"} if spec.precision == "fp32" else {}
    return {"INFERENCE_NUM_THREADS": spec.threads, **hint}


def openvino_precision(compiled: Any) -> str:
    """The precision that a compiled model computes in: fp32, bf16, fp16."""
    name: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return {"f32": "fp32", "f16": "fp16"}.get(name, name)


def openvino_version() -> str:
    """The library's name and release."""
    return f"openvino {import_openvino().__version__.split('-')[0]}"
