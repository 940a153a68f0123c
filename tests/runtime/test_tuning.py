"""What `nopad tune` finds: the fastest engine, micro-batch and threads, among engines whose speed is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from several_files import AMD, Seconds, clock, on_cpu, stand_in, with_files

from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.errors import EngineError, EnvironmentProblem
from nopad.runtime.manifest import Artifact
from nopad.runtime.tokenizer import TextEncoder, Tokens, open_bundle_encoder
from nopad.runtime.tuning import Tuning, sample_of, tune

KINDS = (("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
TEXTS = ["short", "a film of some length", "a longer film, and again " * 12] * 50
Tune = Callable[..., Tuning]


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tune:
    """Tunes a bundle on engines that take `seconds` for a batch, by a clock that only they move."""
    bundle = with_files(tmp_path / "bundle", *KINDS)
    encoder = open_bundle_encoder(bundle)
    texts = encoder.encode(TEXTS)
    on_cpu(monkeypatch, AMD)

    now = clock(monkeypatch)

    def call(seconds: Seconds, cores: int = 1, **options: Any) -> Tuning:
        stand_in(monkeypatch, seconds)
        monkeypatch.setattr("nopad.runtime.tuning.usable_cores", lambda: cores)
        given = [text for text in texts if isinstance(text, Tokens)]
        result = tune(bundle, encoder, given, sm=lambda: None, seconds=10, **options)
        assert now() < 15
        return result

    return call


def by_token(**rates: float) -> Seconds:
    """Engines that take so many microseconds a token, by engine_precision."""

    def seconds(name: str, artifact: Artifact, options: EngineOptions, batch: PackedBatch) -> float:
        return batch.num_tokens * rates[f"{name.replace('-', '_')}_{artifact.precision}"] * 1e-6

    return seconds


SPEEDS = by_token(onnx_cpu_fp32=20, openvino_fp32=10, openvino_bf16=4)


def test_the_fastest_engine_wins_and_no_precision_is_lowered_unasked(tuned: Tune) -> None:
    result = tuned(SPEEDS)
    assert (result.winner.setting.engine, result.winner.setting.precision) == ("openvino", "fp32")
    assert {one.setting.precision for one in result.measured} == {"fp32"}
    assert {one.setting.engine for one in result.measured} == {"openvino", "onnx-cpu"}
    slowest, fastest = result.winner.range
    assert slowest <= result.winner.rate <= fastest and len(result.winner.seconds) >= 3
    assert result.winner.rate == pytest.approx(100_000) == result.measured[0].rate


def test_lower_precisions_compete_where_they_are_named(tuned: Tune) -> None:
    result = tuned(SPEEDS, precisions=("fp32", "bf16"))
    assert (result.winner.setting.file, result.winner.setting.precision) == ("model.openvino.bf16.onnx", "bf16")
    assert {one.setting.precision for one in result.measured} == {"fp32", "bf16"}


def test_what_gains_nothing_changes_nothing(tuned: Tune) -> None:
    result = tuned(by_token(onnx_cpu_fp32=20, openvino_fp32=19.7, openvino_bf16=19.7), precisions=("fp32", "bf16"))
    assert (result.winner.setting.engine, result.winner.setting.precision) == ("onnx-cpu", "fp32")
    assert result.winner.setting.token_budget == 2048  # the engine's own


def test_a_micro_batch_that_suits_the_engine_better_wins(tuned: Tune) -> None:
    def slow_over_1100(name: str, artifact: Artifact, options: EngineOptions, batch: PackedBatch) -> float:
        return batch.num_tokens * (30e-6 if batch.num_tokens > 1100 else 10e-6)

    result = tuned(slow_over_1100, threads=1)
    assert result.winner.setting.token_budget == 1024
    assert result.winner.setting.threads == 1


def test_threads_are_halved_as_long_as_that_gains(tuned: Tune) -> None:
    def best_with_two(name: str, artifact: Artifact, options: EngineOptions, batch: PackedBatch) -> float:
        return batch.num_tokens * {8: 40e-6, 4: 20e-6, 2: 8e-6, 1: 30e-6}[options.threads or 8]

    result = tuned(best_with_two, cores=8)
    assert result.winner.setting.threads == 2
    assert {one.setting.threads for one in result.measured} == {8, 4, 2, 1}


def test_an_engine_that_fails_is_named_and_the_others_go_on(tuned: Tune) -> None:
    def seconds(name: str, artifact: Artifact, options: EngineOptions, batch: PackedBatch) -> float:
        if name == "openvino" and len(batch.lengths) > 1:  # not in the self-check
            return np.nan
        return SPEEDS(name, artifact, options, batch)

    result = tuned(seconds)
    assert result.winner.setting.engine == "onnx-cpu"
    (failed,) = (one for one in result.measured if one.setting.engine == "openvino")
    assert failed.rate == 0 and "NaN" in (failed.problem or "")

    def refused(*_: Any) -> float:
        raise EngineError("no such instruction")

    with pytest.raises(EnvironmentProblem, match="nothing to tune here: .*no such instruction"):
        tuned(refused)


@pytest.fixture
def lengths(tmp_path: Path) -> Callable[[Sequence[int]], list[Tokens]]:
    bundle: Bundle = with_files(tmp_path / "lengths", ("cpu", "fp32"))
    encoder: TextEncoder = open_bundle_encoder(bundle)

    def make(words: Sequence[int]) -> list[Tokens]:
        return [text for text in encoder.encode(["film " * count for count in words]) if isinstance(text, Tokens)]

    return make


def test_a_sample_is_of_neighbours_from_all_over_the_lengths(lengths: Callable[[Sequence[int]], list[Tokens]]) -> None:
    texts = lengths([1 + i % 200 for i in range(400)])
    sample = sample_of(texts, 8192)
    assert 8192 <= sum(text.used for text in sample) <= 8192 + 8 * 202
    counts = [text.used for text in sample]
    assert counts == sorted(counts) and counts[0] < 30 and counts[-1] > 180
    assert sum(b - a > 5 for a, b in zip(counts, counts[1:], strict=False)) <= 8  # blocks, without jumps inside
    assert sample_of(texts, 1e9) == sorted(texts, key=lambda text: text.used)
    assert len(sample_of(lengths([300, 300]), 100)) == 1
