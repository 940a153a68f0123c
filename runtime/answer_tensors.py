"""The tensors of each task in the Open Inference Protocol, for `nopad serve` and for Triton: texts in, answers out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nopad.model.head import Task
from nopad.runtime.types import FloatArray, IntArray


class Output(NamedTuple):
    """An output: float32 [n, ...], int64 [n], or strings, row-major."""

    name: str
    shape: Sequence[int]
    values: FloatArray | IntArray | Sequence[str]

    @property
    def datatype(self) -> str:
        """Its type in the protocol."""
        if not isinstance(self.values, np.ndarray):
            return "BYTES"
        return "FP32" if self.values.dtype.kind == "f" else "INT64"


class Declared(NamedTuple):
    """A tensor that a model takes or gives; -1 for sizes that a request decides, of which the first is its texts."""

    name: str
    datatype: str
    shape: list[int]


# Triton's names of the types, in a model's configuration.
CONFIG_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}
TEXT, TEXT_PAIR = Declared("text", "BYTES", [-1]), Declared("text_pair", "BYTES", [-1])


def declared_inputs(task: Task) -> list[Declared]:
    """What a model takes; `text_pair` may be left out."""
    return [TEXT, TEXT_PAIR] if task in ("text-classification", "rerank") else [TEXT]


def declared_outputs(task: Task, labels: Sequence[str], size: str) -> list[Declared]:
    """What a model gives. `size`: the last of the graph's symbolic output sizes."""
    row = [-1, int(size) if size.isdigit() else -1]
    match task:
        case "embeddings":
            return [Declared("embedding", "FP32", row)]
        case "token-embeddings":  # text after text, without padding
            return [Declared("token_embedding", "FP32", row), Declared("tokens", "INT64", [-1])]
        case "token-classification":
            return [Declared("entities", "BYTES", [-1])]
        case "fill-mask":
            return [Declared("masks", "BYTES", [-1])]
    return [Declared("scores", "FP32", [-1, len(labels)]), Declared("label", "BYTES", [-1])]


def outputs_of(task: Task, labels: Sequence[str], answers: Sequence[Any]) -> list[Output]:
    """The answers to at least one text, as `declared_outputs` says."""
    count = len(answers)
    match task:
        case "embeddings":
            vectors = np.stack([answer.vector for answer in answers])
            return [Output("embedding", vectors.shape, vectors)]
        case "token-embeddings":
            stream = np.concatenate([answer.vectors for answer in answers])
            lengths = np.array([len(answer.vectors) for answer in answers], dtype=np.int64)
            return [Output("token_embedding", stream.shape, stream), Output("tokens", [count], lengths)]
        case "token-classification":
            return [_in_json("entities", (_entities(answer) for answer in answers), count)]
        case "fill-mask":
            return [_in_json("masks", (answer.masks for answer in answers), count)]
    scores = np.array([[answer.scores[label] for label in labels] for answer in answers], dtype=np.float32)
    return [
        Output("scores", [count, len(labels)], scores),
        Output("label", [count], [answer.label for answer in answers]),
    ]


def _entities(tagging: Any) -> list[dict[str, Any]]:
    return [
        {"label": each.label, "score": each.score, "start": each.start, "end": each.end, "text": each.text}
        for each in tagging.entities
    ]


def _in_json(name: str, values: Iterable[Any], count: int) -> Output:
    return Output(name, [count], [json.dumps(value, ensure_ascii=False) for value in values])
