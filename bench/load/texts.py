"""The texts that requests carry: from files, else the real texts or generated words of `nopad bench`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nopad.bench.load.client import Ask
from nopad.bench.load.protocols import Protocol
from nopad.bench.load.schema import Workload
from nopad.bench.workloads import RAGGED, Source
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.data.labelled import read_texts
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError, TextError, UsageError
from nopad.runtime.tokenizer import open_bundle_encoder


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Texts by source; `tokens` are those of each text, where there is a tokenizer."""

    texts: tuple[str, ...]
    sources: tuple[tuple[str, int], ...]  # name and number of texts, in the order of `texts`
    tokens: tuple[int, ...] | None

    def draw(self, count: int, each: int, seed: int) -> list[tuple[int, ...]]:
        """The texts of `count` requests, `each` in one: a source by an equal chance, then one of its texts."""
        draw = np.random.default_rng(seed)
        sizes = np.array([size for _, size in self.sources])
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        which = draw.integers(0, len(sizes), (count, each))
        picked = starts[which] + (draw.random((count, each)) * sizes[which]).astype(np.int64)
        return [tuple(map(int, row)) for row in picked]

    def workload(self) -> Workload:
        """The pool in the words of a report; tokens are of a text as it is drawn."""
        about = None
        if self.tokens is not None:
            drawn = [self.tokens[index] for (index,) in self.draw(10_000, 1, 0)]
            p50, p90, most = map(float, np.percentile(drawn, [50, 90, 100]))
            about = {"mean": float(np.mean(drawn)), "p50": p50, "p90": p90, "max": most}
        return Workload(
            sources=tuple(name for name, _ in self.sources),
            texts=len(self.texts),
            tokens=about,
            sha256=hashlib.sha256("\0".join(self.texts).encode()).hexdigest(),
        )


def pool_of(
    files: Sequence[DataSource],
    *,
    text_field: str | None,
    limit: int | None,
    folder: Path | None,
    bundle: Bundle | None,
) -> tuple[Pool, list[str]]:
    """Texts of the files; without any, of `nopad bench`'s ragged workloads. And remarks. Raises `InputFileError`."""
    remarks: list[str] = []
    if files:
        parts = [(Path(file.path).name, read_texts(file, text_field=text_field, limit=limit)) for file in files]
        for name, texts in parts:
            if not texts:
                raise InputFileError(f"{name} has no text")
    else:
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--data-folder {folder} is not a folder")
        source = Source(bundle or open_bundle(None), folder)
        parts = [(name, [text for text in source.named(name).texts if isinstance(text, str)]) for name in RAGGED]
        remarks = source.remarks
    every = tuple(text for _, group in parts for text in group)
    tokens = None if bundle is None else _tokens(bundle, every)
    return Pool(texts=every, sources=tuple((name, len(group)) for name, group in parts), tokens=tokens), remarks


def _tokens(bundle: Bundle, texts: Sequence[str]) -> tuple[int, ...]:
    lengths = []
    for index, item in enumerate(open_bundle_encoder(bundle).encode(texts)):
        if isinstance(item, TextError):
            raise InputFileError(f"text {index + 1}: {item}")
        lengths.append(item.used)
    return tuple(lengths)


def asks_of(
    pool: Pool, protocol: Protocol, model: str | None, count: int, *, each: int, seed: int, extra: dict[str, Any]
) -> list[Ask]:
    """`count` requests ready to be sent; `extra` goes into the body of each."""
    import json

    bodies: dict[tuple[int, ...], bytes] = {}
    asks = []
    for texts in pool.draw(count, each, seed):
        if texts not in bodies:
            body = protocol.body([pool.texts[index] for index in texts], model)
            bodies[texts] = json.dumps({**body, **extra} if extra else body, ensure_ascii=False).encode()
        asks.append(Ask(texts=texts, body=bodies[texts]))
    return asks
