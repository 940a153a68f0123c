"""/metrics, read by Prometheus' own parser."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from prometheus_client.parser import text_string_to_metric_families
from running_server import Running

COUNTERS = {
    *(f"te_request_{name}" for name in ("count", "success", "failure")),
    *(f"te_{kind}_{name}" for kind in ("embed", "predict") for name in ("count", "success")),
}
HISTOGRAMS = {
    f"te_{kind}_{name}duration"
    for kind in ("request", "embed", "predict")
    for name in ("", "tokenization_", "queue_", "inference_")
} | {"te_request_input_length", "te_batch_next_size", "te_batch_next_tokens"}


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running({"default": None}, keys=("k",)).start()
    yield running
    running.stop()


def read(server: Running) -> dict[str, Any]:
    answer = httpx.get(server.url + "/metrics")  # without the key
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families: dict[str, Any], family: str, sample: str | None = None, **labels: str) -> float:
    names = {sample} if sample else {family, f"{family}_total"}  # the parser gives counters the ending
    (found,) = [each.value for each in families[family].samples if each.name in names and each.labels == labels]
    return float(found)


def test_teis_names_and_types_are_there_from_the_beginning(server: Running) -> None:
    families = read(server)
    assert {name for name, family in families.items() if family.type == "counter"} >= COUNTERS
    assert {name for name, f in families.items() if f.type == "histogram" and name.startswith("te_")} == HISTOGRAMS
    text = httpx.get(server.url + "/metrics").text
    assert not re.search(r"te_\w+_total", text) and "_created" not in text
    assert '\nte_request_count{method="single"} 0.0\n' in text
    buckets = [each.labels["le"] for each in families["te_request_duration"].samples if "le" in each.labels]
    assert len(buckets) == 36 and float(buckets[0]) == 1.5e-5 and float(buckets[1]) == pytest.approx(2.25e-5)
    errs = {each.labels["err"] for each in families["te_request_failure"].samples}
    assert errs == {"overloaded", "validation", "tokenization", "inference", "batch_size", "model_type", "dropped"}
    assert value(families, "te_request_count", method="single") == 0


def test_requests_texts_and_failures_are_counted(server: Running) -> None:
    def ask(body: Any, route: str = "/predict") -> None:
        httpx.post(server.url + route, json=body, headers={"authorization": "Bearer k"})

    by = {"model": "default", "engine": "onnx-cpu", "precision": "fp32"}
    warmed = value(read(server), "nopad_engine_batches", **by)
    ask({"inputs": "a"})
    ask({"inputs": [["a"], ["b"], ["film " * 3000]]})
    ask({"inputs": [["a"], [" "]]})
    ask({"inputs": [["a"]] * 33})
    ask({"inputs": 3})
    ask({"inputs": "a"}, "/embed")
    httpx.post(server.url + "/predict", json={"inputs": "a"})  # no key: not counted
    httpx.post(server.url + "/nothing", headers={"authorization": "Bearer k"})
    families = read(server)
    assert value(families, "te_request_success", method="single") == 1
    assert value(families, "te_request_success", method="batch") == 1
    assert value(families, "te_request_count", method="batch") == 3
    for err, count in (("tokenization", 1), ("batch_size", 1), ("model_type", 1), ("inference", 0)):
        assert value(families, "te_request_failure", err=err) == count, err
    assert value(families, "te_predict_success") == 4 and value(families, "te_predict_count") == 6
    assert value(families, "te_embed_count") == 0
    assert value(families, "te_request_duration", "te_request_duration_count") == 2
    assert value(families, "te_request_input_length", "te_request_input_length_count") == 4
    for step in ("tokenization", "queue", "inference"):
        for kind, count in (("request", 2), ("predict", 2), ("embed", 0)):
            name = f"te_{kind}_{step}_duration"
            assert value(families, name, f"{name}_count") == count
    assert value(families, "te_request_inference_duration", "te_request_inference_duration_sum") > 0
    assert value(families, "te_batch_next_size", "te_batch_next_size_sum") == 4  # nothing of the batch with a bad text
    assert value(families, "te_batch_next_tokens", "te_batch_next_tokens_sum") > 1024
    assert families["te_queue_size"].type == "gauge" and value(families, "te_queue_size") == 0
    assert value(families, "te_request_input_length", "te_request_input_length_sum") > 1024
    assert value(families, "nopad_texts_truncated", model="default") == 1
    assert value(families, "nopad_requests_running") == 0
    asked: dict[str, float] = {}
    for sample in families["nopad_requests"].samples:
        asked[sample.labels["route"]] = asked.get(sample.labels["route"], 0) + sample.value
    assert asked == {"/predict": 6, "/embed": 1, "none": 1}
    for route, status, model, count in (
        ("/predict", "200", "default", 2),
        ("/predict", "422", "", 3),
        ("/predict", "401", "", 1),
        ("none", "415", "", 1),
    ):
        assert value(families, "nopad_requests", route=route, status=status, model=model) == count, (route, status)
    for kind in ("text", "batch_size", "validation", "task", "unauthorized", "media"):
        assert value(families, "nopad_errors", kind=kind) == 1, kind
    assert value(families, "nopad_texts", **by) == 4
    assert value(families, "nopad_engine_batches", **by) - warmed == value(
        families, "nopad_batch_texts", "nopad_batch_texts_count", model="default"
    )
    assert value(families, "nopad_engine_ready", **by) == value(families, "nopad_ready") == 1
    assert (
        value(families, "nopad_fallbacks", model="default") == value(families, "nopad_degraded", model="default") == 0
    )
    assert sum(sample.value for sample in families["nopad_labels"].samples) == 4
    assert value(families, "nopad_confidence", "nopad_confidence_count", model="default") == 4
    for name in ("tokenization", "queue", "inference"):
        assert value(families, f"nopad_{name}_seconds", f"nopad_{name}_seconds_count", model="default") == 2
    seconds = ("nopad_request_seconds", "nopad_request_seconds_count")
    assert value(families, *seconds, route="/predict", model="default") == 2
    assert "nopad_drift_psi" not in families or not families["nopad_drift_psi"].samples  # not calibrated
    info = {"model": "default", "task": "text-classification", "engine": "onnx-cpu", "precision": "fp32"}
    assert value(families, "nopad_model_info", **info) == 1


def test_padding_saved_is_what_the_longest_text_of_each_batch_would_add() -> None:
    from nopad.runtime.scheduler.events import BatchRun
    from nopad.runtime.server.metrics import Metrics

    metrics = Metrics()
    for requests, tokens, longest in ((3, 5 + 7 + 10, 10), (1, 9, 9)):
        run = BatchRun(requests=requests, failed=0, tokens=tokens, longest=longest, seconds=0.1, waited=(0.0,))
        metrics.scheduled("m", run)
    assert 'nopad_padding_saved_tokens_total{model="m"} 8.0' in metrics.text().decode()


def test_what_was_not_run_and_what_died_is_counted_by_reason() -> None:
    from nopad.runtime.scheduler.events import Dropped, Refused, WorkerDied
    from nopad.runtime.server.metrics import Metrics

    metrics = Metrics("nopad")
    metrics.scheduled("m", Refused(requests=4, tokens=9, priority="batch", retry_after=1.0))
    metrics.scheduled("m", Dropped(requests=2, tokens=9, reason="gone"))
    metrics.scheduled("m", Dropped(requests=3, tokens=9, reason="deadline"))
    metrics.scheduled("m", WorkerDied(cause=SystemExit(), requests=1))
    metrics.swapped("ready")
    text = metrics.text().decode()
    for line in (
        'nopad_texts_dropped_total{model="m",reason="full"} 4.0',
        'nopad_texts_dropped_total{model="m",reason="gone"} 2.0',
        'nopad_texts_dropped_total{model="m",reason="deadline"} 3.0',
        'nopad_worker_deaths_total{model="m"} 1.0',
        'nopad_swaps_total{result="ready"} 1.0',
    ):
        assert line in text


@pytest.mark.parametrize(("names", "has", "lacks"), [("tei", "te_", "nopad_"), ("nopad", "nopad_", "te_")])
def test_one_kind_of_names_can_be_left_out(serve: Callable[..., Running], names: str, has: str, lacks: str) -> None:
    server = serve("default", metrics_names=names)
    assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
    assert httpx.post(server.url + "/predict", json={"inputs": 1}).status_code == 422
    text = httpx.get(server.url + "/metrics").text
    assert f"\n{has}" in text and f"\n{lacks}" not in text


def test_an_engine_that_steps_in_for_another_is_seen(serve: Callable[..., Running], monkeypatch: Any) -> None:
    server = serve("default", metrics_names="nopad")
    model = server.models.find(None).model
    status = model.status()
    (chosen,) = [each for each in status.engines if each.name == status.engine and each.file == model.artifact.file]
    other = dataclasses.replace(chosen, name="fake", batches=3, failures=0, state="ready")
    failing = dataclasses.replace(chosen, failures=chosen.failures + 5, state="resting", reason="the device is gone")
    shown = dataclasses.replace(status, degraded=True, engines=(failing, other))
    monkeypatch.setattr(model, "status", lambda: shown)
    families = read(server)
    labels = {"model": "default", "engine": "onnx-cpu", "precision": "fp32"}
    assert (
        value(families, "nopad_engine_failures", **labels) == 5 and value(families, "nopad_engine_ready", **labels) == 0
    )
    assert value(families, "nopad_engine_batches", **{**labels, "engine": "fake"}) == 3
    assert value(families, "nopad_fallbacks", model="default") == 3
    assert value(families, "nopad_degraded", model="default") == 1
    assert value(read(server), "nopad_fallbacks", model="default") == 3  # counted once


PROCESS = """
import sys
from nopad.runtime.scheduler.events import Refused
from nopad.runtime.server.calls import Serving
from nopad.runtime.server.models import Models
from nopad.runtime.server.settings import Settings

serving = Serving(Settings(), Models())
serving.running = int(sys.argv[1])
serving.metrics.requested("/predict", 200, "m", 0.004)
serving.metrics.failed("overloaded", False)
serving.metrics.scheduled("m", Refused(requests=int(sys.argv[1]), tokens=9, priority="batch", retry_after=1.0))
serving.refresh_metrics()
print("counted", flush=True)
sys.stdin.readline()
sys.stdout.write(serving.metrics.text().decode())
"""


def test_processes_that_share_a_folder_answer_for_all_of_them(tmp_path: Path) -> None:
    """What worker processes do: the counts of both come out of either, and live states of both while they live."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def start(number: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(number)]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start(3) as one, start(4) as other:
        for process in (one, other):
            assert process.stdout is not None and process.stdout.readline() == "counted\n"
        both, _ = one.communicate("\n", timeout=60)
        other.communicate("\n", timeout=60)
    for line in (
        'nopad_requests_total{model="m",route="/predict",status="200"} 2.0',
        'nopad_request_seconds_bucket{le="0.005",model="m",route="/predict"} 2.0',
        'nopad_request_seconds_count{model="m",route="/predict"} 2.0',
        'nopad_errors_total{kind="overloaded"} 2.0',
        'nopad_texts_dropped_total{model="m",reason="full"} 7.0',
        "nopad_requests_running 7.0",
        "nopad_ready 0.0",
        'te_request_failure{err="overloaded"} 2.0',
    ):
        assert f"\n{line}\n" in both, line


def test_metrics_answer_on_a_port_of_their_own_too(serve: Callable[..., Running]) -> None:
    from nopad.runtime.errors import UsageError
    from nopad.runtime.server.scrapes import scrapes

    server = serve("default", metrics_names="nopad")
    with scrapes("127.0.0.1", 0, server.serving) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert (
            answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            and "\nnopad_ready 1.0\n" in answer.text
        )
        assert httpx.get(f"http://127.0.0.1:{port}/predict").status_code == 404
        with pytest.raises(UsageError, match="another --metrics-port"), scrapes("127.0.0.1", port, server.serving):
            pass


def test_drift_is_measured_against_the_calibration(tmp_path: Path) -> None:
    """Answers like those that the bundle was calibrated on have none; one text over and over has much."""
    import shutil

    from nopad.runtime.bundle import DEFAULT_BUNDLE, open_bundle, record_calibration
    from nopad.runtime.drift import baseline
    from nopad.runtime.manifest import Calibration
    from nopad.runtime.predictor import load

    words = ("a dull film", "splendid", "not bad at all, and I have seen many of them", "so so", "an hour I want back")
    texts = [f"{words[i % 5]}, {words[i // 5 % 5]} {words[i // 25]}" for i in range(125)]
    folder = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))
    with load(folder, threads=1) as model:
        answers = model.predict(texts, return_logits=True)
    import numpy as np

    logits = np.stack([answer.logits for answer in answers if answer.logits is not None])
    counted = baseline(logits, [answer.tokens for answer in answers], open_bundle(folder).manifest.head)
    record_calibration(open_bundle(folder), Calibration(temperature=1.0, baseline=counted.to_json()))
    server = Running({"m": folder}, metrics_names="nopad", drift_window=500, max_batch=125).start()
    try:
        for _ in range(3):
            httpx.post(server.url + "/predict", json={"inputs": [[text] for text in texts]}, timeout=60)
        assert not read(server)["nopad_drift_psi"].samples  # of 375 answers
        httpx.post(server.url + "/predict", json={"inputs": [[text] for text in texts]}, timeout=60)
        families = read(server)
        for of in ("labels", "confidence", "length"):
            assert value(families, "nopad_drift_psi", model="m", of=of) == pytest.approx(0, abs=1e-9)
        for _ in range(4):
            httpx.post(server.url + "/predict", json={"inputs": [["splendid"]] * 125}, timeout=60)
        families = read(server)
        assert all(
            value(families, "nopad_drift_psi", model="m", of=of) > 0.25 for of in ("labels", "confidence", "length")
        )
    finally:
        server.stop()
