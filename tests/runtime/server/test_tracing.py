"""Traces, received by a small OTLP/HTTP collector."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from running_server import Running

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes what an exporter sends."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.raw = b""
        self.arrived = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    values = {each.key: each.value.string_value for each in resource.resource.attributes}
                    collector.services.add(values["service.name"])
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                collector.raw += body
                collector.arrived.set()
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


def values(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def traced(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds
    return Running({"default": None}, otlp_endpoint=endpoint).start()


def stop(server: Running) -> None:
    """In the order of `nopad serve`: a span ends after its answer has gone out, and the server waits for that."""
    server.stop()
    server.serving.tracing.close()


def test_a_request_and_its_steps_arrive_as_children_of_the_clients_span(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = traced(collector.url, monkeypatch)
    try:
        began = time.time_ns()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}
        answer = httpx.post(
            server.url + "/predict", json={"inputs": [["a secret marker"], ["splendid"]]}, headers=headers
        )
        assert answer.status_code == 200
        httpx.post(server.url + "/predict", json={"inputs": ["a secret marker"] * 5}, headers=headers)
        httpx.post(server.url + "/predict", json={"inputs": "without a parent"})
    finally:
        stop(server)
    ended = time.time_ns()
    assert collector.arrived.wait(10) and b"marker" not in collector.raw and collector.services == {"nopad"}
    first, refused, alone = sorted(
        (span for span in collector.spans if span.name == "POST /predict"), key=lambda span: span.start_time_unix_nano
    )
    assert (first.trace_id.hex(), first.parent_span_id.hex(), first.kind) == (TRACE, PARENT, 2)  # 2: a server's
    assert answer.headers["traceparent"] == f"00-{TRACE}-{first.span_id.hex()}-01"
    found = values(first)
    assert found == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "nopad.model": "default",
        "nopad.engine": "onnx-cpu",
        "nopad.precision": "fp32",
        "nopad.texts": 2,
        "nopad.tokens": int(answer.headers["x-compute-tokens"]),
        "nopad.batch_tokens": found["nopad.batch_tokens"],
        "nopad.truncated": 0,
    }
    assert found["nopad.batch_tokens"] == found["nopad.tokens"]  # nobody else was there
    steps = [span for span in collector.spans if span.parent_span_id == first.span_id]
    assert [step.name for step in steps] == ["tokenize", "queue", "inference", "decode"]
    assert all(step.trace_id == first.trace_id for step in steps)
    times = [began, first.start_time_unix_nano]
    times += [at for step in steps for at in (step.start_time_unix_nano, step.end_time_unix_nano)]
    assert [*times, first.end_time_unix_nano, ended] == sorted([*times, first.end_time_unix_nano, ended])
    assert values(refused)["http.response.status_code"] == 422 and "nopad.model" not in values(refused)
    assert not [span for span in collector.spans if span.parent_span_id == refused.span_id]
    assert alone.parent_span_id == b"" and alone.trace_id != first.trace_id


def test_what_the_client_does_not_sample_is_not_sent(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "sentiment")
    server = traced(collector.url + "/v1/traces", monkeypatch)
    try:
        for sampled in ("00", "01"):
            headers = {"traceparent": f"00-{TRACE[:-2]}{sampled}-{PARENT}-{sampled}"}
            assert httpx.post(server.url + "/predict", json={"inputs": "a"}, headers=headers).status_code == 200
        wrong = httpx.post(server.url + "/predict", json={"inputs": "a"}, headers={"traceparent": "no such thing"})
        assert wrong.status_code == 200
    finally:
        stop(server)
    traces = {span.trace_id.hex() for span in collector.spans}
    assert collector.services == {"sentiment"} and len(traces) == 2
    assert f"{TRACE[:-2]}01" in traces and f"{TRACE[:-2]}00" not in traces


def test_fastapis_own_telemetry_which_quotes_exceptions_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    from nopad.runtime.server.app import create_app
    from nopad.runtime.server.calls import Serving
    from nopad.runtime.server.models import Models
    from nopad.runtime.server.settings import Settings

    app = create_app(Serving(Settings(), Models()))
    own = getattr(app, "_native_telemetry", None)  # of newer releases
    assert own is None or not own.enabled()


def test_a_collector_that_is_down_harms_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    server = traced("http://127.0.0.1:9", monkeypatch)  # nobody listens
    try:
        for _ in range(5):
            assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
        started = time.monotonic()
        server.serving.tracing.close()
        assert time.monotonic() - started < 5
    finally:
        server.stop()


OFF = """
import sys
from nopad.runtime.server.app import create_app
from nopad.runtime.server.calls import Serving
from nopad.runtime.server.models import Models
from nopad.runtime.server.settings import Settings

serving = Serving(Settings(), Models())
create_app(serving)
trace = serving.tracing.begin("POST", "00-{trace}-{parent}-01", "")
trace.end("/predict", 200, None)
serving.tracing.close()
ours = ("opentelemetry.sdk", "opentelemetry.exporter")  # FastAPI itself imports opentelemetry's API
print(trace.trace_id, trace.traceparent == "", any(name.startswith(ours) for name in sys.modules))
"""


def test_without_an_endpoint_neither_sdk_nor_exporter_is_imported_and_the_log_has_the_clients_trace() -> None:
    program = OFF.format(trace=TRACE, parent=PARENT)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [TRACE, "True", "False"], done.stderr
