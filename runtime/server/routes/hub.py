"""POST / as huggingface_hub's InferenceClient sends it to a URL; without `parameters`, as TEI answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, Response
from pydantic import BaseModel

from nopad.model.head import sigmoid, softmax
from nopad.runtime.server.calls import Call, Calling, Texts, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Served
from nopad.runtime.server.routes import tei
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import FloatArray, MaskFill, Tagging

router = APIRouter(tags=["huggingface_hub"])
ENTAILMENT, CONTRADICTION = "entail", "contra"  # how the labels of models for inference begin, in any case
MOST_CHARACTERS = 10_000_000  # of the texts that fill_mask answers: each candidate of each mask repeats the whole text
OUTSIDE = "O"  # the tag of a token of no entity


class Classification(BaseModel):
    """`text_classification`."""

    top_k: int | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class ZeroShot(BaseModel):
    """`zero_shot_classification`."""

    candidate_labels: list[str]
    multi_label: bool | None = None
    hypothesis_template: str | None = None


class TokenClassification(BaseModel):
    """`token_classification`. The other strategies of transformers join words, and nopad joins tokens."""

    aggregation_strategy: Literal["none", "simple"] | None = None
    ignore_labels: list[str] | None = None
    stride: None = None  # no windows over long texts


class FillMask(BaseModel):
    """`fill_mask`."""

    top_k: int | None = None
    targets: None = None  # the runtime gives the best tokens only


class TaskInputs(BaseModel):
    """Texts of the tasks that only the hub's clients ask for."""

    inputs: str | list[str]


@router.post("/")
@router.post("/invocations", include_in_schema=False)
async def main_task(body: Annotated[dict[str, Any], Body()], call: Calling) -> Response:
    """The (first) model's own task: with `parameters` as the hub's clients read it, without as TEI answers."""
    served = call.find(None)
    task, parameters = served.model.task, body.get("parameters")
    if task == "token-classification":
        return await _tag(call, served, body, TokenClassification.model_validate(parameters or {}))
    if task == "fill-mask":
        return await _fill(call, served, body, FillMask.model_validate(parameters or {}))
    if task == "embeddings":
        if isinstance(body.get("inputs"), dict):
            return await tei.similarity(tei.Similarity.model_validate(body), call)
        return await tei.embed(tei.Embed.model_validate({**body, **(parameters or {})}), call)
    if task == "rerank" and "inputs" not in body:
        return await tei.rerank(tei.Rerank.model_validate(body), call)
    if parameters is None:
        return await tei.predict(tei.Predict.model_validate(body), call)
    if isinstance(parameters, dict) and "candidate_labels" in parameters:
        return await _zero_shot(call, served, body, ZeroShot.model_validate(parameters))
    return await _classify(call, served, body, Classification.model_validate(parameters))


async def _classify(call: Call, served: Served, body: dict[str, Any], options: Classification) -> Response:
    """A list of lists, of one list for one text: the client takes the first."""
    texts = tei.predict_texts(tei.Predict.model_validate({"inputs": body.get("inputs")}).inputs)
    best = _top_k(options.top_k)
    answered = await call.answer(served, texts, logits=options.function_to_apply is not None)
    if options.function_to_apply is None:
        rows = [tei.label_scores(answer, served, raw=False) for answer in answered.answers]
    else:
        rows = [_labelled(served.model.labels, answer.logits, options.function_to_apply) for answer in answered.answers]
    return reply([row[:best] for row in rows], answered)


def _labelled(labels: Sequence[str], logits: FloatArray, function: str) -> list[dict[str, Any]]:
    scores = {"softmax": softmax, "sigmoid": sigmoid, "none": lambda logits: logits}[function](logits)
    return [{"label": labels[i], "score": float(scores[i])} for i in np.argsort(-logits, kind="stable")]


async def _zero_shot(call: Call, served: Served, body: dict[str, Any], options: ZeroShot) -> Response:
    """Each candidate label as a hypothesis about the text, for a model of natural language inference."""
    text = body.get("inputs")
    if not isinstance(text, str):
        raise Fault("validation", "zero-shot classification takes one text as `inputs`", field="inputs")
    names = [label.lower() for label in served.model.labels]
    entails = next((i for i, name in enumerate(names) if name.startswith(ENTAILMENT)), None)
    if entails is None or len(names) < 2:
        raise Fault("task", "Model is not a natural language inference model: no label of it is named entailment")
    against = next((i for i, name in enumerate(names) if name.startswith(CONTRADICTION)), 1 - min(entails, 1))
    template = options.hypothesis_template or "This example is {}."
    if "{}" not in template:
        raise Fault("validation", "hypothesis_template has no {} for the label")
    labels = options.candidate_labels
    pairs = Texts([(text, template.replace("{}", label)) for label in labels], True)
    answered = await call.answer(served, pairs, logits=True)
    logits = np.stack([answer.logits for answer in answered.answers])
    scores = softmax(logits[:, [against, entails]])[:, 1] if options.multi_label else softmax(logits[:, entails])
    order = np.argsort(-scores, kind="stable")
    return reply([{"label": labels[i], "score": float(scores[i])} for i in order], answered)


async def _tag(call: Call, served: Served, body: dict[str, Any], options: TokenClassification) -> Response:
    texts = _texts(body)
    answered = await call.answer(served, texts)
    ignored = {OUTSIDE} if options.ignore_labels is None else set(options.ignore_labels)
    rows = []
    for text, tagging in zip(texts.texts, answered.answers, strict=True):
        if options.aggregation_strategy == "none":
            found = _tagged_tokens(served, str(text), tagging)
            rows.append([row for row in found if row["entity"] not in ignored])
        else:
            found = [
                {
                    "entity_group": entity.label,
                    "score": entity.score,
                    "word": entity.text,
                    "start": entity.start,
                    "end": entity.end,
                }
                for entity in tagging.entities
            ]
            rows.append([row for row in found if row["entity_group"] not in ignored])
    return reply(rows if texts.batch else rows[0], answered)


def _tagged_tokens(served: Served, text: str, tagging: Tagging) -> list[dict[str, Any]]:
    prompt = served.prompt(None)
    (tokens,) = served.encoder.encode([text], prompt)
    assert isinstance(tokens, Tokens)
    places = [place for place, special in zip(tokens.offsets, tokens.special, strict=True) if not special]
    used = len(tagging.labels)
    kept = places[-used:] if served.encoder.truncation_side == "left" else places[:used]
    read = zip(tagging.tokens_text, tagging.labels, tagging.scores, kept, strict=True)
    return [
        {"entity": label, "score": score, "index": i, "word": word, "start": start, "end": end}
        for i, (word, label, score, (start, end)) in enumerate(read, start=1)
    ]


async def _fill(call: Call, served: Served, body: dict[str, Any], options: FillMask) -> Response:
    texts, mask = _texts(body), served.model.manifest.mask_token or "[MASK]"
    answered = await call.answer(served, texts, top_k=_top_k(options.top_k))
    pairs = list(zip(map(str, texts.texts), answered.answers, strict=True))
    if sum(len(text) * sum(map(len, answer.masks)) for text, answer in pairs) > MOST_CHARACTERS:
        said = f"the filled texts would have more than {MOST_CHARACTERS} characters; lower top_k, or send fewer masks"
        raise Fault("validation", said, field="top_k")
    rows = [_fillings(text, mask, answer) for text, answer in pairs]
    return reply(rows if texts.batch else rows[0], answered)


def _fillings(text: str, mask: str, answer: MaskFill) -> list[Any]:
    """The candidates of the one mask, or a list of them for each of several masks."""
    parts, lists = text.split(mask), []
    for place, candidates in enumerate(answer.masks):
        before, after = mask.join(parts[: place + 1]), mask.join(parts[place + 1 :])
        lists.append(
            [{"score": score, "token_str": token, "sequence": before + token + after} for token, score in candidates]
        )
    return lists[0] if len(lists) == 1 else lists


def _texts(body: dict[str, Any]) -> Texts:
    inputs = TaskInputs.model_validate({"inputs": body.get("inputs")}).inputs
    return Texts([inputs], False) if isinstance(inputs, str) else Texts(inputs, True)


def _top_k(given: int | None) -> int | None:
    if given is not None and given < 1:
        raise Fault("validation", f"top_k must be at least 1, got {given}", field="top_k")
    return given
