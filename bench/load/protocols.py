"""How texts are asked for in each protocol, and how answers are read. Knows no network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.runtime.errors import UsageError

# The answer to one text: scores by label, or a vector (an embedding, or scores in the order of the labels).
Row = Mapping[str, float] | npt.NDArray[np.float64]
TEMPLATE = "template"
# Keys below which servers put their rows, of any protocol and of none.
_WRAPPERS = ("data", "predictions", "outputs", "results", "embeddings", "embedding", "output", "scores")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Where a request goes, below the server's URL, and its JSON body by texts and model."""

    path: str
    body: Callable[[Sequence[str], str | None], Any]
    one_text: bool = False  # a request takes no more


def _named(body: dict[str, Any], model: str | None) -> dict[str, Any]:
    return body if model is None else {"model": model, **body}


def _tei_predict(texts: Sequence[str], model: str | None) -> Any:
    return {"inputs": texts[0] if len(texts) == 1 else [[text] for text in texts]}  # two strings would be a pair


def _kserve(texts: Sequence[str], model: str | None) -> Any:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}]}


PROTOCOLS: Mapping[str, Protocol] = {
    "tei-predict": Protocol(path="/predict", body=_tei_predict),
    "tei-embed": Protocol(path="/embed", body=lambda texts, model: {"inputs": list(texts)}),
    "hub": Protocol(path="/", body=lambda texts, model: {"inputs": texts[0], "parameters": {}}, one_text=True),
    # As the openai client asks when its caller says nothing about the encoding.
    "openai": Protocol(
        path="/v1/embeddings",
        body=lambda texts, model: _named({"input": list(texts), "encoding_format": "base64"}, model or "default"),
    ),
    "infinity-classify": Protocol(
        path="/classify", body=lambda texts, model: _named({"input": list(texts), "raw_scores": False}, model)
    ),
    "nopad-classify": Protocol(path="/v1/classify", body=lambda texts, model: _named({"input": list(texts)}, model)),
    "kserve": Protocol(path="/v2/models/{model}/infer", body=_kserve),
}


def from_template(template: str) -> Protocol:
    """The protocol of a service of one's own: TEXT in the template becomes a text, TEXTS a list of them.

    Raises `UsageError` where that makes no JSON.
    """
    many = re.search(r"\bTEXTS\b", template) is not None

    def body(texts: Sequence[str], model: str | None) -> Any:
        def value(match: re.Match[str]) -> str:
            return json.dumps(list(texts) if match[0] == "TEXTS" else texts[0])

        return json.loads(re.sub(r"\bTEXTS?\b", value, template))

    try:
        if re.search(r"\bTEXTS?\b", template) is None:
            raise UsageError(f"--template {template!r} has neither TEXT nor TEXTS, where the text of a request goes")
        body(["a", "b"], None)
    except ValueError as error:
        raise UsageError(f"--template {template!r} is no JSON once TEXT is a text: {error}") from None
    return Protocol(path="", body=body, one_text=not many)


def rows_of(answer: Any) -> list[Row]:
    """The answer to each text, from any protocol's JSON. Raises `ValueError` for an answer without rows."""
    if isinstance(answer, dict) and "outputs" in answer and isinstance(answer["outputs"], list):
        tensors = [tensor for tensor in answer["outputs"] if isinstance(tensor, dict) and _is_float(tensor)]
        if tensors:  # KServe's
            shape, data = tensors[0].get("shape"), tensors[0].get("data")
            return list(np.asarray(data, dtype=np.float64).reshape(shape))
    if isinstance(answer, dict):
        if (row := _row(answer)) is not None:
            return [row]
        for key in _WRAPPERS:
            if key in answer:
                return rows_of(answer[key])
        raise ValueError(f"an answer with the keys {', '.join(map(str, answer))[:100]}")
    if not isinstance(answer, list) or not answer:
        raise ValueError(f"an answer of {type(answer).__name__}, not a list of rows")
    if (row := _row(answer)) is not None:
        return [row]
    return [_one(item) for item in answer]


def _one(item: Any) -> Row:
    if (row := _row(item)) is not None:
        return row
    rows = rows_of(item)
    if len(rows) != 1:
        raise ValueError(f"an item of {len(rows)} rows")
    return rows[0]


def _row(item: Any) -> Row | None:
    """A row, if the item is one by itself."""
    if isinstance(item, str):  # base64 of float32, as OpenAI's
        return np.frombuffer(base64.b64decode(item), dtype="<f4").astype(np.float64)
    if isinstance(item, list) and item:
        if isinstance(item[0], int | float):
            return np.asarray(item, dtype=np.float64)
        if isinstance(item[0], dict) and "label" in item[0] and "score" in item[0] and "embedding" not in item[0]:
            if "index" in item[0]:  # a list of rows, each with its own label
                return None
            return {str(part["label"]): float(part["score"]) for part in item}
    if isinstance(item, dict):
        if isinstance(item.get("scores"), list) and item["scores"] and isinstance(item["scores"][0], dict):
            return _row(item["scores"])
        if "label" in item and isinstance(item.get("score"), int | float):
            return {str(item["label"]): float(item["score"])}
        if "embedding" in item:
            return _row(item["embedding"])
    return None


def _is_float(tensor: Mapping[str, Any]) -> bool:
    return str(tensor.get("datatype", "")).startswith("FP") and "data" in tensor
