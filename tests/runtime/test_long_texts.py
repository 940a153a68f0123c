"""Texts over the model's max length: how they are divided into windows, and how one answer is made of the windows'."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, write

from nopad.model.head import Head
from nopad.model.packing import PackedBatch
from nopad.runtime import Failure, Model, load, long_texts
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.errors import OverloadedError, TextError, UsageError
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.tokenizer import TextEncoder, Tokens, open_encoder
from nopad.runtime.types import FloatArray, LongTexts, MaskFill

NAME = "modernbert-single-mean"
Bundles = Callable[[str], Path]
WORDS = ("a", "film", "good", "works", "Paris", "unheard", "xyzzy")
WINDOW = LongTexts(truncation="window")


@functools.cache
def reference(kind: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())


@pytest.fixture(scope="module", params=["wordpiece", "byte-level", "unigram"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TextEncoder]:
    """transformers' tokenizer, and ours of at most 24 tokens."""
    theirs = reference(request.param)
    folder = write(tmp_path_factory.mktemp(request.param), theirs.backend_tokenizer, {})
    return theirs, open_encoder(folder / "tokenizer.json", 24)


def divided(encoder: TextEncoder, text: Any, long: LongTexts, prompt: str = "") -> Tokens | TextError:
    (tokens,) = encoder.encode([text], prompt, "window")
    return tokens if isinstance(tokens, TextError) else long_texts.divide(tokens, encoder.max_length, long)


@settings(max_examples=60)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=120), stride=st.integers(0, 15))
def test_windows_are_those_of_transformers(both: tuple[Any, TextEncoder], words: list[str], stride: int) -> None:
    theirs, encoder = both
    text = " ".join(words)
    tokens = divided(encoder, text, LongTexts(truncation="window", stride=stride))
    want = theirs(text, truncation=True, max_length=24, stride=stride, return_overflowing_tokens=True)["input_ids"]
    assert isinstance(tokens, Tokens) and tokens.input_ids == theirs(text)["input_ids"]
    assert [window.tokens.input_ids for window in tokens.windows] == (want if len(want) > 1 else [])
    assert tokens.tokens == tokens.used and all(window.tokens.used <= 24 for window in tokens.windows)


def test_of_a_pair_the_second_text_is_divided(both: tuple[Any, TextEncoder]) -> None:
    theirs, encoder = both
    pair = ("good film", "a film works in Paris " * 12)
    tokens = divided(encoder, pair, LongTexts(truncation="window", stride=3))
    want = theirs(*pair, truncation="only_second", max_length=24, stride=3, return_overflowing_tokens=True)
    assert isinstance(tokens, Tokens)
    assert [window.tokens.input_ids for window in tokens.windows] == want["input_ids"] and len(want["input_ids"]) > 3
    whole = theirs(*pair)
    assert tokens.input_ids == whole["input_ids"]
    types = [window.tokens.token_type_ids for window in tokens.windows]
    assert all(each == types[0][: len(each)] and each[0] == 0 < each[-1] == 1 for each in types)
    long_first = divided(encoder, ("a film works in Paris " * 12, "good"), WINDOW)
    assert isinstance(long_first, TextError) and "first text of a pair" in str(long_first)
    narrow = divided(encoder, pair, LongTexts(truncation="window", stride=20))
    assert isinstance(narrow, TextError) and "shorten the first text" in str(narrow)


def test_a_prompt_stands_in_every_window(both: tuple[Any, TextEncoder]) -> None:
    _, encoder = both
    text = "film works in Paris " * 20
    tokens = divided(encoder, text, WINDOW, prompt="good ")
    assert isinstance(tokens, Tokens)
    before = tokens.prompt_length
    assert before > 1 and len(tokens.windows) > 2
    assert all(window.tokens.input_ids[:before] == tokens.input_ids[:before] for window in tokens.windows)
    assert all(window.tokens.prompt_length == before for window in tokens.windows)
    assert tokens.windows[0].start == before


def test_a_short_text_has_no_windows_and_a_huge_one_too_many(both: tuple[Any, TextEncoder]) -> None:
    _, encoder = both
    short = divided(encoder, "a film", WINDOW)
    assert isinstance(short, Tokens) and short.windows == () and short.body == (0, 0)
    huge = divided(encoder, "a good film " * 10_000, WINDOW)
    assert isinstance(huge, TextError) and "over the limit of 512: divide it" in str(huge)
    with pytest.raises(UsageError, match="a stride of 22 never comes to its end; give a smaller one"):
        divided(encoder, "a good film " * 20, LongTexts(truncation="window", stride=22))
    first = divided(encoder, "a good film " * 10_000, LongTexts(truncation="window", merge="first"))
    assert isinstance(first, Tokens) and first.used == 24 < first.tokens and first.windows == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "cut"}, "truncation is one of 'truncate', 'error', 'window', not 'cut'"),
        ({"truncation": "window", "merge": "median"}, "merge is one of 'mean', 'max', 'first', not 'median'"),
        ({"side": "top"}, "truncation_side is one of 'left', 'right', not 'top'"),
        ({"stride": 3}, "of windows: ask for truncation='window'"),
        ({"merge": "max"}, "of windows: ask for truncation='window'"),
        ({"truncation": "window", "side": "left"}, "truncation_side is of texts that are cut"),
        ({"truncation": "window", "stride": -1}, "stride must be at least 0 tokens, got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LongTexts(**options)


def text_of(body: int, room: int, stride: int, before: int, after: int) -> Tokens:
    """A text of numbered tokens, divided."""
    count = before + body + after
    ids = list(range(1, count + 1))
    plain = {"token_type_ids": [0] * count, "special": [0] * count, "pieces": [""] * count, "offsets": [(0, 0)] * count}
    tokens = Tokens(text="", input_ids=ids, tokens=count, body=(before, before + body), **plain)  # type: ignore[arg-type]
    found = long_texts.divide(tokens, before + room + after, LongTexts(truncation="window", stride=stride))
    assert isinstance(found, Tokens)
    return found


@settings(max_examples=150)
@given(data=st.data())
def test_every_token_is_answered_from_the_window_that_shows_most_around_it(data: st.DataObject) -> None:
    room = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(0, room - 1))
    before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))
    text = text_of(data.draw(st.integers(room + 1, 90)), room, stride, before, after)
    # Each window says which token of the text it answers, and how far that is from the window's nearest border.
    rows = []
    for window in text.windows:
        ids = np.array(window.tokens.input_ids, dtype=np.float32)
        places = np.arange(len(ids)) - before
        left = np.where(window.start == before, 1000, places)
        right = np.where(window.stop == text.body[1], 1000, window.stop - window.start - 1 - places)
        rows.append(np.stack([ids, np.minimum(left, right)], axis=1).astype(np.float32))
    merged = long_texts.merged(text, rows, Head(task="token-classification", labels=("id", "room")), None)
    assert merged[:, 0].tolist() == text.input_ids
    best = np.full(text.used, -1.0)
    for each in rows:
        for token_id, distance in each:
            best[int(token_id) - 1] = max(best[int(token_id) - 1], distance)
    start, end = text.body
    assert merged[start:end, 1].tolist() == best[start:end].tolist()


def test_masks_are_filled_from_the_window_that_shows_most_around_them() -> None:
    text = text_of(40, 10, 4, 1, 1)
    mask = 7
    ids = [mask if place in (0, 5, 9, 10, 11, 35, 41) else 1 for place in range(42)]
    windows = [
        window._replace(tokens=part(window.tokens, [ids[i - 1] for i in window.tokens.input_ids]))
        for window in text.windows
    ]
    text = part(text, ids, windows=tuple(windows))
    answers: list[Any] = []
    for number, window in enumerate(text.windows):
        places = [place for place, token in enumerate(window.tokens.input_ids) if token == mask]
        answers.append(
            MaskFill(
                masks=tuple(((f"{number}:{place}", 1.0),) for place in places),
                token_ids=tuple((place,) for place in places),
                tokens=0,
                tokens_used=0,
                engine="fake",
                precision="fp32",
            )
        )
    merged = long_texts.merged_masks(text, answers, mask)
    # Windows of the body hold places 1 to 10, 7 to 16, ...; place 9 is 1 from the end of the first, 2 from the start.
    assert [mask[0][0] for mask in merged.masks] == ["0:0", "0:5", "1:3", "1:4", "1:5", "5:5", "5:11"]
    assert (merged.tokens, merged.tokens_used, merged.windows, merged.truncated) == (42, 42, len(text.windows), False)


def part(tokens: Tokens, ids: list[int], **changes: Any) -> Tokens:
    return Tokens(**{**vars(tokens), "input_ids": ids, **changes})


SINGLE = Head(task="text-classification", labels=("a", "b"), problem_type="single_label_classification")
MULTI = Head(task="text-classification", labels=("a", "b"), problem_type="multi_label_classification")
VALUE = Head(task="text-classification", labels=("a", "b"), problem_type="regression")


def test_the_ways_to_merge() -> None:
    text = text_of(12, 8, 2, 1, 1)  # windows of 10 and 8 tokens
    logits = [np.array([1.0, 3.0], dtype=np.float32), np.array([2.0, -4.0], dtype=np.float32)]
    for head in (SINGLE, MULTI, VALUE):
        assert long_texts.merged(text, logits, head, None).tolist() == [1.5, -0.5]
        assert long_texts.merged(text, logits, head, "mean").tolist() == [1.5, -0.5]
    mean = [(10 * 1 + 8 * 2) / 18, (10 * 3 - 8 * 4) / 18]  # by tokens
    assert long_texts.merged(text, logits, SINGLE, "max").tolist() == [2.0, -4.0]  # 6 apart: the surest window
    assert long_texts.merged(text, logits, MULTI, "max").tolist() == [2.0, 3.0]
    assert long_texts.merged(text, logits, VALUE, "max").tolist() == [2.0, 3.0]
    rerank = Head(task="rerank", labels=("score",))
    assert long_texts.merged(text, [row[:1] for row in logits], rerank, None).tolist() == [2.0]
    unit = long_texts.merged(text, logits, Head(task="embeddings"), None, unit=True)
    assert np.linalg.norm(unit) == pytest.approx(1.0) and unit / unit[0] == pytest.approx(np.array(mean) / mean[0])
    assert long_texts.merged(text, logits, Head(task="embeddings"), None) == pytest.approx(mean)


def by_length(batch: PackedBatch) -> FloatArray:
    """Logits that tell a sequence's number of tokens."""
    return np.array([[length / 100, 0.0, -1.0] for length in batch.lengths], dtype=np.float32)


@pytest.fixture
def fake(bundle: Bundles) -> Iterator[tuple[Model, FakeEngine]]:
    engine = FakeEngine(by_length)
    with load(bundle(NAME), engine=engine) as model:
        engine.batches.clear()  # of the self-check
        yield model, engine


LONG = "a film of many words " * 400


def test_windows_share_micro_batches_with_other_texts(fake: tuple[Model, FakeEngine]) -> None:
    model, engine = fake
    limit = model.manifest.max_length
    answer, short = model.predict([LONG, "a film"], truncation="window", stride=50, return_logits=True)
    lengths = sorted(length for batch in engine.batches for length in batch.lengths)
    assert answer.windows == len(lengths) - 1 > 2 and short.windows == 1
    assert lengths[-2:] == [limit, limit] and lengths[0] == short.tokens
    assert not answer.truncated and answer.tokens == answer.tokens_used > 2 * limit
    own = np.array(lengths[1:])
    assert answer.logits is not None and answer.logits[0] == pytest.approx(own.mean() / 100)
    assert any(len(batch.lengths) > 1 for batch in engine.batches)
    (cut,) = model.predict([LONG])
    assert cut.truncated and cut.tokens == answer.tokens and cut.windows == 1


def test_a_call_says_what_load_did_not(fake: tuple[Model, FakeEngine], bundle: Bundles) -> None:
    model, engine = fake
    mean, largest, first = (
        model.predict([LONG], truncation="window", merge=how)[0] for how in ("mean", "max", "first")
    )
    assert mean.windows == largest.windows > 1 == first.windows and first.truncated
    assert first.score == model.predict([LONG])[0].score == largest.score > mean.score
    (awaited,) = asyncio.run(model.apredict([LONG], truncation="window"))
    assert awaited == mean and next(model.predict(iter([LONG]), truncation="window")) == mean
    refused = next(iter(model.results([LONG], truncation="error")))
    assert isinstance(refused, Failure) and "read in windows" in str(refused.error)
    with load(bundle(NAME), engine=engine, truncation="window", stride=0, merge="max") as windowed:
        assert windowed.predict([LONG])[0].windows < mean.windows
        assert windowed.predict([LONG], stride=500)[0].windows > mean.windows
        assert windowed.predict([LONG], truncation="truncate")[0].truncated
        assert windowed.logits([LONG])[0].shape == (3,)
        (tokens,) = windowed.encode([LONG])
        assert isinstance(tokens, Tokens) and len(tokens.windows) == windowed.predict([LONG])[0].windows
    with pytest.raises(UsageError, match="ask for truncation='window'"):
        model.predict([LONG], stride=3)
    with pytest.raises(UsageError, match="never comes to its end"):
        model.predict([LONG], truncation="window", stride=2000)


def test_a_text_is_cut_at_the_end_that_the_call_names(fake: tuple[Model, FakeEngine]) -> None:
    model, engine = fake
    (whole,) = model.encode(["good " + LONG + "bad"])
    engine.batches.clear()
    model.predict(["good " + LONG + "bad"], truncation_side="left")
    model.predict(["good " + LONG + "bad"], truncation_side="right")
    left, right = (batch.input_ids[: model.manifest.max_length].tolist() for batch in engine.batches)
    assert isinstance(whole, Tokens) and right == whole.input_ids and left[:1] == right[:1] and left[-1:] == right[-1:]
    (end,) = model.encode(["s bad"])
    assert isinstance(end, Tokens) and left[-3:] == end.input_ids[-3:] and left[-3:] != right[-3:]


def test_what_waits_is_counted_by_windows(bundle: Bundles) -> None:
    with load(bundle(NAME), engine=FakeEngine(by_length), limits=Limits(tokens=2000)) as model:
        assert asyncio.run(model.apredict(LONG)).truncated
        with pytest.raises((UsageError, OverloadedError), match="more than may ever wait"):
            asyncio.run(model.apredict(LONG, truncation="window"))
        assert model.predict([LONG], truncation="window")[0].windows > 1  # a thread waits


def test_all_or_none_computes_nothing_where_a_text_cannot_be_read(fake: tuple[Model, FakeEngine]) -> None:
    model, engine = fake
    got = asyncio.run(model.aresults(["a film", LONG, "", "a plot"], truncation="error", all_or_none=True))
    assert [answer.index for answer in got.answers if isinstance(answer, Failure)] == [1, 2]
    assert len(got.answers) == 2 and not engine.batches


def test_merging_is_for_answers_that_have_no_tokens(bundle: Bundles) -> None:
    for name, method, merge in (
        ("modernbert-token", "tag", "max"),
        ("modernbert-embed-mean-unit", "embed", "max"),
        ("modernbert-token", "tag", "mean"),
    ):
        with load(bundle(name), threads=1) as model:
            with pytest.raises(UsageError, match=f"merge='{merge}' is not for {model.task}"):
                getattr(model, method)(["a film"], truncation="window", merge=merge)
            with pytest.raises(UsageError, match=f"is not for {model.task}"):
                load(bundle(name), truncation="window", merge=merge)


def test_embeddings_of_windows_have_length_1_where_the_bundles_have(bundle: Bundles) -> None:
    with load(bundle("modernbert-embed-mean-unit"), threads=1) as model:
        (got,) = model.embed([LONG], truncation="window", stride=10)
        (tokens,) = model._inference.encode([LONG], "", LongTexts(truncation="window", stride=10))
        assert isinstance(tokens, Tokens) and np.linalg.norm(got) == pytest.approx(1.0, abs=1e-5)
        rows = [model.run_ids([window.tokens.input_ids])[0] for window in tokens.windows]
        mean = np.average(rows, axis=0, weights=[window.tokens.used for window in tokens.windows])
        assert got == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
        (result,) = model.results([LONG], truncation="window")
        assert not isinstance(result, Failure) and result.windows > 1 and not result.truncated


def test_entities_across_the_border_of_windows_are_whole(bundle: Bundles) -> None:
    """A tagger that sees only what has 20 tokens on both sides in its window."""
    with load(bundle("modernbert-token"), threads=1) as real:
        (marker,) = {tokens.input_ids[1] for tokens in real.encode(["Z"]) if isinstance(tokens, Tokens)}
        labels = real.labels
    tagged = labels.index(next(label for label in labels if label != "O"))

    def tag(batch: PackedBatch) -> FloatArray:
        rows = []
        for start, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
            ids = batch.input_ids[start:end]
            row = np.zeros((len(ids), len(labels)), dtype=np.float32)
            row[:, labels.index("O") if "O" in labels else 1 - tagged] = 1.0
            row[(ids == marker) & (np.arange(len(ids)) >= 20) & (np.arange(len(ids)) < len(ids) - 20), tagged] = 9.0
            rows.append(row)
        return np.concatenate([*rows, np.zeros((len(batch.input_ids) - batch.cu_seqlens[-1], len(labels)))], axis=0)

    text = "xxxxxxxxxx " * 30 + ("Z" * 7 + " xxxx ") * 200 + "xxxxxxxxxx " * 30
    with load(bundle("modernbert-token"), engine=FakeEngine(tag)) as model:
        (seen,) = model.tag([text], truncation="window", stride=64, strategy="none")
        (blind,) = model.tag([text], truncation="window", stride=0, strategy="none")
    want = [place for place, letter in enumerate(text) if letter == "Z"]
    found = [entity.start for entity in seen.entities if entity.label == labels[tagged]]
    assert found == want and seen.windows > 2
    assert all(text[entity.start : entity.end] == entity.text for entity in seen.entities)
    assert 0 < sum(entity.label == labels[tagged] for entity in blind.entities) < len(found)


def test_masks_of_a_long_text_are_all_filled(bundle: Bundles) -> None:
    with load(bundle("modernbert-mlm"), threads=1) as model:
        text = "a [MASK] film " + LONG + "a [MASK] end"
        (got,) = model.fill([text], truncation="window")
        (first,) = model.fill([text])
        assert len(got.masks) == 2 and len(first.masks) == 1 and got.windows > 1 and not got.truncated
        assert got.masks[0] == first.masks[0]
        failed = next(iter(model.results([LONG], truncation="window")))
        assert isinstance(failed, Failure) and "no [MASK] to fill" in str(failed.error)


def test_pairs_are_ranked_by_their_best_window(bundle: Bundles) -> None:
    with load(bundle("bert-rerank"), threads=1) as model:
        long = "a film of many words " * 120 + "splendid " * 200
        (best,) = model.rerank("a film", [long], truncation="window", stride=20)
        (tokens,) = model._inference.encode([("a film", long)], "", LongTexts(truncation="window", stride=20))
        assert isinstance(tokens, Tokens) and len(tokens.windows) > 2
        rows, _ = model._inference.run([window.tokens for window in tokens.windows])
        scores = model.manifest.head.probabilities(np.stack(rows))
        assert best.score == pytest.approx(float(scores.max()), abs=1e-5)


def test_odd_texts_are_refused_alone() -> None:
    texts = ["half a pair \ud83d", "  \n ", "", "\ufffe\uffff and \x00 a film", "a\u0301\u200d 👩‍👩‍👧 \U0010ffff"]
    with load(threads=1) as model:
        for long in ("truncate", "window", "error"):
            answers = model.predict(texts, on_error="return", truncation=long)  # type: ignore[call-overload]
            errors = [str(answer.error) if isinstance(answer, Failure) else "" for answer in answers]
            assert "not valid Unicode" in errors[0] and errors[3:] == ["", ""]
            assert all("empty or only spaces" in error for error in errors[1:3])


@pytest.mark.slow
def test_a_text_of_1_mb_is_cut_or_refused_or_read() -> None:
    with load(threads=1) as model:
        words, one = "a dull film " * 80_000, "a" * 1_000_000
        for text in (words, one):
            (answer,) = model.predict([text])
            assert answer.truncated and answer.tokens_used == 1024
        (read,) = model.predict([words], truncation="window")
        assert read.windows > 200 and not read.truncated
        with pytest.raises(TextError, match="over the limit of 512"):
            model.predict([one], truncation="window")
