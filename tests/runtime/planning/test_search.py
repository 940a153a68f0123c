"""Planned profiles cover every text within the memory; their forecast cost is that of the runtime's own plan, and at
most that of one wide profile.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from architectures import ARCHITECTURES
from architectures import MODERNBERT_BASE as BASE
from hypothesis import given, settings
from hypothesis import strategies as st

from nopad.model.packing import pack
from nopad.runtime.batching import WINDOW, plan_in_profiles
from nopad.runtime.errors import UsageError
from nopad.runtime.planning.cost_model import CostModel, cost_model
from nopad.runtime.planning.search import LEAST_GAIN, Plan, default_profiles, plan_profiles
from nopad.runtime.profiles import ShapeProfile, choose_profile

FAST = settings(max_examples=80, derandomize=True)


def cost(model: CostModel, lengths: list[int], profiles: tuple[ShapeProfile, ...], plan: Plan) -> tuple[float, int]:
    """Cost and number of the runtime's own micro-batches in these profiles."""
    batches = plan_in_profiles(
        lengths, profiles, token_budget=plan.token_budget, max_sequences=WINDOW, multiple=model.block
    )
    total = 0.0
    for members in ([lengths[i] for i in batch] for batch in batches):
        shape = (-(-sum(members) // model.block) * model.block, len(members), max(members))
        assert any(profile.admits(*shape) for profile in profiles)
        total += model.work(*shape) + model.launch_flops
    return total, len(batches)


LENGTHS = st.lists(st.one_of(st.integers(1, 80), st.integers(1, 700), st.integers(1, 3000)), min_size=1, max_size=60)


@FAST
@given(
    lengths=LENGTHS,
    architecture=st.sampled_from(ARCHITECTURES),
    memory=st.floats(1, 6),
    most=st.integers(1, 4),
    block=st.sampled_from([64, 128]),
    longer=st.one_of(st.none(), st.integers(1, 4000)),
    budget=st.integers(1, 5000),
    keeps=st.booleans(),
)
def test_the_properties_of_a_plan(
    lengths: list[int],
    architecture: Any,
    memory: float,
    most: int,
    block: int,
    longer: int | None,
    budget: int,
    keeps: bool,
) -> None:
    model = cost_model(architecture, block=block, keeps_scores=keeps)
    limit = longer or max(lengths)
    top = -(-limit // block) * block
    bound = int(memory * model.memory(top, 1, top)) + 1
    plan = plan_profiles(
        lengths,
        architecture=architecture,
        memory_bytes=bound,
        most=most,
        block=block,
        max_length=longer,
        token_budget=budget,
        keeps_scores=keeps,
    )
    assert 1 <= len(plan.profiles) <= most
    # Every text is covered; each profile is wider than the one before (ShapeProfile checks min <= opt <= max).
    longest = [profile.longest[2] for profile in plan.profiles]
    assert longest == sorted(set(longest)) and longest[-1] == plan.max_length == plan.wide.profile.longest[2] == top
    # The memory holds at every corner, and for all of them together.
    corners = [model.memory(profile.tokens[2], profile.sequences[2], profile.longest[2]) for profile in plan.profiles]
    assert corners == [forecast.memory_bytes for forecast in plan.forecasts]
    assert sum(corners) <= bound and plan.wide.memory_bytes <= bound
    # The forecast is what the runtime does: few texts are one window.
    used = [min(length, limit) for length in lengths]
    planned, batches = cost(model, used, plan.profiles, plan)
    wide, wide_batches = cost(model, used, (plan.wide.profile,), plan)
    assert planned == pytest.approx(sum(forecast.cost for forecast in plan.forecasts), rel=1e-9)
    assert wide == pytest.approx(plan.wide.cost, rel=1e-9)
    assert (
        batches == sum(forecast.micro_batches for forecast in plan.forecasts)
        and wide_batches == plan.wide.micro_batches
    )
    assert plan.cost_ratio == pytest.approx(planned / wide) and plan.cost_ratio <= 1
    assert len(plan.profiles) == 1 or plan.cost_ratio <= 1 - LEAST_GAIN * (len(plan.profiles) - 1)
    # Shares are shares of everything.
    assert sum(forecast.texts for forecast in plan.forecasts) == pytest.approx(1)
    assert sum(forecast.tokens for forecast in plan.forecasts) == pytest.approx(1)
    for shares in (*plan.forecasts, plan.wide, plan):
        assert -1e-9 <= shares.waste < 1 and 0 <= shares.launches < 1
    assert (plan.texts, plan.simulated) == (len(lengths), len(lengths))
    assert plan.cut == sum(length > limit for length in lengths)


@FAST
@given(lengths=LENGTHS, data=st.data())
def test_the_order_and_the_form_of_lengths_do_not_matter(lengths: list[int], data: st.DataObject) -> None:
    plan = plan_profiles(lengths, architecture=BASE, memory_bytes=8 << 30)
    assert plan_profiles(data.draw(st.permutations(lengths)), architecture=BASE, memory_bytes=8 << 30) == plan
    histogram = {length: lengths.count(length) for length in lengths} | {8000: 0}
    assert plan_profiles(histogram, architecture=BASE, memory_bytes=8 << 30) == plan


def lognormal(count: int, seed: int = 0) -> list[int]:
    """Lengths like those of reviews."""
    draw = random.Random(seed)
    return [max(3, min(2000, int(draw.lognormvariate(5.3, 0.7)))) for _ in range(count)]


def test_more_profiles_are_never_worse() -> None:
    lengths = [*lognormal(400), 8000, 5000]
    plans = [plan_profiles(lengths, architecture=BASE, memory_bytes=6 << 30, most=most) for most in range(1, 6)]
    worth = [plan.cost_ratio + LEAST_GAIN * len(plan.profiles) for plan in plans]
    assert worth == sorted(worth, reverse=True)
    assert plans[0].forecasts == (plans[0].wide,) and plans[0].cost_ratio == 1
    assert plans[-1].cost_ratio < 0.7


def test_no_two_profiles_of_a_grid_are_better() -> None:
    lengths = lognormal(200)
    memory = 2 << 30
    plan = plan_profiles(lengths, architecture=BASE, memory_bytes=memory, most=2)
    model = cost_model(BASE)
    top = plan.max_length
    sizes = [(tokens, n) for tokens in (1024, 4096, 16384) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]

    def fitting(longest: int) -> list[tuple[int, ShapeProfile]]:
        candidates = []
        for tokens, n in sizes:
            tokens = max(tokens, longest)
            profile = ShapeProfile(tokens=(64, 64, tokens), sequences=(1, 1, n), longest=(1, 1, longest))
            candidates.append((model.memory(tokens, n, longest), profile))
        return [(size, profile) for size, profile in candidates if size <= memory]

    best = min(
        cost(model, lengths, (narrow, wide), plan)[0]
        for cut in range(128, top, 256)
        for (small, narrow), (large, wide) in itertools.product(fitting(cut), fitting(top))
        if small + large <= memory
    )
    assert sum(forecast.cost for forecast in plan.forecasts) <= 1.02 * best


def test_short_texts_do_not_pay_for_a_long_one() -> None:
    lengths = {20: 5000, 40: 3000, 8192: 1}
    plan = plan_profiles(lengths, architecture=BASE, memory_bytes=6 << 30)
    narrow, wide = plan.forecasts
    assert narrow.profile.longest[2] == 64 and wide.profile.longest == (1, 8192, 8192)
    assert narrow.profile.sequences[2] == WINDOW and wide.profile.sequences[2] == 1
    # The wide profile alone: a run for every text, most of each filler and launch.
    assert plan.wide.profile.sequences[2] == 1 and plan.wide.micro_batches == plan.simulated
    # (27.5 tokens a text on average; 64 with filler, and the launch is worth about 190.)
    assert 27.5 / 256 < plan.cost_ratio < 0.14 and plan.waste < 0.1 < 0.4 < plan.wide.waste
    assert narrow.texts == pytest.approx(8000 / 8001)
    # An engine that keeps no scores reserves far less, so a single wide profile loses less.
    fused = plan_profiles(lengths, architecture=BASE, memory_bytes=6 << 30, keeps_scores=False)
    assert fused.wide.profile.sequences[2] > 50 and fused.cost_ratio > plan.cost_ratio


def test_equal_texts_need_one_profile() -> None:
    plan = plan_profiles([64] * 1000, architecture=BASE)
    assert len(plan.profiles) == 1
    assert plan.profiles[0].longest == (1, 64, 64) and plan.profiles[0].sequences[1] == plan.profiles[0].tokens[1] // 64
    assert plan.waste == pytest.approx(0)  # no filler, no padding


def test_the_opt_shape_is_a_micro_batch_that_half_the_cost_is_spent_below() -> None:
    lengths = lognormal(WINDOW)
    plan = plan_profiles(lengths, architecture=BASE, most=1)
    (profile,), model = plan.profiles, cost_model(BASE)
    batches = plan_in_profiles(lengths, plan.profiles, token_budget=plan.token_budget, max_sequences=WINDOW)
    costs = {}
    for batch in batches:
        members = [lengths[i] for i in batch]
        shape = (-(-sum(members) // 64) * 64, len(members), max(members))
        costs[shape] = costs.get(shape, 0.0) + model.work(*shape) + model.launch_flops
    opt = (profile.tokens[1], profile.sequences[1], profile.longest[1])
    mine = model.work(*opt) + model.launch_flops
    assert opt in costs
    below = sum(cost for shape, cost in costs.items() if model.work(*shape) + model.launch_flops < mine)
    assert (
        below
        <= plan.wide.cost / 2
        <= plan.wide.cost - sum(cost for shape, cost in costs.items() if model.work(*shape) + model.launch_flops > mine)
    )


def test_a_plan_can_cover_longer_texts_than_were_given() -> None:
    plan = plan_profiles([20] * 100, architecture=BASE, memory_bytes=6 << 30, max_length=8192)
    assert [profile.longest[2] for profile in plan.profiles] == [64, 8192]
    assert (plan.forecasts[1].texts, plan.forecasts[1].micro_batches, plan.forecasts[1].waste) == (0, 0, 0)
    assert plan.profiles[1].tokens[1] == plan.profiles[1].longest[1] == 8192


def test_large_histograms_are_sampled_evenly() -> None:
    plan = plan_profiles({30: 9_000_000, 600: 1_000_000}, architecture=BASE)
    assert (plan.texts, plan.simulated) == (10_000_000, 8 * WINDOW)
    assert plan.forecasts[0].texts == pytest.approx(0.9) or len(plan.forecasts) == 1


def test_too_little_memory_is_told_with_what_it_takes() -> None:
    with pytest.raises(UsageError, match=r"8192 tokens needs 5\.\d+ GiB .*\(0\.28 GiB if .*bound is 2\.00 GiB"):
        plan_profiles([8192], architecture=BASE)
    need = cost_model(BASE).memory(64, 1, 64)
    assert plan_profiles([64], architecture=BASE, memory_bytes=need).profiles[0].tokens == (64, 64, 64)
    with pytest.raises(UsageError, match="one text of 64 tokens"):
        plan_profiles([64], architecture=BASE, memory_bytes=need - 1)


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "needs texts"),
        ([5, 0], {}, "at least one token"),
        ({5: 0}, {}, "needs texts"),
        ([5], {"most": 0}, "must be positive"),
        ([5], {"max_length": 0}, "must be positive"),
        ([5], {"architecture": {"model_type": "roberta"}}, "bundles of the packed exporter"),
        ([5], {"architecture": {**BASE, "num_layers": 3}}, "not described as a packed encoder's"),
        ([5], {"architecture": {**BASE, "hidden_size": "wide"}}, "not described as a packed encoder's"),
    ],
)
def test_what_cannot_be_planned(lengths: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_profiles(lengths, **{"architecture": BASE, **options})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("max_length", [3, 128, 129, 512, 1000, 8192])
@pytest.mark.parametrize("block", [64, 128])
def test_default_profiles_take_every_text(architecture: Any, max_length: int, block: int) -> None:
    profiles = default_profiles(max_length, architecture=architecture, block=block)
    tops = [profile.longest[2] for profile in profiles]
    assert tops == sorted({edge for edge in (128, 512) if edge < max_length} | {-(-max_length // block) * block})
    lengths = [n for n in (1, 2, 127, 128, 129, 511, 513, 1000, 8192) if n <= max_length] * 3
    for members in plan_in_profiles(lengths, profiles, token_budget=None, max_sequences=WINDOW, multiple=block):
        index = choose_profile(profiles, pack([[1] * lengths[i] for i in members], multiple=block))
        assert index is not None
    model = cost_model(architecture, block=block)
    for profile in profiles[:-1]:
        corner = model.memory(profile.tokens[2], profile.sequences[2], profile.longest[2])
        assert corner <= (2 << 30) / len(profiles)
        assert profile.sequences[2] >= 16 and profile.tokens[1] % block == 0


def test_a_plan_as_json() -> None:
    plan = plan_profiles(lognormal(50), architecture=BASE)
    raw = json.loads(json.dumps(plan.to_json()))
    assert raw["cost_ratio"] == plan.cost_ratio and len(raw["forecasts"]) == len(plan.forecasts)
    assert raw["wide"]["profile"]["tokens"] == list(plan.wide.profile.tokens)
