"""/metrics, read by Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Iterator
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
    assert {name for name, family in families.items() if family.type == "histogram"} == HISTOGRAMS
    text = httpx.get(server.url + "/metrics").text
    assert "_total" not in text and "_created" not in text and '\nte_request_count{method="single"} 0.0\n' in text
    buckets = [each.labels["le"] for each in families["te_request_duration"].samples if "le" in each.labels]
    assert len(buckets) == 36 and float(buckets[0]) == 1.5e-5 and float(buckets[1]) == pytest.approx(2.25e-5)
    errs = {each.labels["err"] for each in families["te_request_failure"].samples}
    assert errs == {"overloaded", "validation", "tokenization", "inference", "batch_size", "model_type", "dropped"}
    assert value(families, "te_request_count", method="single") == 0


def test_requests_texts_and_failures_are_counted(server: Running) -> None:
    def ask(body: Any, route: str = "/predict") -> None:
        httpx.post(server.url + route, json=body, headers={"authorization": "Bearer k"})

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
    assert value(families, "te_batch_next_size", "te_batch_next_size_sum") == 5  # and the good text of the bad batch
    assert value(families, "te_batch_next_tokens", "te_batch_next_tokens_sum") > 1024
    assert families["te_queue_size"].type == "gauge" and value(families, "te_queue_size") == 0
    assert value(families, "te_request_input_length", "te_request_input_length_sum") > 1024
    assert value(families, "nopad_truncated_count") == 1
    assert value(families, "nopad_requests_running") == 0
    info = {"model": "default", "task": "text-classification", "engine": "onnx-cpu", "precision": "fp32"}
    assert value(families, "nopad_model_info", **info) == 1
