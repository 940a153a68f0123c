"""`Model.explain`: scores are differences of the model's own answers, whatever the engine, window or caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopad.model.head import Head
from nopad.runtime import Explanation, Failure, Model, load
from nopad.runtime.errors import TextError, UsageError
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import BYS, By, Removal

TEXT = "A dull film. But the acting wasn't bad; I loved it!"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load(threads=1) as opened:
        yield opened


def explained(model: Model, text: str = TEXT, **options: object) -> Explanation:
    (found,) = model.explain([text], **options)  # type: ignore[arg-type]
    assert isinstance(found, Explanation)
    return found


def asked(model: Model, ids: list[int], label: str) -> float:
    (logits,) = model.run_ids([ids])
    return float(model.manifest.head.log_odds(logits, model.labels.index(label)))


@pytest.mark.parametrize("by", BYS)
@pytest.mark.parametrize("removal", ["drop", "mask"])
def test_occlusion_is_the_answer_without_each_part(model: Model, by: By, removal: Removal) -> None:
    found = explained(model, by=by, removal=removal)
    (tokens,) = model.encode([TEXT])
    assert isinstance(tokens, Tokens)
    mask = model._inference.mask_id
    assert mask is not None
    assert found.value == pytest.approx(asked(model, tokens.input_ids, found.label), abs=1e-5)
    for each in found.attributions:
        inside = [
            not special and each.start < end <= each.end
            for (_, end), special in zip(tokens.offsets, tokens.special, strict=True)
        ]
        pairs = list(zip(tokens.input_ids, inside, strict=True))
        ids = [t for t, out in pairs if not out] if removal == "drop" else [mask if out else t for t, out in pairs]
        assert each.score == pytest.approx(found.value - asked(model, ids, found.label), abs=1e-5)
        assert each.text == TEXT[each.start : each.end]
    assert found.runs == len(found.attributions) + 2


def test_the_answer_is_that_of_predict(model: Model) -> None:
    (answer,) = model.predict([TEXT])
    found = explained(model)
    assert (found.label, found.engine, found.precision) == (answer.label, answer.engine, answer.precision)
    assert found.score == pytest.approx(answer.score, abs=1e-6)
    assert found.value == pytest.approx(np.log(answer.score / (1 - answer.score)), abs=1e-4)


def test_of_two_labels_one_is_the_other_reversed(model: Model) -> None:
    negative, positive = (explained(model, label=label) for label in ("negative", "positive"))
    assert [each.score for each in negative.attributions] == pytest.approx(
        [-each.score for each in positive.attributions], abs=1e-5
    )
    strongest = max(negative.attributions, key=lambda each: each.score)
    assert strongest.text == "dull"


@pytest.mark.parametrize("by", BYS)
def test_shapley_values_add_up(model: Model, by: By) -> None:
    found = explained(model, by=by, method="shapley", budget=None if by == "sentence" else 80)
    assert abs(found.residual) < 1e-9
    assert found.runs <= 80


def test_few_words_get_exact_shapley_values(model: Model) -> None:
    found = explained(model, "not bad", method="shapley")
    assert found.runs == 4
    (tokens,) = model.encode(["not bad"])
    assert isinstance(tokens, Tokens)
    start, first, second, end = tokens.input_ids
    nothing, alone, other, both = (
        asked(model, ids, found.label)
        for ids in ([start, end], [start, first, end], [start, second, end], tokens.input_ids)
    )
    want = ((alone - nothing) + (both - other)) / 2
    assert found.attributions[0].score == pytest.approx(want, abs=1e-5)


def test_a_long_text_is_explained_in_all_its_windows(model: Model) -> None:
    text = "It was a film about trains. " * 200 + "Awful, dull, a waste of time."
    cut, windows = (explained(model, text, by="sentence", truncation=way) for way in ("truncate", "window"))
    assert cut.truncated and not windows.truncated and windows.windows > 1
    assert windows.attributions[-1].text == "Awful, dull, a waste of time."
    (answer,) = model.predict([text], truncation="window")
    assert windows.label == answer.label and windows.score == pytest.approx(answer.score, abs=1e-5)
    # A sentence changes only the windows that hold it, and the others are not run again.
    assert windows.runs < (len(windows.attributions) + 2) * windows.windows


def test_both_texts_of_a_pair_are_explained(bundle: Callable[[str], Path]) -> None:
    with load(bundle("bert-rerank"), threads=1) as reranker:
        (found,) = reranker.explain([("a film", "a splendid film")], method="shapley")
    assert isinstance(found, Explanation)
    assert [(each.part, each.text) for each in found.attributions][:2] == [(0, "a"), (0, "film")]
    assert {each.part for each in found.attributions} == {0, 1} and abs(found.residual) < 1e-9


def test_several_labels_at_once_each_have_an_explanation(bundle: Callable[[str], Path]) -> None:
    with load(bundle("modernbert-multi-cls"), threads=1) as multi:
        for number, label in enumerate(multi.labels):
            (found,) = multi.explain(["a film of trains"], label=label)
            assert isinstance(found, Explanation) and found.label == label
            (answer,) = multi.predict(["a film of trains"], return_logits=True)
            assert answer.logits is not None and found.value == pytest.approx(float(answer.logits[number]), abs=1e-5)


def test_coroutines_get_the_same(model: Model) -> None:
    async def both() -> list[Explanation]:
        return list(await asyncio.gather(model.aexplain(TEXT), model.aexplain(TEXT, method="shapley", budget=60)))

    occlusion, shapley = asyncio.run(both())
    assert [each.score for each in occlusion.attributions] == pytest.approx(
        [each.score for each in explained(model).attributions], abs=1e-5
    )
    assert shapley.method == "shapley" and abs(shapley.residual) < 1e-9


def test_whitespace_changes_nothing(model: Model) -> None:
    one, two = (explained(model, text).attributions for text in (TEXT, TEXT.replace(" ", "  ") + "\n"))
    assert [each.text for each in one] == [each.text for each in two]
    assert [each.score for each in one] == pytest.approx([each.score for each in two], abs=1e-5)


def test_what_cannot_be_explained_is_named(model: Model, bundle: Callable[[str], Path]) -> None:
    for options, words in (
        ({"label": "neutral"}, "no label 'neutral'; it has negative, positive"),
        ({"method": "lime"}, "method is one of occlusion"),
        ({"by": "paragraph"}, "by is one of token"),
        ({"removal": "blur"}, "removal is one of drop"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"method": "integrated-gradients"}, "onnx-cpu has none: it can do occlusion and shapley"),
    ):
        with pytest.raises(UsageError, match=words):
            model.explain([TEXT], **options)  # type: ignore[arg-type]
    with load(bundle("modernbert-token"), threads=1) as tagger, pytest.raises(UsageError, match="token-classification"):
        tagger.explain([TEXT])
    with pytest.raises(UsageError, match="list of texts"):
        model.explain(TEXT)


def test_a_bad_text_fails_alone(model: Model) -> None:
    texts = ["dull", " ", TEXT]
    with pytest.raises(TextError, match="text 1: the text is empty"):
        model.explain(texts)
    dull, empty, long = model.explain(texts, on_error="return", budget=5)
    assert isinstance(dull, Explanation)
    assert isinstance(empty, Failure) and empty.index == 1
    assert isinstance(long, Failure) and "at least 16 runs, not 5; raise it, or explain by sentence" in str(long.error)


@settings(max_examples=60)
@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=5), st.floats(0.25, 4), st.data())
def test_log_odds_are_those_of_the_probability(logits: list[float], temperature: float, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(logits) - 1))
    head = Head(
        task="text-classification",
        labels=tuple(map(str, range(len(logits)))),
        problem_type="single_label_classification",
        temperature=temperature,
    )
    row = np.array(logits, dtype=np.float32)
    odds = head.log_odds(np.stack([row, row]), label)
    assert odds.shape == (2,)
    assert 1 / (1 + np.exp(-odds[0])) == pytest.approx(float(head.probabilities(row)[label]), abs=1e-5)
