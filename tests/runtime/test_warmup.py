"""The shapes of a warm-up, and that it ends in time."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopad.runtime.batching import BatchPlanner
from nopad.runtime.errors import EngineError
from nopad.runtime.predictor import load
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.warmup import shapes, warm_up


def model_of(planner: BatchPlanner, max_length: int) -> Any:
    return SimpleNamespace(
        profiles=planner.profiles,
        token_budget=planner.token_budget,
        takes=planner.takes,
        manifest=SimpleNamespace(max_length=max_length),
    )


def ranges(most: int) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(*[st.integers(1, most)] * 3).map(lambda three: tuple(sorted(three)))  # type: ignore[return-value]


def profiles_of(tokens: tuple[int, int, int]) -> st.SearchStrategy[ShapeProfile]:
    most = tokens[2]
    return st.builds(ShapeProfile, tokens=st.just(tokens), sequences=ranges(most), longest=ranges(most))


@settings(max_examples=50)
@given(st.lists(ranges(600).flatmap(profiles_of), min_size=1, max_size=3))
def test_every_shape_fits_a_profile(profiles: list[ShapeProfile]) -> None:
    planner = BatchPlanner(engine_tokens=512, profiles=tuple(profiles))
    found = list(shapes(model_of(planner, 512)))
    assert all(planner.takes(lengths) and min(lengths) >= 1 for lengths in found)
    assert len(found) <= 2 * len(profiles)


def test_each_ordinary_profile_is_run_at_its_best_and_its_largest() -> None:
    profiles = (
        ShapeProfile(tokens=(1, 64, 256), sequences=(1, 4, 16), longest=(1, 32, 64)),
        ShapeProfile(tokens=(1, 512, 1024), sequences=(1, 1, 2), longest=(1, 512, 512)),
    )
    planner = BatchPlanner(engine_tokens=512, profiles=profiles)
    found = [(sum(lengths), len(lengths), max(lengths)) for lengths in shapes(model_of(planner, 512))]
    assert [(count, longest) for _, count, longest in found] == [(4, 32), (16, 64), (1, 512), (2, 512)]
    assert all(tokens >= 0.9 * wanted for (tokens, _, _), wanted in zip(found, (64, 256, 512, 1024), strict=True))


def test_without_profiles_a_short_text_a_full_micro_batch_and_the_full_length() -> None:
    assert list(shapes(model_of(BatchPlanner(engine_tokens=512), 1024))) == [[8], [32] * 16, [1024]]
    assert list(shapes(model_of(BatchPlanner(engine_tokens=16), 4))) == [[4], [4] * 4, [4]]


def test_it_leaves_out_what_would_take_too_long_and_stops_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with load(threads=1) as model:
        whole = warm_up(model)
        assert (whole.runs, whole.skipped) == (3, 0)
        assert warm_up(model, seconds=0.0).runs == 1  # of the first, nothing is known
        asked = iter([False, True])
        stopped = warm_up(model, stop=lambda: next(asked))
        assert (stopped.runs, stopped.skipped) == (1, 2)
        ran: list[list[int]] = []
        monkeypatch.setattr(type(model), "run_ids", lambda self, batch: ran.extend(batch))
        warm_up(model)
        assert len(ran[-1]) == model.manifest.max_length and ran[-1][0] != ran[-1][1] != ran[-1][-1]


def test_an_engine_that_fails_at_a_shape_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with load(threads=1) as model:
        real = model._inference.chain.run

        def run(batch: Any) -> Any:
            if batch.num_tokens > 100:
                raise EngineError("out of memory")
            return dataclasses.replace(real(batch))

        monkeypatch.setattr(model._inference.chain, "run", run)
        with pytest.raises(EngineError, match="out of memory"):
            warm_up(model)
