"""transformers as a subject. It pads a call to its longest text, which is the best that users get by default."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nopad.bench.subjects.spec import Spec
from nopad.model.head import BARE, PER_TOKEN
from nopad.model.packages import version_of
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.types import FloatArray, Text

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class TransformersRunner:
    """transformers with one of its attentions, compiled or not; in fp16 for fp32 on a GPU."""

    def __init__(self, spec: Spec) -> None:
        torch: Any = importlib.import_module("torch")
        self._torch = torch
        cuda = torch.cuda.is_available()
        if spec.engine == "flash_attention_2" and not cuda:
            raise EnvironmentProblem(
                "FlashAttention-2 needs a CUDA GPU of compute capability 8.0 or newer; none is here"
            )
        torch.set_num_threads(spec.threads)
        self._max_length = spec.max_length
        self._per_token = spec.task in PER_TOKEN
        self._spec = spec
        self._device = torch.device("cuda" if cuda else "cpu")
        self.precision = "fp16" if cuda and spec.precision == "fp32" else spec.precision
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, self._tokenizer = _open(spec, getattr(torch, _DTYPES[self.precision]))
        self.version = importlib.import_module("transformers").__version__
        self._model: Any = model.to(self._device).eval()
        self._takes = set(inspect.signature(self._model.forward).parameters)  # not every model knows token types
        if spec.compiler:
            if spec.compiler != "inductor":
                importlib.import_module(spec.compiler)  # which makes its backend known to torch.compile
                self.version += f", {spec.compiler} {version_of(spec.compiler)}"
            self._model = torch.compile(self._model, backend=spec.compiler, dynamic=True)

    def threads(self) -> int:
        """Threads of PyTorch, for the whole process."""
        return int(self._torch.get_num_threads())

    def _encode(self, texts: Sequence[Text]) -> Any:
        columns = zip(*((text,) if isinstance(text, str) else text for text in texts), strict=True)
        return self._tokenizer(
            *map(list, columns), truncation=True, max_length=self._max_length, padding=True, return_tensors="pt"
        )

    def run(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Logits of each text, all in one padded call."""
        encoded = self._encode(texts)
        with self._torch.inference_mode():
            inputs = {name: value.to(self._device) for name, value in encoded.items() if name in self._takes}
            rows = self._answer(inputs).float().cpu().numpy()  # `cpu` waits for a GPU
        if not self._per_token:
            return list(rows)
        lengths = encoded["attention_mask"].sum(1).tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def _answer(self, inputs: dict[str, Any]) -> Any:
        out = self._model(**inputs)
        if self._spec.task not in BARE:
            return out.logits
        if self._spec.task == "token-embeddings":
            return out.last_hidden_state
        hidden, mask = out.last_hidden_state.float(), inputs["attention_mask"].unsqueeze(-1)
        rows = (hidden * mask).sum(1) / mask.sum(1) if self._spec.pooling == "mean" else hidden[:, 0]
        return self._torch.nn.functional.normalize(rows, dim=-1) if self._spec.normalize else rows

    def tokens(self, texts: Sequence[Text]) -> tuple[int, int]:
        """Real and computed tokens: every text counts as long as the longest."""
        mask = self._encode(texts)["attention_mask"]
        return int(mask.sum()), int(mask.numel())

    def close(self) -> None:
        """Drop the weights, and release a GPU's memory."""
        self._model = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


def _open(spec: Spec, dtype: Any) -> tuple[Any, Any]:
    """Model and tokenizer. Raises `EnvironmentProblem` if transformers has no such attention for it."""
    import transformers

    from nopad.export.errors import ExportError
    from nopad.export.reference.transformers import CLASSES, open_config
    from nopad.model.checkpoint.json_files import read_raw_config

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    folder = Path(spec.path)
    try:
        config = open_config(folder, read_raw_config(folder))
    except ExportError as error:
        raise EnvironmentProblem(str(error)) from None
    tokenizer = open_padding_tokenizer(folder, config.pad_token_id)
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
    return model, tokenizer


def open_padding_tokenizer(folder: Path, pad_token_id: int | None) -> Any:
    """The checkpoint's tokenizer as transformers opens it, able to pad and with no limit of its own."""
    from nopad.model.checkpoint.tokenizer import open_tokenizer

    tokenizer: Any = open_tokenizer(folder)
    tokenizer.model_max_length = 1 << 30  # every call sets the limit
    if tokenizer.pad_token is None:  # any token will do, it is masked
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id or 0)
    return tokenizer
