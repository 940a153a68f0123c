"""The unmodified tritonclient over gRPC, synchronous and asynchronous: answers and refusals are those over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
triton_aio = pytest.importorskip("tritonclient.grpc.aio")

InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

from certificates import make_certificate  # noqa: E402
from running_server import Running, held  # noqa: E402

from nopad.runtime.errors import UsageError  # noqa: E402
from nopad.runtime.server.grpc.messages import MESSAGES  # noqa: E402
from nopad.runtime.server.grpc.service import start  # noqa: E402
from nopad.runtime.server.listen import address_of, bind, reserve  # noqa: E402

TEXTS = ["splendid, go and see it", "a dull film", "schön"]
Serve = Callable[..., Running]


def address(server: Running) -> str:
    return f"127.0.0.1:{server.server.grpc_port}"


def tensor(texts: list[str], *, name: str = "text", shape: list[int] | None = None) -> Any:
    given = triton.InferInput(name, shape or [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object).reshape(given.shape()))
    return given


def scores_of(server: Running, texts: list[Any]) -> Any:
    model = next(iter(server.models)).model
    return np.array([[answer.scores[label] for label in model.labels] for answer in model.predict(texts)])


@pytest.fixture
def served(serve: Serve) -> Running:
    return serve("default", grpc_address="127.0.0.1:0")


@pytest.fixture
def client(serve: Serve) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def make(name: str = "default", **settings: Any) -> Any:
        opened.append(triton.InferenceServerClient(address(serve(name, **settings, grpc_address="127.0.0.1:0"))))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def call(served: Running) -> Iterator[Callable[..., Any]]:
    """Any method with any message, past the client."""
    with grpc.insecure_channel(address(served)) as channel:

        def ask(path: str, message: Any, answer: str, **options: Any) -> Any:
            method = channel.unary_unary(
                path,
                request_serializer=lambda each: each.SerializeToString(),
                response_deserializer=MESSAGES[answer].FromString,
            )
            return method(message, timeout=60, **options)

        yield ask


def test_server_and_models_are_described(client: Any) -> None:
    default = client()
    assert default.is_server_live() and default.is_server_ready()
    assert default.is_model_ready("default") and default.is_model_ready("default", "1")
    assert not default.is_model_ready("other") and not default.is_model_ready("default", "2")
    assert default.get_server_metadata().name == "nopad"
    metadata = default.get_model_metadata("default")
    assert metadata.platform == "nopad_onnx-cpu" and metadata.versions == ["1"]
    assert [(each.name, list(each.shape)) for each in metadata.inputs] == [("text", [-1]), ("text_pair", [-1])]
    assert [(each.datatype, list(each.shape)) for each in metadata.outputs] == [("FP32", [-1, 2]), ("BYTES", [-1])]
    config = default.get_model_config("default").config
    assert (config.name, config.backend, config.max_batch_size) == ("default", "nopad", 0)
    assert [(each.name, each.optional) for each in config.input] == [("text", False), ("text_pair", True)]
    assert [list(each.dims) for each in config.output] == [[-1, 2], [-1]]
    (row,) = default.get_model_repository_index().models
    assert (row.name, row.version, row.state) == ("default", "1", "READY")


def test_answers_equal_those_of_the_model(client: Any, served: Running) -> None:
    wanted = scores_of(served, TEXTS)
    answer = client().infer("default", [tensor(TEXTS)], request_id="mine")
    assert np.allclose(answer.as_numpy("scores"), wanted, atol=1e-5)
    assert [label.decode() for label in answer.as_numpy("label")] == [
        ("negative", "positive")[i] for i in wanted.argmax(1)
    ]
    said = answer.get_response()
    assert (said.model_name, said.model_version, said.id) == ("default", "1", "mine")
    assert said.parameters["truncated"].int64_param == 0 and said.parameters["engine"].string_param == "onnx-cpu"
    pairs = [tensor(TEXTS, shape=[3, 1]), tensor(TEXTS[::-1], name="text_pair", shape=[3, 1])]
    only = client().infer("default", pairs, outputs=[triton.InferRequestedOutput("scores")])
    assert only.as_numpy("label") is None
    assert np.allclose(
        only.as_numpy("scores"), scores_of(served, list(zip(TEXTS, TEXTS[::-1], strict=True))), atol=1e-5
    )
    best = client().infer("default", [tensor(TEXTS)], outputs=[triton.InferRequestedOutput("scores", class_count=1)])
    value, index, label = best.as_numpy("scores")[0, 0].decode().split(":")
    assert float(value) == pytest.approx(wanted[0].max(), abs=1e-5) and label == ("negative", "positive")[int(index)]


def test_typed_contents_and_compressed_requests(call: Any, client: Any, served: Running) -> None:
    request = MESSAGES["InferRequest"](model_name="default")
    given = request.inputs.add(name="text", datatype="BYTES", shape=[3])
    given.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    answer = call("/inference.GRPCInferenceService/ModelInfer", request, "InferResponse")
    scores = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(3, 2)
    assert np.allclose(scores, scores_of(served, TEXTS), atol=1e-5)
    for algorithm in ("gzip", "deflate"):
        packed = client().infer("default", [tensor(TEXTS)], compression_algorithm=algorithm)
        assert np.allclose(packed.as_numpy("scores"), scores, atol=1e-6)


def test_the_asynchronous_client(served: Running) -> None:
    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(address(served)) as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("default", [tensor([text])]) for text in TEXTS))
            return np.concatenate([answer.as_numpy("scores") for answer in answers])

    assert np.allclose(asyncio.run(ask()), scores_of(served, TEXTS), atol=1e-5)


def test_errors_have_their_status_and_text(client: Any) -> None:
    default = client()
    number = triton.InferInput("text", [1], "FP32")
    number.set_data_from_numpy(np.zeros(1, dtype=np.float32))
    for inputs, options, status, words in (
        ([tensor(TEXTS)], {"model_name": "other"}, "NOT_FOUND", "unknown model"),
        ([tensor(TEXTS)], {"model_name": "a/../b"}, "NOT_FOUND", "no route"),
        ([tensor(TEXTS)], {"model_version": "2"}, "NOT_FOUND", "version 2"),
        ([number], {}, "INVALID_ARGUMENT", "must be BYTES"),
        ([tensor(TEXTS, name="texts")], {}, "INVALID_ARGUMENT", "unexpected inference input 'texts'"),
        ([tensor(["a", " "])], {}, "INVALID_ARGUMENT", "text 1"),
        ([tensor(["a"] * 33)], {}, "INVALID_ARGUMENT", "batch size 33"),
        ([tensor(["a"])], {"timeout": 1}, "DEADLINE_EXCEEDED", "deadline"),
        ([tensor(["a" * 2_100_000])], {}, "RESOURCE_EXHAUSTED", "2100"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            default.infer(**{"model_name": "default", **options}, inputs=inputs)
        assert caught.value.status() == f"StatusCode.{status}"
    for ask in (default.get_model_metadata, default.get_model_config, default.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="unknown model"):
            ask("other")


def test_raw_contents_are_of_all_inputs(call: Any) -> None:
    request = MESSAGES["InferRequest"](model_name="default", raw_input_contents=[b"\x01\x00\x00\x00a"])
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    request.inputs.add(name="text_pair", datatype="BYTES", shape=[1])
    with pytest.raises(grpc.RpcError) as caught:
        call("/inference.GRPCInferenceService/ModelInfer", request, "InferResponse")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "2 inputs" in caught.value.details()


def test_streams_are_said_to_be_missing(client: Any) -> None:
    answers: list[Any] = []
    default = client()
    default.start_stream(lambda result, error: answers.append(error))
    default.async_stream_infer("default", [tensor(["a"])])
    until(lambda: answers)
    default.stop_stream()
    assert "no streaming inference" in str(answers[0])


def test_a_key_is_asked_for_but_not_for_health(client: Any) -> None:
    closed = client(keys=("key",))
    assert closed.is_server_live() and closed.is_server_ready()
    for headers in (None, {"authorization": "Bearer other"}):
        with pytest.raises(InferenceServerException) as caught:
            closed.infer("default", [tensor(["a"])], headers=headers)
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        with pytest.raises(InferenceServerException) as caught:
            closed.get_server_metadata(headers=headers)
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    with pytest.raises(InferenceServerException):
        closed.is_model_ready("default")
    assert closed.infer("default", [tensor(["a"])], headers={"authorization": "Bearer key"}).as_numpy("label").size == 1


def test_the_standard_health_service_answers(call: Any) -> None:
    assert call("/grpc.health.v1.Health/Check", MESSAGES["HealthRequest"](), "HealthResponse").status == 1


def test_statistics_are_of_what_was_asked(client: Any, serve: Serve) -> None:
    default = client("default", max_batch=7)  # a server of its own
    for texts in (TEXTS, TEXTS[:1]):
        default.infer("default", [tensor(texts)], priority=2)
    with pytest.raises(InferenceServerException):
        default.infer("default", [tensor([" "])])
    (row,) = default.get_inference_statistics("default").model_stats
    stats = row.inference_stats
    assert (row.name, row.inference_count, row.execution_count) == ("default", 4, 2)
    assert (stats.success.count, stats.fail.count, stats.queue.count, stats.cache_hit.count) == (2, 1, 2, 0)
    steps = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert sum(each.ns for each in steps) == pytest.approx(stats.success.ns, rel=1e-6)
    assert [(each.batch_size, each.compute_infer.count) for each in row.batch_stats] == [(1, 1), (3, 1)]
    assert abs(row.last_inference / 1000 - time.time()) < 60
    assert len(default.get_inference_statistics().model_stats) == 1


def test_a_call_that_ends_early_leaves_the_queue(client: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default", max_batch=8, grpc_address="127.0.0.1:0")
    model, finish = next(iter(server.models)).model, threading.Event()
    held(model, finish, monkeypatch)
    default = client("default", max_batch=8)
    try:
        first = default.async_infer("default", [tensor(["a"])], lambda result, error: None)
        until(lambda: model.scheduler.state().running)
        waiting = default.async_infer("default", [tensor(["b"])], lambda result, error: None)
        until(lambda: model.scheduler.state().requests == 1)
        waiting.cancel()
        with pytest.raises(InferenceServerException) as caught:
            default.infer("default", [tensor(["c"])], client_timeout=0.3)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        until(lambda: server.serving.running == 1)
    finally:
        finish.set()
    until(lambda: server.serving.running == 0)
    assert first is not None
    (row,) = default.get_inference_statistics("default").model_stats
    assert row.execution_count == 1  # neither b nor c was run


def test_too_many_are_told_when_to_come_back(client: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from nopad.runtime.server.errors import Fault

    def full() -> None:
        raise Fault("overloaded", "full", retry_after=0.25)

    server = serve("default", grpc_address="127.0.0.1:0")
    monkeypatch.setattr(server.serving, "require_ready", full)
    with pytest.raises(grpc.RpcError) as caught, grpc.insecure_channel(address(server)) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        method(MESSAGES["InferRequest"](model_name="default").SerializeToString(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and caught.value.details() == "full"
    assert dict(caught.value.trailing_metadata())["retry-after-ms"] == "250"


def test_a_drain_answers_what_runs_and_refuses_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Running({"default": None}, grpc_address="127.0.0.1:0").start()
    model, finish = next(iter(server.models)).model, threading.Event()
    held(model, finish, monkeypatch)
    answers: list[Any] = []
    with triton.InferenceServerClient(address(server)) as client:
        client.async_infer("default", [tensor(["a"])], lambda result, error: answers.append((result, error)))
        until(lambda: model.scheduler.state().running)
        server.server.drain()
        with pytest.raises(InferenceServerException, match="shutting down") as caught:
            client.infer("default", [tensor(["b"])])
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert not client.is_server_ready() and not client.is_model_ready("default")
        finish.set()
        until(lambda: answers)
    assert answers[0][1] is None and answers[0][0].as_numpy("label").size == 1
    server.stop()


def test_a_port_that_is_taken_is_named(served: Running) -> None:
    with bind("127.0.0.1", 0) as taken:
        with pytest.raises(UsageError, match="choose another --grpc-port"):
            asyncio.run(start(served.server.config.app, address_of(taken), most_bytes=100))
        with pytest.raises(UsageError, match="choose another --host or --grpc-port"):
            reserve("127.0.0.1", taken.getsockname()[1])


def test_tls_with_the_certificate_of_the_server(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "localhost")
    server = Running({"default": None}, grpc_address="127.0.0.1:0", tls_cert=cert, tls_key=key).start()
    try:
        url = f"localhost:{server.server.grpc_port}"
        with triton.InferenceServerClient(url, ssl=True, root_certificates=str(cert)) as client:
            assert client.infer("default", [tensor(["a"])]).as_numpy("label").size == 1
        with triton.InferenceServerClient(url) as client, pytest.raises(InferenceServerException):
            client.is_server_live(client_timeout=2)
    finally:
        server.stop()


def test_two_servers_share_a_reserved_port(served: Running) -> None:
    async def both(address: str) -> None:
        servers = [await start(served.server.config.app, address, most_bytes=100) for _ in range(2)]
        assert len({port for _, port in servers}) == 1
        for server, _ in servers:
            await server.stop(0)

    with reserve("127.0.0.1", 0) as holding:
        asyncio.run(both(address_of(holding)))


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
