"""Libraries of embeddings as subjects: sentence-transformers with each of its backends, and fastembed.

Both sort or cut a call into batches by themselves, with their own defaults.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nopad.bench.subjects.padded_graphs import openvino_precision, openvino_settings, openvino_version
from nopad.bench.subjects.spec import Spec
from nopad.model.packages import version_of
from nopad.runtime.engines.onnx_session import STOP_SPINNING, session_options
from nopad.runtime.engines.openvino import without_telemetry
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.types import FloatArray, Text

ST_BATCH = 32  # `batch_size` of `encode`, by default
FASTEMBED_BATCH = 256  # the same of `embed`


class SentenceTransformersRunner:
    """`SentenceTransformer.encode`, on torch (fp32, bf16), ONNX Runtime or OpenVINO; on the CPU."""

    def __init__(self, spec: Spec) -> None:
        library: Any = importlib.import_module("sentence_transformers")
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(spec.threads)
        self._backend = spec.engine
        with warnings.catch_warnings(), without_telemetry():  # it imports OpenVINO only here
            warnings.simplefilter("ignore")
            self._model: Any = library.SentenceTransformer(
                spec.path, device="cpu", local_files_only=True, backend=spec.engine, model_kwargs=_model_kwargs(spec)
            )
            self._inner: Any = self._model[0].auto_model
        self._model.max_seq_length = spec.max_length
        self._encode: Any = getattr(self._model, "preprocess", None) or self._model.tokenize  # version 6, and before
        self.precision = openvino_precision(self._inner.request) if spec.engine == "openvino" else spec.precision
        beneath = {"onnx": f", onnxruntime {version_of('onnxruntime')}", "openvino": f", {openvino_version()}"}
        self.version = f"sentence-transformers {library.__version__}{beneath.get(spec.engine, '')}"

    def threads(self) -> int:
        """Threads of the backend."""
        if self._backend == "onnx":
            return int(self._inner.session.get_session_options().intra_op_num_threads)
        if self._backend == "openvino":
            return int(self._inner.request.get_property("INFERENCE_NUM_THREADS"))
        return int(self._torch.get_num_threads())

    def run(self, texts: Sequence[Text]) -> list[FloatArray]:
        """The embedding of each text."""
        rows: list[FloatArray] = list(self._model.encode(list(texts), show_progress_bar=False, batch_size=ST_BATCH))
        return rows

    def tokens(self, texts: Sequence[Text]) -> tuple[int, int]:
        """Real and computed tokens: `encode` sorts by length in characters, then pads each batch."""
        ordered = sorted(texts, key=len, reverse=True)
        masks = [self._encode(ordered[at : at + ST_BATCH])["attention_mask"] for at in range(0, len(ordered), ST_BATCH)]
        return sum(int(mask.sum()) for mask in masks), sum(int(mask.numel()) for mask in masks)

    def close(self) -> None:
        """Drop the model."""
        self._model = self._inner = self._encode = None


def _model_kwargs(spec: Spec) -> dict[str, Any]:
    if spec.engine == "openvino":
        return {"export": False, "ov_config": openvino_settings(spec)}
    if spec.engine == "onnx":
        ort: Any = importlib.import_module("onnxruntime")
        options = session_options(ort, spec.threads, STOP_SPINNING)
        return {"export": False, "provider": "CPUExecutionProvider", "session_options": options}
    return {"dtype": "bfloat16" if spec.precision == "bf16" else "float32"}


class FastembedRunner:
    """fastembed on the graph that sentence-transformers exports, registered as a custom model of local files."""

    precision = "fp32"

    def __init__(self, spec: Spec) -> None:
        library: Any = importlib.import_module("fastembed")
        types: Any = importlib.import_module("fastembed.common.model_description")
        pooling = {"mean": types.PoolingType.MEAN, "cls": types.PoolingType.CLS}.get(spec.pooling or "")
        if pooling is None:
            raise EnvironmentProblem(f"fastembed has no pooling {spec.pooling}; it has mean and cls")
        name = f"nopad/{Path(spec.path).name}"
        if not any(model["model"].lower() == name for model in library.TextEmbedding.list_supported_models()):
            library.TextEmbedding.add_custom_model(
                model=name,
                pooling=pooling,
                normalization=spec.normalize,
                sources=types.ModelSource(hf=name),  # asked for nothing: the path below is given
                dim=json.loads((Path(spec.path) / "config.json").read_bytes())["hidden_size"],
                model_file=spec.file,
            )
        self._model: Any = library.TextEmbedding(
            name, specific_model_path=spec.path, threads=spec.threads, providers=["CPUExecutionProvider"]
        )
        self._inner: Any = self._model.model
        self._inner.tokenizer.enable_truncation(spec.max_length)
        self.version = f"fastembed {version_of('fastembed')}, onnxruntime {version_of('onnxruntime')}"

    def threads(self) -> int:
        """Threads of the session."""
        return int(self._inner.model.get_session_options().intra_op_num_threads)

    def run(self, texts: Sequence[Text]) -> list[FloatArray]:
        """The embedding of each text."""
        return list(self._model.embed(list(texts), batch_size=FASTEMBED_BATCH))

    def tokens(self, texts: Sequence[Text]) -> tuple[int, int]:
        """Real and computed tokens: a batch is padded to its longest text."""
        real = computed = 0
        for at in range(0, len(texts), FASTEMBED_BATCH):
            masks = [
                item.attention_mask
                for item in self._inner.tokenizer.encode_batch(list(texts[at : at + FASTEMBED_BATCH]))
            ]
            real, computed = real + sum(map(sum, masks)), computed + sum(map(len, masks))
        return real, computed

    def close(self) -> None:
        """Drop the session."""
        self._model = self._inner = None
