"""The routes of text-embeddings-inference: /predict, /embed, /embed_all, /similarity, /tokenize, /decode, /info."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel

from nopad.model.packages import version_of
from nopad.runtime.errors import TextError
from nopad.runtime.scheduler.request import Priority
from nopad.runtime.server.calls import Call, Calling, Texts, reply, to_json
from nopad.runtime.server.errors import Fault, fault_of
from nopad.runtime.server.models import Answered, Reading, Served
from nopad.runtime.server.vectors import token_vectors_of, vectors_of
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import Merge, Prediction, Text, Truncation

router = APIRouter(tags=["text-embeddings-inference"])
InputIds = list[int]


class Cut(BaseModel):
    """What becomes of a text over the model's max length.

    TEI's `truncate` (false refuses it) and `truncation_direction`; or nopad's own: `truncation`, where "window" reads
    all of it in windows that share `stride` tokens, and `merge` says how their answers become one.
    """

    truncate: bool | None = None
    truncation_direction: Literal["right", "left", "Right", "Left"] | None = None
    truncation: Truncation | None = None
    stride: int | None = None
    merge: Merge | None = None

    def reading(self, prompt_name: str | None = None) -> Reading:
        """The same for `Call.answer`."""
        return Reading(
            truncate=self.truncate is not False,
            direction=self.truncation_direction,
            prompt_name=prompt_name,
            truncation=self.truncation,
            stride=self.stride,
            merge=self.merge,
        )


class Predict(Cut):
    """A text is a string or a list of one; a list of two strings is one pair; a batch is a list of such lists."""

    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = False


class Rerank(Cut):
    """Texts to be put in order by their relevance to the query."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


class EmbedTokens(Cut):
    """Texts, or token ids of texts, which are decoded first."""

    inputs: str | InputIds | list[str | InputIds]
    prompt_name: str | None = None


class Embed(EmbedTokens):
    """The same, and what becomes of the embeddings."""

    normalize: bool = True
    dimensions: int | None = None


class Sentences(BaseModel):
    """One sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityOptions(Cut):
    """How the sentences are read."""

    prompt_name: str | None = None


class Similarity(BaseModel):
    """Cosine similarity of sentences."""

    inputs: Sentences
    parameters: SimilarityOptions | None = None


class Tokenize(BaseModel):
    """Texts to cut into tokens; nothing is truncated."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Decode(BaseModel):
    """Token ids to turn back into texts."""

    ids: list[int] | list[list[int]]
    skip_special_tokens: bool = True


@router.post("/predict")
async def predict(body: Predict, call: Calling) -> Response:
    """Labels of a text, a pair or a batch of them, the highest score first."""
    texts = predict_texts(body.inputs)
    served = call.find(None, "text-classification", "rerank")
    answered = await call.answer(served, texts, body.reading(), logits=body.raw_scores)
    rows = [label_scores(answer, served, raw=body.raw_scores) for answer in answered.answers]
    return reply(rows if texts.batch else rows[0], answered)


async def rerank(body: Rerank, call: Calling) -> Response:
    """Texts by relevance to the query, the best first."""
    answered, order, scores = await ranked(call, None, body.query, body.texts, body.reading(), raw=body.raw_scores)
    rows: list[dict[str, Any]] = [{"index": index, "score": scores[index]} for index in order]
    if body.return_text:
        rows = [{**row, "text": body.texts[row["index"]]} for row in rows]
    return reply(rows, answered)


@router.post("/embed")
async def embed(body: Embed, call: Calling) -> Response:
    """Embeddings, a list of one for a single text, too."""
    served = call.find(None, "embeddings")
    answered = await call.answer(served, embed_texts(body.inputs, served), body.reading(body.prompt_name))
    return reply(vectors_of(answered, normalize=body.normalize, dimensions=body.dimensions), answered)


@router.post("/embed_all")
async def embed_all(body: EmbedTokens, call: Calling) -> Response:
    """Of each text the embeddings of its tokens, special ones included: the model's last hidden state."""
    served = call.find(None, "token-embeddings")
    answered = await call.answer(served, embed_texts(body.inputs, served), body.reading(body.prompt_name))
    return await asyncio.to_thread(_tokens_reply, answered)  # a vector for each of thousands of tokens


@router.post("/similarity")
async def similarity(body: Similarity, call: Calling) -> Response:
    """Cosine similarity of the source sentence and each of the others."""
    options = body.parameters or SimilarityOptions()
    call.check_size(len(body.inputs.sentences))
    served = call.find(None, "embeddings")
    texts = Texts([body.inputs.source_sentence, *body.inputs.sentences], True)
    answered = await call.answer(served, texts, options.reading(options.prompt_name), beside=1)
    vectors = vectors_of(answered, normalize=True)
    return reply((vectors[1:] @ vectors[0]).tolist(), answered)


@router.post("/tokenize")
async def tokenize(body: Tokenize, call: Calling) -> Response:
    """Tokens of each text, with UTF-8 byte positions in the text with its prompt."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    call.check_size(len(texts))
    served = call.find(None)
    prompt = served.prompt(body.prompt_name)

    def rows() -> list[list[dict[str, Any]]]:
        found = []
        for index, tokens in enumerate(served.model.encoder.encode(texts, prompt, "window")):
            if isinstance(tokens, TextError):
                raise fault_of(tokens, index if isinstance(body.inputs, list) else None)
            found.append([row for row in _token_rows(tokens, prompt) if body.add_special_tokens or not row["special"]])
        return found

    return reply(await asyncio.to_thread(rows))  # a text may be as long as a body, and takes as long


@router.post("/decode")
async def decode(body: Decode, call: Calling) -> Response:
    """The text that each list of token ids spells."""
    nested = [ids for ids in body.ids if isinstance(ids, list)]
    lists = nested or [[token_id for token_id in body.ids if isinstance(token_id, int)]]
    call.check_size(len(lists) if body.ids else 0)
    served = call.find(None)
    return reply([_decoded(ids, served, body.skip_special_tokens, index) for index, ids in enumerate(lists)])


@router.get("/info")
async def info(call: Calling) -> Response:
    """What is served, in TEI's words; of several models, the first."""
    call.serving.require_ready()
    served, settings = call.find(None), call.serving.settings
    manifest = served.model.manifest
    names = {
        "id2label": {str(index): label for index, label in enumerate(manifest.labels)},
        "label2id": {label: index for index, label in enumerate(manifest.labels)},
    }
    kinds: dict[str, Any] = {
        "embeddings": {"embedding": {"pooling": manifest.pooling or "cls"}},
        "token-embeddings": {"embedding": {"pooling": "none"}},
        "rerank": {"reranker": names},
    }
    precision = served.model.artifact.precision
    return reply(
        {
            "model_id": str(manifest.source.get("name") or served.name),
            "model_sha": None,
            "model_dtype": {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(precision, precision),
            "served_model_name": served.name,
            "model_type": kinds.get(served.model.task, {"classifier": names}),
            "max_concurrent_requests": settings.max_concurrent,
            "max_input_length": manifest.max_length,
            "max_batch_tokens": served.model.token_budget,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_batch,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": version_of("nopad"),
            "sha": None,
            "docker_label": None,
        }
    )


def predict_texts(inputs: str | list[str] | list[list[str]]) -> Texts:
    """TEI's forms: a text, a list of one text, of two (one pair), or of such lists (a batch)."""
    if isinstance(inputs, str):
        return Texts([inputs], False)
    if all(isinstance(item, str) for item in inputs):
        return Texts([_pair([item for item in inputs if isinstance(item, str)], "`inputs`")], False)
    return Texts([_pair(list(item), f"`inputs` {index}", index) for index, item in enumerate(inputs)], True)


def _pair(texts: Sequence[str], where: str, index: int | None = None) -> Text:
    if len(texts) not in (1, 2):
        raise Fault(
            "validation",
            f"{where}: a list of strings is one text or one pair, and this has {len(texts)}; "
            'a batch is a list of lists: [["first"], ["second"], ...]',
            index=index,
            field="inputs",
        )
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def embed_texts(inputs: str | InputIds | Sequence[str | InputIds], served: Served) -> Texts:
    """The texts of a request for embeddings; token ids are decoded, and must be inside the vocabulary."""
    if isinstance(inputs, str):
        return Texts([inputs], False)
    ids = [token_id for token_id in inputs if isinstance(token_id, int)]
    if ids:
        return Texts([_decoded(ids, served, True, None)], False)
    return Texts(
        [
            item if isinstance(item, str) else _decoded(item, served, True, index)
            for index, item in enumerate(inputs)
            if not isinstance(item, int)
        ],
        True,
    )


def label_scores(answer: Prediction, served: Served, *, raw: bool) -> list[dict[str, Any]]:
    """All labels of one answer, the highest score first; `raw`: logits."""
    if not raw:
        return [{"score": score, "label": label} for label, score in answer.scores.items()]
    assert answer.logits is not None
    order = np.argsort(-answer.logits, kind="stable")
    return [{"score": float(answer.logits[i]), "label": served.model.labels[i]} for i in order]


async def ranked(
    call: Call,
    name: str | None,
    query: str,
    texts: Sequence[str],
    reading: Reading,
    *,
    raw: bool = False,
    priority: Priority | None = None,
) -> tuple[Answered, list[int], list[float]]:
    """The answers of a reranker, the order of the texts from the best, and each text's score."""
    call.check_size(len(texts))
    served = call.find(name, "rerank")
    if not query:
        raise Fault("empty", "Input validation error: `query` cannot be empty", field="query")
    pairs = Texts([(query, text) for text in texts], True)
    answered = await call.answer(served, pairs, reading, logits=True, priority=priority)
    logits = [float(answer.logits[0]) for answer in answered.answers]
    # By logit, which still orders scores that a sigmoid rounds to 1.0.
    order = sorted(range(len(texts)), key=lambda index: -logits[index])
    return answered, order, logits if raw else [answer.score for answer in answered.answers]


def _tokens_reply(answered: Answered) -> Response:
    return reply([orjson.Fragment(to_json(rows)) for rows in token_vectors_of(answered, normalize=False)], answered)


def _decoded(ids: Sequence[int], served: Served, skip_special: bool, index: int | None) -> str:
    try:
        return served.model.encoder.decode(ids, skip_special=skip_special)
    except TextError as error:
        raise fault_of(error, index) from None


def _token_rows(tokens: Tokens, prompt: str) -> list[dict[str, Any]]:
    text = prompt + str(tokens.text)
    before = [0, *accumulate(len(character.encode()) for character in text)]  # bytes before each character
    rows: list[dict[str, Any]] = []
    for token_id, piece, special, (start, stop) in zip(
        tokens.input_ids, tokens.pieces, tokens.special, tokens.offsets, strict=True
    ):
        place = (None, None) if special else (before[start], before[stop])
        rows.append(
            {
                "id": token_id,
                "text": piece if special else text[start:stop],
                "special": bool(special),
                "start": place[0],
                "stop": place[1],
            }
        )
    return rows
