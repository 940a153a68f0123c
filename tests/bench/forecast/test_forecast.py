"""Forecasts: which work is forecast, and the arithmetic of the roofline."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import onnx
import pytest
from architectures import MODERNBERT_BASE as BASE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nopad.bench.forecast.concrete_graph import open_graph
from nopad.bench.forecast.count_architecture import count_architecture
from nopad.bench.forecast.data_sheets import GPUS
from nopad.bench.forecast.forecast import (
    ERRORS,
    FIT,
    arithmetic_seconds,
    cost_of,
    forecast,
    micro_batches,
    traffic_seconds,
)
from nopad.bench.forecast.groups import Shape, UncountableError, attention, memory, product
from nopad.bench.schema import Workload
from nopad.runtime.bundle import DEFAULT_BUNDLE, Bundle, open_bundle
from nopad.runtime.errors import UsageError
from nopad.runtime.planning.cost_model import cost_model

ARCHITECTURE = open_bundle(DEFAULT_BUNDLE).manifest.architecture
T4 = GPUS["t4"]
RAGGED = Shape(tokens=1472, sequences=64, longest=53)
LONG = Shape(tokens=1024, sequences=1, longest=1024)


def workload(*lengths: int, batch: int | None = None) -> Workload:
    return Workload(
        name="some",
        kind="ragged",
        texts=len(lengths),
        tokens=sum(lengths),
        padded_tokens=len(lengths) * max(lengths),
        longest=max(lengths),
        source="here",
        batch=batch or len(lengths),
        lengths=lengths,
    )


def test_operators_of_another_target_fall_back_to_the_architecture(exported: Bundle, tmp_path: Path) -> None:
    model = onnx.load(str(exported.file("model.onnx")))
    next(node for node in model.graph.node if node.op_type == "Softmax").domain = "com.microsoft"
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(UncountableError, match="Softmax"):
        open_graph(tmp_path / "model.onnx")
    same = Bundle(path=tmp_path, manifest=exported.manifest)
    (described, _) = forecast(same, [workload(*range(20, 84))], ["t4"])
    (counted, _) = forecast(exported, [workload(*range(20, 84))], ["t4"])
    assert (described["counted"], counted["counted"]) == ("architecture", "graph")
    assert described["flops"] == pytest.approx(counted["flops"], rel=0.03)
    assert described["seconds"] == pytest.approx(counted["seconds"], rel=0.2)  # a head of five kernels on 3 layers


def test_a_bundle_for_cpus_is_forecast_as_its_export_for_gpus(exported: Bundle) -> None:
    cpu = tuple(
        dataclasses.replace(artifact, target="cpu", precision="int8", token_multiple=1)
        for artifact in exported.manifest.artifacts
    )
    manifest = dataclasses.replace(exported.manifest, artifacts=cpu)
    (row, _) = forecast(Bundle(path=exported.path, manifest=manifest), [workload(1000)], ["t4"])
    assert (row["counted"], row["precision"]) == ("architecture", "fp16")
    assert row["flops"] == cost_model(ARCHITECTURE).work(1024, 1, 1000)


def test_without_onnx_the_architecture_is_counted(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("concrete_graph", "count_graph"):
        monkeypatch.delitem(sys.modules, f"nopad.bench.forecast.{name}", raising=False)
        monkeypatch.delattr(f"nopad.bench.forecast.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    rows = forecast(exported, [workload(512)], ["t4"])
    assert {row["counted"] for row in rows} == {"architecture"}


# The arithmetic


def test_a_large_product_runs_at_what_the_board_sustains() -> None:
    group = product(16_384, 3072, 1024, precision="fp16", width=2)
    assert group.flops == 2 * 16_384 * 3072 * 1024
    assert group.bytes == 2 * (16_384 * 1024 + 1024 * 3072 + 16_384 * 3072)
    assert arithmetic_seconds(group, T4) == pytest.approx(group.flops / (65e12 * T4.sustained))
    assert arithmetic_seconds(dataclasses.replace(group, precision="int8"), T4) == pytest.approx(
        group.flops / (130e12 * T4.sustained)
    )


def test_a_small_product_pays_for_processors_without_a_tile() -> None:
    group = product(64, 768, 768, precision="fp16", width=2)
    # 24 tiles of 64 x 32 on 40 processors: one wave, as long as 40 tiles would take.
    wave = 40 * 2 * 64 * 32 * 768 / (65e12 * FIT.product_share) + FIT.wave_seconds
    assert arithmetic_seconds(group, T4) == pytest.approx(wave)
    # One row more: 24 tiles of 64 x 64 in one wave, rather than 48 of 64 x 32 in two.
    more = product(65, 768, 768, precision="fp16", width=2)
    assert arithmetic_seconds(more, T4) == pytest.approx(2 * wave - FIT.wave_seconds)


def test_attention_runs_in_blocks_of_queries() -> None:
    group = attention(80, 65, 128, 64, precision="fp16")
    assert group.flops == 4 * 80 * 65 * 128 * 64
    blocks = 80 * 2  # of 64 queries, the second nearly empty: 4 waves on 40 processors
    work = 4 * 64 * 128 * 64
    assert arithmetic_seconds(group, T4) == pytest.approx(math.ceil(blocks / 40) * 40 * work / (65e12 * 0.35))


def test_traffic_comes_from_the_cache_as_far_as_it_fits() -> None:
    speed = 320e9 * 0.8
    assert traffic_seconds(memory(1e6, precision="fp16"), T4) == pytest.approx(1e6 / 4 / speed)
    assert traffic_seconds(memory(10e6, precision="fp16"), T4) == pytest.approx((2e6 / 4 + 8e6) / speed)


def test_a_run_is_bound_by_the_largest_of_its_parts() -> None:
    many = (memory(1.0, precision="fp16"),) * 10
    assert cost_of(many, T4).bound == "launch"
    assert cost_of(many, T4).launch == pytest.approx(10 * FIT.kernel_seconds)
    assert cost_of((memory(1e9, precision="fp16"),), T4).bound == "memory"
    assert cost_of((product(8192, 8192, 8192, precision="fp16", width=2),), T4).bound == "compute"


# Properties

SIZES = st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 512))


@settings(max_examples=60)
@given(first=SIZES, more=SIZES, gpu=st.sampled_from(sorted(GPUS)), precision=st.sampled_from(["fp16", "int8"]))
def test_more_is_never_faster(
    first: tuple[int, int, int], more: tuple[int, int, int], gpu: str, precision: str
) -> None:
    small = Shape(tokens=64 * first[0], sequences=first[1], longest=first[2])
    large = Shape(
        tokens=small.tokens + 64 * more[0], sequences=small.sequences + more[1], longest=small.longest + more[2]
    )
    times = [
        cost_of(count_architecture(BASE, shape, precision=precision), GPUS[gpu]).seconds for shape in (small, large)
    ]
    assert times[0] <= times[1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=40), batch=st.integers(1, 40))
def test_packed_is_never_slower_than_padded(lengths: list[int], batch: int) -> None:
    rows = forecast(_described(), [workload(*lengths, batch=batch)], list(GPUS))
    by_gpu = {(row["gpu"], row["subject"]): row for row in rows}
    for gpu in GPUS:
        assert by_gpu[gpu, "nopad packed"]["seconds"] <= by_gpu[gpu, "padded"]["seconds"]


def _described() -> Bundle:
    """A bundle of ModernBERT-base without a graph."""
    manifest = open_bundle(DEFAULT_BUNDLE, verify=False).manifest
    engines = tuple(
        dataclasses.replace(artifact, target="tensorrt", precision="fp16") for artifact in manifest.artifacts
    )
    manifest = dataclasses.replace(manifest, architecture=BASE, artifacts=engines)
    return Bundle(path=DEFAULT_BUNDLE, manifest=manifest)


@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=60), batch=st.integers(1, 60))
def test_micro_batches_hold_every_text_once_and_no_more_tokens_than_the_predictor_takes(
    lengths: list[int], batch: int
) -> None:
    batches = micro_batches(workload(*lengths, batch=batch), token_budget=4096)
    assert sorted(length for micro_batch in batches for length in micro_batch) == sorted(lengths)
    assert all(sum(micro_batch) <= 4096 and len(micro_batch) <= batch for micro_batch in batches)
    unknown = dataclasses.replace(workload(*lengths, batch=batch), lengths=())
    guessed = [length for micro_batch in micro_batches(unknown, token_budget=4096) for length in micro_batch]
    assert len(guessed) == len(lengths) and max(guessed) == max(lengths) and sum(guessed) == sum(lengths)


# The rows


def test_rows_say_what_they_are(exported: Bundle) -> None:
    some = workload(40, 80, 120)
    rows = forecast(exported, [some], ["T4", "h100", "t4"])
    assert [(row["gpu"], row["subject"]) for row in rows] == [
        ("t4", "nopad packed"),
        ("h100", "nopad packed"),
        ("t4", "padded"),
        ("h100", "padded"),
    ]
    for row in rows:
        assert row["label"] == "forecast" and row["precision"] == "fp16" and row["workload"] == "some"
        assert row["tokens_per_second"] == pytest.approx(240 / row["seconds"])
        low, high = ERRORS[GPUS[row["gpu"]].calibration]
        assert (row["low"], row["high"]) == pytest.approx((row["seconds"] * low, row["seconds"] * high))
        assert row["low"] < row["seconds"] < row["high"]
        assert row["bound"] == "launch"  # 3 layers of 128 features
        assert row["flops"] > 0 and row["bytes"] > 0 and 0 < row["efficiency"] < 1
        assert GPUS[row["gpu"]].title in row["assumes"] and "nothing of this model was measured" in row["assumes"]
    assert rows[2]["flops"] > rows[0]["flops"]
    json.dumps(rows)


def test_precisions_are_those_that_are_asked_for_and_exist(exported: Bundle) -> None:
    rows = forecast(exported, [workload(512)], ["t4", "l4"], precisions=["bf16", "int8"])
    assert {(row["gpu"], row["precision"]) for row in rows} == {("l4", "bf16"), ("t4", "int8"), ("l4", "int8")}
    with pytest.raises(UsageError, match="fp8"):
        forecast(exported, [workload(512)], ["t4"], precisions=["fp8"])


def test_a_padded_bundle_has_no_forecast(exported: Bundle) -> None:
    padded = tuple(dataclasses.replace(artifact, layout="padded") for artifact in exported.manifest.artifacts)
    manifest = dataclasses.replace(exported.manifest, artifacts=padded, architecture={"model_type": "distilbert"})
    with pytest.raises(UsageError, match="packed"):
        forecast(Bundle(path=exported.path, manifest=manifest), [workload(12)], ["t4"])
