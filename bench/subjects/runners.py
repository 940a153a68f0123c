"""What is opened and asked: nopad's engines and each competitor, behind one face. Libraries are imported when opened.

A runner gets strings and gives logits, so its time holds tokenization. transformers pads a call to its longest text,
which is the best that a user gets without asking; the padded graphs get their tokens from `tokenizers` directly, which
is less work than their usual tokenizer classes do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nopad.model.packages import COMPETITOR_NEEDS, importable, install_hint, missing
from nopad.model.packing import round_up
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How to open one subject; plain values, so that a child process can be told."""

    name: str
    runner: str  # a key of RUNNERS
    path: str  # bundle or checkpoint folder
    task: str
    threads: int
    max_length: int
    model: str = ""  # modernbert, bert
    precision: str = "fp32"
    engine: str = ""  # nopad: of its registry; transformers: attention
    file: str | None = None  # nopad: of the bundle; the padded graphs: the ONNX file
    target: str = ""  # nopad: of the artifact
    allow_unverified: bool = False
    pooling: str | None = None  # of embeddings
    normalize: bool = False
    own_tokenizer: bool = False  # tokens are not the bundle's


class Runner(Protocol):
    """One opened subject."""

    version: str  # of its library
    precision: str  # as it was opened

    def threads(self) -> int:
        """Threads as the library reports them now."""
        ...

    def run(self, texts: Sequence[str]) -> list[FloatArray]:
        """Logits of each text: [labels], or [tokens, labels] for tasks per token."""
        ...

    def tokens(self, texts: Sequence[str]) -> tuple[int, int]:
        """Real tokens of the texts, and those that one call computes, padding and filler included."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class NopadRunner:
    """An engine of a bundle, as `nopad.runtime.load` opens it."""

    def __init__(self, spec: Spec) -> None:
        from nopad.runtime.predictor import load

        self._spec = spec
        self._model: Any = load(
            spec.path,
            engine=spec.engine,
            precision=spec.precision,
            file=spec.file,
            threads=spec.threads,
            fallback=False,
            allow_unverified=spec.allow_unverified,
        )
        self.version = importlib.metadata.version("nopad")
        self.precision = self._model.artifact.precision

    def threads(self) -> int:
        """Of its ONNX Runtime session, or of torch; other engines compute on a GPU."""
        if self._spec.engine == "torch":
            return int(importlib.import_module("torch").get_num_threads())
        if not self._spec.engine.startswith("onnx"):
            return self._spec.threads
        engine = next(link.engine for link in self._model._chain._links if link.engine is not None)
        return int(engine._session.get_session_options().intra_op_num_threads)

    def run(self, texts: Sequence[str]) -> list[FloatArray]:
        """Logits of each text."""
        logits: list[FloatArray] = self._model.logits(texts)
        return logits

    def tokens(self, texts: Sequence[str]) -> tuple[int, int]:
        """Streams are filled up to whole attention blocks."""
        lengths = [item.used for item in self._model.encode(texts)]
        multiple, padded = self._model.token_multiple, self._model.artifact.layout == "padded"
        computed = 0
        for batch in self._model.plan(lengths):
            members = [lengths[index] for index in batch]
            computed += len(members) * max(members) if padded else round_up(sum(members), multiple)
        return sum(lengths), computed

    def close(self) -> None:
        """Close the model."""
        self._model.close()


class TransformersRunner:
    """transformers with one of its attentions: `sdpa`, `eager` or `flash_attention_2`; half precision on a GPU."""

    def __init__(self, spec: Spec) -> None:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        self._torch = torch
        cuda = torch.cuda.is_available()
        if spec.engine == "flash_attention_2" and not cuda:
            raise EnvironmentProblem(
                "FlashAttention-2 needs a CUDA GPU of compute capability 8.0 or newer; none is here"
            )
        torch.set_num_threads(spec.threads)
        self.version = transformers.__version__
        self._max_length = spec.max_length
        self._per_token = spec.task in ("token-classification", "fill-mask")
        self._spec = spec
        self._device = torch.device("cuda" if cuda else "cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, self._tokenizer = open_transformers(spec, torch.float16 if cuda else torch.float32)
        self._model: Any = model.to(self._device).eval()
        self._takes = set(inspect.signature(self._model.forward).parameters)  # not every model knows token types
        self.precision = "fp16" if cuda else "fp32"

    def threads(self) -> int:
        """Of PyTorch, for the whole process."""
        return int(self._torch.get_num_threads())

    def _encode(self, texts: Sequence[str]) -> Any:
        return self._tokenizer(
            list(texts), truncation=True, max_length=self._max_length, padding=True, return_tensors="pt"
        )

    def run(self, texts: Sequence[str]) -> list[FloatArray]:
        """Logits of each text, all in one padded call."""
        encoded = self._encode(texts)
        with self._torch.inference_mode():
            inputs = {name: value.to(self._device) for name, value in encoded.items() if name in self._takes}
            rows = self._answer(inputs).float().cpu().numpy()  # which waits for a GPU
        if not self._per_token:
            return list(rows)
        lengths = encoded["attention_mask"].sum(1).tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def _answer(self, inputs: dict[str, Any]) -> Any:
        out = self._model(**inputs)
        if self._spec.task != "embeddings":
            return out.logits
        hidden, mask = out.last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
        rows = (hidden * mask).sum(1) / mask.sum(1) if self._spec.pooling == "mean" else hidden[:, 0]
        return self._torch.nn.functional.normalize(rows, dim=-1) if self._spec.normalize else rows

    def tokens(self, texts: Sequence[str]) -> tuple[int, int]:
        """Every text counts as long as the longest."""
        mask = self._encode(texts)["attention_mask"]
        return int(mask.sum()), int(mask.numel())

    def close(self) -> None:
        """Drop the weights, and give a GPU's memory back."""
        self._model = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


class _PaddedGraph:
    """What the runners of padded ONNX graphs share: tokens as padded arrays."""

    precision = "fp32"

    def __init__(self, spec: Spec) -> None:
        from tokenizers import Tokenizer

        from nopad.runtime.bundle import open_bundle

        self._per_token = spec.task in ("token-classification", "fill-mask")
        self._tokenizer: Any = Tokenizer.from_file(str(Path(spec.path) / "tokenizer.json"))
        self._tokenizer.enable_truncation(spec.max_length)
        pad = open_bundle(spec.path, verify=False).manifest.pad_token_id
        self._tokenizer.enable_padding(pad_id=pad, pad_token=self._tokenizer.id_to_token(pad) or "[PAD]")

    def _encode(self, texts: Sequence[str]) -> dict[str, Any]:
        found = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([one.ids for one in found], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in found], dtype=np.int64),
            "token_type_ids": np.array([one.type_ids for one in found], dtype=np.int64),
        }

    def _rows(self, logits: Any, mask: Any) -> list[FloatArray]:
        if not self._per_token:
            return list(logits)
        return [row[:length] for row, length in zip(logits, mask.sum(1), strict=True)]

    def tokens(self, texts: Sequence[str]) -> tuple[int, int]:
        """Every text counts as long as the longest."""
        mask = self._encode(texts)["attention_mask"]
        return int(mask.sum()), int(mask.size)


class OptimumRunner(_PaddedGraph):
    """optimum-onnx's padded graph on ONNX Runtime; on a GPU if that has its provider."""

    def __init__(self, spec: Spec) -> None:
        ort: Any = importlib.import_module("onnxruntime")
        super().__init__(spec)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = spec.threads
        # Else its threads spin on after a run, on the cores of the next subject.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers = [one for one in ("CUDAExecutionProvider",) if one in ort.get_available_providers()]
        self._session: Any = ort.InferenceSession(
            str(Path(spec.path) / (spec.file or "")), options, providers=[*providers, "CPUExecutionProvider"]
        )
        self._wanted = [node.name for node in self._session.get_inputs()]
        self.version = f"onnxruntime {ort.__version__}"

    def threads(self) -> int:
        """Of the session."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def run(self, texts: Sequence[str]) -> list[FloatArray]:
        """Logits of each text, all in one padded call."""
        feeds = self._encode(texts)
        logits = self._session.run(None, {name: feeds[name] for name in self._wanted})[0]
        return self._rows(logits, feeds["attention_mask"])

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class OpenVinoRunner(_PaddedGraph):
    """OpenVINO on optimum-onnx's padded graph, tuned for latency, in fp32 also where its default is bf16."""

    def __init__(self, spec: Spec) -> None:
        openvino: Any = importlib.import_module("openvino")
        super().__init__(spec)
        settings = {
            "INFERENCE_NUM_THREADS": spec.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled: Any = openvino.Core().compile_model(str(Path(spec.path) / (spec.file or "")), "CPU", settings)
        self._request: Any = self._compiled.create_infer_request()
        self._wanted = [port.get_any_name() for port in self._compiled.inputs]
        self.version = f"openvino {openvino.__version__.split('-')[0]}"

    def threads(self) -> int:
        """Of the compiled model."""
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def run(self, texts: Sequence[str]) -> list[FloatArray]:
        """Logits of each text, all in one padded call."""
        feeds = self._encode(texts)
        self._request.infer({name: feeds[name] for name in self._wanted})
        return self._rows(self._request.get_output_tensor(0).data.copy(), feeds["attention_mask"])

    def close(self) -> None:
        """Drop the compiled model."""
        self._request = self._compiled = None


# How a spec's `runner` is opened.
RUNNERS: dict[str, Callable[[Spec], Runner]] = {
    "nopad": NopadRunner,
    "transformers": TransformersRunner,
    "optimum": OptimumRunner,
    "openvino": OpenVinoRunner,
}
# What each imports before it opens anything: its import time.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "nopad": ("nopad.runtime.predictor", "onnxruntime"),
    "transformers": ("torch", "transformers", "transformers.models.auto.modeling_auto"),
    "optimum": ("tokenizers", "onnxruntime"),
    "openvino": ("tokenizers", "openvino"),
}


def lacks(spec: Spec) -> str | None:
    """What is not installed that this subject needs, and what to do; None if nothing is known to be."""
    if spec.engine == "flash_attention_2" and not importable("flash_attn"):
        return "FlashAttention-2 (package flash-attn) is not installed; it needs a CUDA GPU of compute capability 8.0"
    need = COMPETITOR_NEEDS.get(spec.runner)  # nopad's engines say for themselves what they need
    absent = missing(need.modules) if need is not None else []
    return f"{', '.join(absent)} not installed: {install_hint(need.extra)}" if need and absent else None


def import_libraries(spec: Spec) -> None:
    """Import what the runner is going to need; what is missing is said when it is opened."""
    names = LIBRARIES[spec.runner] if spec.engine != "torch" else ("nopad.runtime.predictor", "torch", "safetensors")
    modeling = f"transformers.models.{spec.model}.modeling_{spec.model}"
    for name in (*names, *((modeling,) if spec.runner == "transformers" else ())):
        try:
            importlib.import_module(name)
        except ImportError:
            continue


def open_transformers(spec: Spec, dtype: Any) -> tuple[Any, Any]:
    """Model and tokenizer. Raises `EnvironmentProblem` where transformers does not give what is asked for."""
    import transformers

    from nopad.export.reference.transformers import CLASSES, unread_keys
    from nopad.model.checkpoint.json_files import read_raw_config
    from nopad.model.checkpoint.tokenizer import open_tokenizer

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    folder = Path(spec.path)
    config = transformers.AutoConfig.from_pretrained(folder)
    unread = unread_keys(read_raw_config(folder), config)
    if unread:
        raise EnvironmentProblem(
            f"transformers {transformers.__version__} ignores {unread} in {folder}/config.json, so it computes another "
            "model; use transformers 5"
        )
    if hasattr(config, "reference_compile"):
        config.reference_compile = False  # transformers 4 would compile, which needs a C compiler
    model = getattr(transformers, CLASSES[spec.task]).from_pretrained(
        folder,
        config=config,
        attn_implementation=spec.engine,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
    )
    if model.config._attn_implementation != spec.engine:
        raise EnvironmentProblem(f"transformers {transformers.__version__} gives {folder} no {spec.engine} attention")
    tokenizer = open_tokenizer(folder)
    tokenizer.model_max_length = 1 << 30  # a limit is given with every call
    if tokenizer.pad_token is None:  # any token will do, it is masked
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id or 0)
    return model, tokenizer
