"""How a subject is opened (`Spec`), and the opened subject (`Runner`). Plain values, a protocol, no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nopad.runtime.types import FloatArray, Text


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How to open a subject; plain values, so that they reach a child process as JSON."""

    name: str
    runner: str  # a key of RUNNERS
    path: str  # bundle or checkpoint folder
    task: str
    threads: int
    max_length: int
    model: str = ""  # modernbert, bert
    precision: str = "fp32"  # asked for; auto: the library's own choice
    engine: str = ""  # nopad: of its registry; transformers: attention; sentence-transformers: backend
    compiler: str = ""  # transformers: backend of torch.compile
    need: str = ""  # a key of COMPETITOR_NEEDS; nopad's engines have their own
    file: str | None = None  # nopad: of the bundle; the padded graphs: the ONNX file
    target: str = ""  # nopad: of the artifact
    allow_unverified: bool = False
    pooling: str | None = None  # of embeddings
    normalize: bool = False
    own_tokenizer: bool = False  # tokens are not the bundle's


class Runner(Protocol):
    """An opened subject."""

    version: str  # of its library
    precision: str  # as it was opened

    def threads(self) -> int:
        """Threads as the library reports them now."""
        ...

    def run(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Logits of each text: [labels], or [tokens, labels] for tasks per token."""
        ...

    def tokens(self, texts: Sequence[Text]) -> tuple[int, int]:
        """Real tokens of the texts, and those that one call computes, padding and filler included."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...
