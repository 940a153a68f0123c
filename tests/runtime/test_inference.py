"""Encode, run and decode: each step alone, in any thread, and all in turn as `Model` calls them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nopad.export.parity.samples import SAMPLES
from nopad.model.packing import PackedBatch
from nopad.runtime import Embedding, Failure, MaskFill, Prediction, Tagging, load
from nopad.runtime.bundle import open_bundle
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.engines.selection import EngineChoice, find_candidates
from nopad.runtime.errors import EngineError, TextError, UsageError
from nopad.runtime.inference import Inference
from nopad.runtime.tokenizer import Tokens, open_bundle_encoder
from nopad.runtime.types import AnsweredBy, FloatArray, LongTexts, Text

NAME = "modernbert-single-mean"
POOL = [*SAMPLES, "x", " ".join(SAMPLES), "again and " * 150, ""]
Bundles = Callable[[str], Path]


def open_inference(path: Path, engine: EngineChoice = "onnx-cpu") -> Inference:
    bundle = open_bundle(path)
    candidates = find_candidates(bundle, engine, EngineOptions(threads=1), sm=lambda: None)
    return Inference(bundle=bundle, encoder=open_bundle_encoder(bundle), candidates=candidates)


def tokens_of(inference: Inference, *texts: Text) -> list[Tokens]:
    return [tokens for tokens in inference.encode(texts) if not isinstance(tokens, TextError)]


def ones(batch: PackedBatch) -> FloatArray:
    return np.ones((len(batch.lengths), 3), dtype=np.float32)


@pytest.fixture(scope="module")
def inference(bundle: Bundles) -> Iterator[Inference]:
    opened = open_inference(bundle(NAME))
    yield opened
    opened.close()


@given(texts=st.lists(st.sampled_from(POOL), max_size=8))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_steps_taken_by_hand_give_what_the_model_answers(
    texts: list[str], inference: Inference, bundle: Bundles
) -> None:
    decoder = inference.decoder(return_logits=True)
    good = [tokens for tokens in inference.encode(texts) if isinstance(tokens, Tokens)]
    by_hand: dict[int, Prediction] = {}
    for batch in inference.planner.plan([tokens.used for tokens in good]):
        logits, by = inference.run([good[i] for i in batch])
        assert by == AnsweredBy("onnx-cpu", "fp32")
        by_hand |= {i: decoder(row, good[i], by) for i, row in zip(batch, logits, strict=True)}
    with load(bundle(NAME), engine="onnx-cpu", threads=1) as model:
        answers = model.predict(texts, return_logits=True, on_error="return")
    assert [isinstance(answer, Failure) for answer in answers] == [text == "" for text in texts]
    predictions = [answer for answer in answers if isinstance(answer, Prediction)]
    for i, answer in enumerate(predictions):
        assert answer.logits == pytest.approx(by_hand[i].logits, abs=1e-6)
        assert (answer.label, answer.tokens, answer.engine) == (by_hand[i].label, by_hand[i].tokens, "onnx-cpu")


def test_a_window_is_encoded_and_another_decoded_while_a_batch_runs(bundle: Bundles) -> None:
    running, done = threading.Event(), threading.Event()

    def wait(batch: PackedBatch) -> FloatArray:
        if len(batch.lengths) > 1:  # not the self-check's
            running.set()
            assert done.wait(60)
        return ones(batch)

    inference = open_inference(bundle(NAME), FakeEngine(wait))
    first, second = tokens_of(inference, "a film", "a dull film")
    with ThreadPoolExecutor(1) as worker:
        batch = worker.submit(inference.run, [first, second])
        try:
            assert running.wait(60)
            (other,) = tokens_of(inference, "the next window's text")
            answer = inference.decoder()(np.array([1, 3, 2], dtype=np.float32), first, AnsweredBy("fake", "fp32"))
            assert not batch.done() and other.used > 2 and answer.label == inference.manifest.labels[1]
        finally:
            done.set()
        assert len(batch.result(60)[0]) == 2
    inference.close()


def test_each_step_may_have_threads_of_its_own(inference: Inference) -> None:
    texts = [text for text in POOL if text] * 4
    alone = {text: inference.run(tokens_of(inference, text))[0][0] for text in set(texts)}
    with ThreadPoolExecutor(3) as encoders, ThreadPoolExecutor(3) as runners:
        encoded = [encoders.submit(tokens_of, inference, text) for text in texts]
        run = [runners.submit(lambda tokens=tokens: inference.run(tokens.result())[0][0]) for tokens in encoded]
        for text, logits in zip(texts, run, strict=True):
            assert logits.result() == pytest.approx(alone[text], abs=1e-5)


def test_a_batch_that_fails_can_be_halved_until_the_bad_text_is_alone(bundle: Bundles) -> None:
    def answer(batch: PackedBatch) -> FloatArray:
        if batch.lengths.max() > 60:
            raise EngineError("out of memory")
        return ones(batch)

    inference = open_inference(bundle(NAME), FakeEngine(answer))
    encoded = tokens_of(inference, *["short"] * 5, "a long text " * 40, "short too")

    def failing(texts: list[Tokens]) -> list[Tokens]:
        try:
            inference.run(texts)
        except EngineError:
            half = len(texts) // 2
            return failing(texts[:half]) + failing(texts[half:]) if half else texts
        return []

    assert failing(encoded) == [encoded[5]]
    inference.close()


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [
        (NAME, Prediction, 3),
        ("modernbert-token", Tagging, None),
        ("modernbert-mlm", MaskFill, None),
        ("modernbert-embed-mean-unit", Embedding, 64),
    ],
)
def test_the_decoder_is_the_tasks(name: str, kind: type, width: int | None, bundle: Bundles) -> None:
    inference = open_inference(bundle(name))
    short, long = tokens_of(inference, "a [MASK] film", "a [MASK] film of many more words")
    logits, by = inference.run([short, long])
    if width is None:  # a row for each token, and no filler's
        assert [len(rows) for rows in logits] == [short.used, long.used]
    else:
        assert [row.shape for row in logits] == [(width,)] * 2
    answers = [inference.decoder()(row, text, by) for row, text in zip(logits, (short, long), strict=True)]
    assert all(isinstance(answer, kind) for answer in answers)
    assert [answer.tokens_used for answer in answers] == [short.used, long.used]
    if kind is MaskFill:
        assert [len(mask) for answer in answers for mask in answer.masks] == [5, 5]
        (without,) = tokens_of(inference, "a film")
        with pytest.raises(TextError, match=r"no \[MASK\] to fill"):
            inference.decoder(top_k=2)(logits[0], without, by)
    inference.close()


def test_the_prompt_and_the_truncation_are_the_callers(inference: Inference) -> None:
    (plain,) = tokens_of(inference, "a film")
    (prompted,) = inference.encode(["a film"], "query: ")
    assert isinstance(prompted, Tokens) and prompted.input_ids == tokens_of(inference, "query: a film")[0].input_ids
    assert plain.prompt_length == 0 < prompted.prompt_length < prompted.used
    (cut,) = inference.encode(["again and " * 3000])
    (refused,) = inference.encode(["again and " * 3000], long=LongTexts(truncation="error"))
    assert isinstance(cut, Tokens) and cut.used == inference.manifest.max_length < cut.tokens
    assert isinstance(refused, TextError) and f"{cut.tokens} tokens" in str(refused)


def test_no_decoder_keeps_less_than_one_label(inference: Inference) -> None:
    with pytest.raises(UsageError, match="top_k must be at least 1, got 0"):
        inference.decoder(top_k=0)


def test_once_closed_nothing_runs_but_what_was_read_stays_read(bundle: Bundles) -> None:
    engine = FakeEngine(ones)
    inference = open_inference(bundle(NAME), engine)
    (tokens,) = tokens_of(inference, "a film")
    late = inference.answers(["a film"], inference.decoder())
    inference.close()
    assert engine.closed
    for use in (lambda: inference.run([tokens]), lambda: list(late), inference.require_open):
        with pytest.raises(UsageError, match="closed: load it again"):
            use()
