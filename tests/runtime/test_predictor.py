"""`load` and `Model`: order, batching, truncation, bad texts, failing engines, threads."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nopad.export.parity.samples import SAMPLES
from nopad.model.packing import PackedBatch
from nopad.runtime import Failure, Model, load
from nopad.runtime.batching import WINDOW
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.errors import EngineError, TextError, UsageError
from nopad.runtime.types import FloatArray

NAME = "modernbert-single-mean"
POOL = [*SAMPLES, "x", " ".join(SAMPLES[:6]), " ".join(SAMPLES), "again and " * 150]


@pytest.fixture(scope="module")
def model(bundle: Callable[[str], Path]) -> Iterator[Model]:
    with load(bundle(NAME), threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(model: Model) -> dict[str, FloatArray]:
    return {text: model.logits([text])[0] for text in POOL}


@pytest.fixture(scope="module")
def by_budget(bundle: Callable[[str], Path]) -> dict[int, Model]:
    return {budget: load(bundle(NAME), threads=1, token_budget=budget) for budget in (1, 100, 700, 5000)}


@given(texts=st.lists(st.sampled_from(POOL), max_size=12), budget=st.sampled_from([1, 100, 700, 5000]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_gets_its_own_answer_in_its_place_whatever_the_company(
    texts: list[str], budget: int, by_budget: dict[int, Model], alone: dict[str, FloatArray]
) -> None:
    answers = by_budget[budget].predict(texts, return_logits=True)
    assert len(answers) == len(texts)
    for text, answer in zip(texts, answers, strict=True):
        assert answer.logits == pytest.approx(alone[text], abs=1e-5)


def test_scores_are_the_softmax_and_sorted(model: Model) -> None:
    (answer,) = model.predict(["a film"], return_logits=True)
    assert answer.logits is not None and answer.logits.dtype == np.float32 and answer.logits.shape == (3,)
    want = np.exp(answer.logits - answer.logits.max())
    want /= want.sum()
    assert answer.scores == pytest.approx(dict(zip(model.labels, want.tolist(), strict=True)), abs=1e-6)
    values = list(answer.scores.values())
    assert values == sorted(values, reverse=True)
    assert (answer.label, answer.score) == next(iter(answer.scores.items()))
    assert answer.labels == (answer.label,) and answer.engine == "onnx-cpu"
    assert model.predict(["a film"])[0].logits is None
    assert len(model.predict(["a film"], top_k=2)[0].scores) == 2


def test_truncation_is_counted(bundle: Callable[[str], Path], model: Model) -> None:
    text = "again and " * 3000
    (answer,) = model.predict([text])
    whole = len(model.encoder._tokenizer.encode("x").ids)  # [CLS] x [SEP]
    assert whole == 3
    assert answer.tokens_used == 1024 and answer.tokens > 5000 and answer.truncated
    (short,) = model.predict(["x"])
    assert (short.tokens, short.tokens_used, short.truncated) == (3, 3, False)
    with load(bundle(NAME), threads=1, truncation="error") as strict:
        with pytest.raises(TextError, match=rf"text 1: .*{answer.tokens} tokens.*1024"):
            strict.predict(["fine", text])
        kept, failed = strict.predict(["fine", text], on_error="return")
        assert not isinstance(kept, Failure) and isinstance(failed, Failure) and failed.index == 1


def test_a_megabyte_of_text_is_answered(model: Model) -> None:
    (answer,) = model.predict(["a long film " * 90_000])
    assert answer.tokens_used == 1024 and answer.tokens > 180_000


BAD: list[tuple[Any, str]] = [
    ("", "empty"),
    (" \n\t ", "empty"),
    (None, "NoneType"),
    (3, "int"),
    ("\ud800", "surrogate"),
    (("a", "b", "c"), "two texts, not 3"),
    (("a", ""), "empty"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_a_bad_text_is_named_by_its_place(text: Any, words: str, model: Model) -> None:
    with pytest.raises(TextError, match=f"text 2: .*{words}"):
        model.predict(["fine", "also fine", text, "fine too"])


def test_bad_texts_fail_alone_when_asked_to(model: Model, alone: dict[str, FloatArray]) -> None:
    texts: list[Any] = [SAMPLES[0], *(text for text, _ in BAD), SAMPLES[1]]
    answers = model.predict(texts, return_logits=True, on_error="return")
    assert [isinstance(answer, Failure) for answer in answers] == [False, *[True] * len(BAD), False]
    assert [answer.index for answer in answers if isinstance(answer, Failure)] == list(range(1, len(BAD) + 1))
    for answer, text in ((answers[0], SAMPLES[0]), (answers[-1], SAMPLES[1])):
        assert not isinstance(answer, Failure) and answer.logits == pytest.approx(alone[text], abs=1e-5)


def ones(batch: PackedBatch) -> FloatArray:
    return np.ones((len(batch.lengths), 3), dtype=np.float32)


def test_an_iterator_is_read_a_window_at_a_time(bundle: Callable[[str], Path]) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for read in itertools.count(1):
            yield f"text {read}"

    with load(bundle(NAME), engine=FakeEngine(ones)) as model:
        answers = model.predict(endless())
        assert read == 0  # nothing before it is asked for
        for number, _ in enumerate(itertools.islice(answers, 3 * WINDOW)):
            assert read <= (number // WINDOW + 1) * WINDOW
    assert number == 3 * WINDOW - 1


def test_micro_batches_keep_the_budget(bundle: Callable[[str], Path]) -> None:
    engine = FakeEngine(ones)
    with load(bundle(NAME), engine=engine, token_budget=300) as model:
        engine.batches.clear()  # the self-check's
        answers = model.predict(POOL * 3)
    assert sum(len(batch.lengths) for batch in engine.batches) == len(answers) == 3 * len(POOL)
    for batch in engine.batches:
        assert batch.num_tokens <= 300 or len(batch.lengths) == 1
        assert len(batch.input_ids) % model.artifact.token_multiple == 0
    assert len(engine.batches) < 3 * len(POOL)
    assert engine.closed


@pytest.mark.parametrize("how", ["raises", "answers NaN"])
def test_an_engine_failure_costs_its_batch_alone(how: str, bundle: Callable[[str], Path]) -> None:
    def answer(batch: PackedBatch) -> FloatArray:
        if batch.lengths.max() > 60:
            if how == "raises":
                raise EngineError("out of memory")
            return np.full((len(batch.lengths), 3), np.nan, dtype=np.float32)
        return ones(batch)

    texts = ["short", "a long one " * 40, "short too"]
    with load(bundle(NAME), engine=FakeEngine(answer), token_budget=64) as model:
        answers = model.predict(texts, on_error="return")
        assert [isinstance(answer, Failure) for answer in answers] == [False, True, False]
        failed = answers[1]
        assert isinstance(failed, Failure) and isinstance(failed.error, EngineError) and failed.index == 1
        with pytest.raises(EngineError):
            model.predict(texts)


def test_many_threads_get_what_one_gets(model: Model, alone: dict[str, FloatArray]) -> None:
    def ask(seed: int) -> list[tuple[str, FloatArray]]:
        texts = [POOL[int(i)] for i in np.random.default_rng(seed).integers(0, len(POOL), 10)]
        return [(t, a.logits) for t, a in zip(texts, model.predict(texts, return_logits=True), strict=True)]  # type: ignore[misc]

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(ask, range(16)):
            for text, logits in answers:
                assert logits == pytest.approx(alone[text], abs=1e-5)


def test_awaited_answers(model: Model, alone: dict[str, FloatArray]) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(model.apredict(text, return_logits=True) for text in SAMPLES))

    for text, answer in zip(SAMPLES, asyncio.run(ask()), strict=True):
        assert answer.logits == pytest.approx(alone[text], abs=1e-5)


def test_a_string_is_no_list_of_texts(bundle: Callable[[str], Path], model: Model) -> None:
    with pytest.raises(UsageError, match="brackets"):
        model.predict("a film")
    for name, method in (
        ("modernbert-token", "tag"),
        ("modernbert-mlm", "fill"),
        ("modernbert-embed-mean-unit", "embed"),
    ):
        with load(bundle(name), threads=1) as other, pytest.raises(UsageError, match="brackets"):
            getattr(other, method)("a film")


def test_the_wrong_method_names_the_right_one(bundle: Callable[[str], Path], model: Model) -> None:
    for method, arguments in (("tag", [["a"]]), ("fill", [["a"]]), ("embed", [["a"]]), ("rerank", ["a", ["b"]])):
        with pytest.raises(UsageError, match=r"use predict\(\)"):
            getattr(model, method)(*arguments)
    with load(bundle("modernbert-token"), threads=1) as tagger, pytest.raises(UsageError, match=r"use tag\(\)"):
        tagger.predict(["a"])


@pytest.mark.parametrize(
    "options", [{"engine": "warp"}, {"threads": 0}, {"token_budget": 0}, {"truncation": "sometimes"}]
)
def test_options_that_make_no_sense(options: dict[str, Any], bundle: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError):
        load(bundle(NAME), **options)


def test_a_misspelt_on_error_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="'raise' or 'return', not 'retrun'"):
        model.predict(["good", ""], on_error="retrun")  # type: ignore[call-overload]


def test_a_closed_model_says_so(bundle: Callable[[str], Path]) -> None:
    with load(bundle(NAME), threads=1) as model:
        late = model.predict(iter(["a film"]))
    for use in (lambda: model.predict(["a film"]), lambda: list(late), lambda: model.run_ids([[1]])):
        with pytest.raises(UsageError, match="closed: load it again"):
            use()


def test_no_texts_no_answers(model: Model) -> None:
    assert model.predict([]) == [] and list(model.predict(iter([]))) == []
    with pytest.raises(UsageError, match="top_k"):
        model.predict(["a"], top_k=0)
