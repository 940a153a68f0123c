"""POST / as huggingface_hub's InferenceClient sends it to a URL; without `parameters`, as TEI answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, Response
from pydantic import BaseModel

from nopad.model.head import BARE, sigmoid, softmax
from nopad.runtime.server.calls import Call, Calling, Texts, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Reading, Served
from nopad.runtime.server.routes import tei
from nopad.runtime.types import IGNORED_LABELS, Entity, FloatArray, MaskFill, Strategy

router = APIRouter(tags=["huggingface_hub"])
ENTAILMENT, CONTRADICTION = "entail", "contra"  # how the labels of models for inference begin, in any case
MOST_CHARACTERS = 10_000_000  # of the texts that fill_mask answers: each candidate of each mask repeats the whole text


class Classification(tei.Cut):
    """`text_classification`."""

    top_k: int | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class ZeroShot(BaseModel):
    """`zero_shot_classification`."""

    candidate_labels: list[str]
    multi_label: bool | None = None
    hypothesis_template: str | None = None


class TokenClassification(tei.Cut):
    """`token_classification`. With a `stride` long texts are read in windows, as transformers' pipeline does then."""

    aggregation_strategy: Strategy | None = None  # None: by the model's own tag scheme
    ignore_labels: list[str] | None = None

    def reading(self, prompt_name: str | None = None) -> Reading:
        """The same for `Call.answer`."""
        plain = super().reading(prompt_name)
        windows = self.stride is not None and self.truncation is None
        return dataclasses.replace(plain, truncation="window") if windows else plain


class FillMask(tei.Cut):
    """`fill_mask`."""

    top_k: int | None = None
    targets: list[str] | None = None  # the only tokens that may fill a mask


class TaskInputs(BaseModel):
    """Texts of the tasks that only the hub's clients ask for."""

    inputs: str | list[str]


@router.post("/")
@router.post("/invocations", include_in_schema=False)
async def main_task(body: Annotated[dict[str, Any], Body()], call: Calling) -> Response:
    """The (first) model's own task: with `parameters` as the hub's clients read it, without as TEI answers."""
    served = call.find(None)
    task, parameters = served.model.task, body.get("parameters")
    if not isinstance(parameters, dict | None):
        raise Fault("validation", "parameters must be an object", field="parameters")
    if task == "token-classification":
        return await _tag(call, served, body, TokenClassification.model_validate(parameters or {}))
    if task == "fill-mask":
        return await _fill(call, served, body, FillMask.model_validate(parameters or {}))
    if task in BARE:
        if isinstance(body.get("inputs"), dict):
            return await tei.similarity(tei.Similarity.model_validate(body), call)
        if task == "token-embeddings":
            return await tei.embed_all(tei.EmbedTokens.model_validate({**body, **(parameters or {})}), call)
        return await tei.embed(tei.Embed.model_validate({**body, **(parameters or {})}), call)
    if task == "rerank" and "inputs" not in body:
        return await tei.rerank(tei.Rerank.model_validate(body), call)
    if parameters is None:
        return await tei.predict(tei.Predict.model_validate(body), call)
    if "candidate_labels" in parameters:
        return await _zero_shot(call, served, body, ZeroShot.model_validate(parameters))
    return await _classify(call, served, body, Classification.model_validate(parameters))


async def _classify(call: Call, served: Served, body: dict[str, Any], options: Classification) -> Response:
    """A list of lists, of one list for one text: the client takes the first."""
    texts = tei.predict_texts(tei.Predict.model_validate({"inputs": body.get("inputs")}).inputs)
    best = _top_k(options.top_k)
    answered = await call.answer(served, texts, options.reading(), logits=options.function_to_apply is not None)
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
    texts, ignored = _texts(body), options.ignore_labels
    answered = await call.answer(
        served,
        texts,
        options.reading(),
        strategy=options.aggregation_strategy,
        ignore_labels=IGNORED_LABELS if ignored is None else ignored,
    )
    rows = [[_entity_row(entity) for entity in tagging.entities] for tagging in answered.answers]
    return reply(rows if texts.batch else rows[0], answered)


def _entity_row(entity: Entity) -> dict[str, Any]:
    """A token (which has its `index`) or an entity, with the keys of transformers' pipeline."""
    kind = "entity_group" if entity.index is None else "entity"
    row: dict[str, Any] = {kind: entity.label, "score": entity.score}
    if entity.index is not None:
        row["index"] = entity.index
    word = entity.text if entity.word is None else entity.word
    return {**row, "word": word, "start": entity.start, "end": entity.end}


async def _fill(call: Call, served: Served, body: dict[str, Any], options: FillMask) -> Response:
    texts, mask = _texts(body), served.model.manifest.mask_token or "[MASK]"
    answered = await call.answer(served, texts, options.reading(), top_k=_top_k(options.top_k), targets=options.targets)
    pairs = list(zip(map(str, texts.texts), answered.answers, strict=True))
    if sum(len(text) * sum(map(len, answer.masks)) for text, answer in pairs) > MOST_CHARACTERS:
        said = f"the filled texts would have more than {MOST_CHARACTERS} characters; lower top_k, or send fewer masks"
        raise Fault("validation", said, field="top_k")
    side = (options.truncation_direction or served.model.encoder.truncation_side).lower()
    rows = [_fillings(text, mask, answer, side) for text, answer in pairs]
    return reply(rows if texts.batch else rows[0], answered)


def _fillings(text: str, mask: str, answer: MaskFill, side: str) -> list[Any]:
    """The candidates of the one mask, or a list of them for each of several masks that were not cut off at `side`."""
    parts, lists = text.split(mask), []
    first = len(parts) - 1 - len(answer.masks) if side == "left" else 0
    for place, (candidates, ids) in enumerate(zip(answer.masks, answer.token_ids, strict=True), first):
        before, after = mask.join(parts[: place + 1]), mask.join(parts[place + 1 :])
        lists.append(
            [
                {"score": score, "token": token_id, "token_str": token, "sequence": before + token + after}
                for (token, score), token_id in zip(candidates, ids, strict=True)
            ]
        )
    return lists[0] if len(lists) == 1 else lists


def _texts(body: dict[str, Any]) -> Texts:
    inputs = TaskInputs.model_validate({"inputs": body.get("inputs")}).inputs
    return Texts([inputs], False) if isinstance(inputs, str) else Texts(inputs, True)


def _top_k(given: int | None) -> int | None:
    if given is not None and given < 1:
        raise Fault("validation", f"top_k must be at least 1, got {given}", field="top_k")
    return given
