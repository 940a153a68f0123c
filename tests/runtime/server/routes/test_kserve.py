"""The unmodified tritonclient, synchronous and asynchronous, and raw requests of the protocol."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
triton_aio = pytest.importorskip("tritonclient.http.aio")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

TEXTS = ["splendid, go and see it", "a dull film", "schön"]
EMBED, TOKEN = "modernbert-embed-cls", "modernbert-token"
Serve = Callable[..., Any]


def tensor(texts: list[str], *, binary: bool = True, name: str = "text", shape: list[int] | None = None) -> Any:
    given = triton.InferInput(name, shape or [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object).reshape(given.shape()), binary)
    return given


@pytest.fixture
def client(serve: Serve) -> Iterator[Callable[[str], Any]]:
    opened: list[Any] = []

    def make(name: str) -> Any:
        opened.append(triton.InferenceServerClient(serve(name).url.removeprefix("http://")))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def scores_of(serve: Serve, texts: list[Any]) -> Any:
    model = next(iter(serve("default").models)).model
    return np.array([[answer.scores[label] for label in model.labels] for answer in model.predict(texts)])


def test_server_and_model_are_described(client: Any) -> None:
    default = client("default")
    assert default.is_server_live() and default.is_server_ready()
    assert default.is_model_ready("default") and default.is_model_ready("default", "1")
    assert not default.is_model_ready("other") and not default.is_model_ready("default", "2")
    assert default.get_server_metadata()["name"] == "nopad"
    metadata = default.get_model_metadata("default")
    assert metadata["platform"] == "nopad_onnx-cpu" and metadata["versions"] == ["1"]
    assert [each["name"] for each in metadata["inputs"]] == ["text", "text_pair"]
    assert metadata["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 2]}
    assert client(EMBED).get_model_metadata(EMBED)["outputs"][0]["shape"] == [-1, 64]
    assert default.get_model_repository_index() == [{"name": "default", "version": "1", "state": "READY"}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_texts_in_json_and_in_binary(client: Any, serve: Serve, binary_in: bool, binary_out: bool | None) -> None:
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "scores")]
    answer = client("default").infer("default", [tensor(TEXTS, binary=binary_in)], outputs=outputs, request_id="mine")
    wanted = scores_of(serve, TEXTS)
    assert np.allclose(answer.as_numpy("scores"), wanted, atol=1e-5)
    names = [value.decode() if isinstance(value, bytes) else value for value in answer.as_numpy("label")]
    assert names == [("negative", "positive")[i] for i in wanted.argmax(1)]
    said = answer.get_response()
    assert said["id"] == "mine" and said["model_name"] == "default"
    assert said["parameters"]["truncated"] == 0 and said["parameters"]["tokens"] > 3
    assert said["parameters"]["engine"] == "onnx-cpu"
    order = ["scores", "label"] if binary_out is None else ["label", "scores"]
    assert [each["name"] for each in said["outputs"]] == order


def test_pairs_mixed_tensors_and_columns(client: Any, serve: Serve) -> None:
    pairs = [tensor(TEXTS, binary=False), tensor(TEXTS[::-1], name="text_pair")]
    only = [triton.InferRequestedOutput("scores")]
    wanted = scores_of(serve, list(zip(TEXTS, TEXTS[::-1], strict=True)))
    answer = client("default").infer("default", pairs, outputs=only)
    assert np.allclose(answer.as_numpy("scores"), wanted, atol=1e-5) and answer.as_numpy("label") is None
    column = client("default").infer("default", [tensor(TEXTS, shape=[3, 1])])
    assert column.as_numpy("scores").shape == (3, 2)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("compress_from", [None, 100])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_requests_and_answers(serve: Serve, algorithm: str, compress_from: int | None, binary: bool) -> None:
    server = serve("default", compress_from=compress_from)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "scores")]
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        answer = client.infer(
            "default",
            [tensor(TEXTS)],
            outputs=outputs,
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    assert np.allclose(answer.as_numpy("scores"), scores_of(serve, TEXTS), atol=1e-5)
    assert answer.as_numpy("label").shape == (3,)


def test_configuration_and_statistics(client: Any, serve: Serve) -> None:
    default = client("default")
    config = default.get_model_config("default")
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("default", "nopad", 0)
    assert config["input"][0] == {"name": "text", "data_type": "TYPE_STRING", "dims": [-1], "optional": False}
    assert config["output"][0] == {"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, 2]}

    def counts() -> tuple[int, int, int, int]:
        (row,) = default.get_inference_statistics("default", "1")["model_stats"]
        stats = row["inference_stats"]
        steps = sum(stats[step]["ns"] for step in ("queue", "compute_input", "compute_infer", "compute_output"))
        assert steps == pytest.approx(stats["success"]["ns"], rel=1e-6)
        assert sum(each["compute_infer"]["count"] for each in row["batch_stats"]) == row["execution_count"]
        return row["inference_count"], row["execution_count"], stats["success"]["count"], stats["fail"]["count"]

    before = counts()
    default.infer("default", [tensor(TEXTS)])
    with pytest.raises(InferenceServerException):
        default.infer("default", [tensor([" "])])
    assert counts() == (before[0] + 3, before[1] + 1, before[2] + 1, before[3] + 1)
    assert [row["name"] for row in default.get_inference_statistics()["model_stats"]] == ["default"]
    for ask in (default.get_model_config, default.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="unknown model"):
            ask("other")


@pytest.mark.parametrize(
    ("options", "header", "priority"),
    [
        ({}, None, "interactive"),
        ({"priority": 0}, "batch", "batch"),
        ({"priority": 1}, "batch", "interactive"),
        ({"priority": 2}, None, "batch"),
        ({}, "batch", "batch"),
    ],
)
def test_the_priority_reaches_the_scheduler(
    client: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch, options: Any, header: str | None, priority: str
) -> None:
    scheduler = next(iter(serve("default").models)).model.scheduler
    real, seen = scheduler.submit, []
    monkeypatch.setattr(scheduler, "submit", lambda *texts, **how: seen.append(how["priority"]) or real(*texts, **how))
    headers = {"x-nopad-priority": header} if header else None
    client("default").infer("default", [tensor(TEXTS)], headers=headers, **options)
    assert seen == [priority]


def test_a_priority_that_is_none_is_refused(client: Any, serve: Serve) -> None:
    with pytest.raises(InferenceServerException, match="x-nopad-priority is interactive or batch"):
        client("default").infer("default", [tensor(TEXTS)], headers={"x-nopad-priority": "first"})
    url = serve("default").url + "/v2/models/default/infer"
    tensors = [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]
    for parameters in ({"priority": -1}, {"priority": "1"}, {"timeout": True}, {"timeout": 1.5}):
        answer = httpx.post(url, json={"inputs": tensors, "parameters": parameters})
        assert answer.status_code == 400 and next(iter(parameters)) in answer.json()["error"]


def test_the_best_classes_as_strings(client: Any, serve: Serve) -> None:
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
        found = client("default").infer("default", [tensor(TEXTS)], outputs=wanted).as_numpy("scores")
        assert found.shape == (3, 2)
        for row, scores in zip(found, scores_of(serve, TEXTS), strict=True):
            best = int(scores.argmax())
            value, index, label = (row[0].decode() if isinstance(row[0], bytes) else row[0]).split(":")
            assert (int(index), label) == (best, ("negative", "positive")[best])
            assert float(value) == pytest.approx(scores[best], abs=1e-5)


def test_embeddings_and_entities(client: Any, serve: Serve) -> None:
    model = next(iter(serve(EMBED).models)).model
    answer = client(EMBED).infer(EMBED, [tensor(TEXTS)])
    assert np.allclose(answer.as_numpy("embedding"), model.embed(TEXTS), atol=1e-4)
    tagger = next(iter(serve(TOKEN).models)).model
    (found,) = client(TOKEN).infer(TOKEN, [tensor(TEXTS[:1])]).as_numpy("entities")
    wanted = [(entity.label, entity.start) for entity in tagger.tag(TEXTS[:1])[0].entities]
    assert [(row["label"], row["start"]) for row in json.loads(found)] == wanted


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_the_asynchronous_client(serve: Serve, binary: bool, algorithm: str | None) -> None:
    url = serve("default", compress_from=100).url.removeprefix("http://")
    outputs = [triton_aio.InferRequestedOutput("scores", binary_data=binary)]

    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(url) as client:
            assert await client.is_server_ready() and await client.is_model_ready("default")
            assert (await client.get_model_metadata("default"))["name"] == "default"
            assert len((await client.get_inference_statistics())["model_stats"]) == 1
            given = triton_aio.InferInput("text", [3], "BYTES")
            given.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object), binary)
            options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
            return (await client.infer("default", [given], outputs=outputs, **options)).as_numpy("scores")

    assert np.allclose(asyncio.run(ask()), scores_of(serve, TEXTS), atol=1e-5)


def test_the_client_sees_what_is_wrong(client: Any) -> None:
    default = client("default")
    number = triton.InferInput("text", [1], "FP32")
    number.set_data_from_numpy(np.zeros(1, dtype=np.float32))
    for inputs, options, status, words in (
        ([tensor(TEXTS)], {"model_name": "other"}, "404", "unknown model"),
        ([tensor(TEXTS)], {"model_version": "2"}, "404", "version 2"),
        ([number], {}, "400", "must be BYTES"),
        ([tensor(TEXTS, name="texts")], {}, "400", "unexpected inference input 'texts'"),
        ([tensor(TEXTS, name="text_pair")], {}, "400", "needs the input 'text'"),
        ([tensor(TEXTS), tensor(TEXTS[:1], name="text_pair")], {}, "400", "3 elements"),
        ([tensor(TEXTS, shape=[1, 3])], {}, "400", "must be \\[n\\]"),
        ([tensor(["a", " "])], {}, "400", "text 1"),
        ([tensor(["a"] * 33)], {}, "400", "batch size 33"),
        ([tensor(["a"])], {"outputs": [triton.InferRequestedOutput("logits")]}, "400", "unexpected inference output"),
        ([tensor(["a"])], {"timeout": 1}, "408", "deadline"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            default.infer(**{"model_name": "default", **options}, inputs=inputs)
        assert caught.value.status() == status


def test_a_raw_request_is_one_text_and_is_answered_in_binary(serve: Serve) -> None:
    url = serve("default").url + "/v2/models/default/infer"
    answer = httpx.post(url, content=TEXTS[0].encode(), headers={"inference-header-content-length": "0"})
    length = int(answer.headers["inference-header-content-length"])
    head, raw = json.loads(answer.content[:length]), answer.content[length:]
    assert [row["parameters"]["binary_data_size"] for row in head["outputs"]] == [8, 4 + len("positive")]
    assert np.allclose(np.frombuffer(raw[:8], "<f4"), scores_of(serve, TEXTS[:1])[0], atol=1e-5)
    assert raw[8:] == struct.pack("<I", 8) + b"positive"


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b'{"inputs": []', None),
        (b"", None),
        (b"[]", None),
        (b'{"inputs": []}', None),
        (b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [3]}]}', None),
        (b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [NaN]}]}', None),
        (b'{"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}', None),
        (b'{"inputs": [{"name": "text", "shape": [0], "datatype": "BYTES", "data": []}]}', None),
        (b'{"inputs": []}', "99"),
        (b'{"inputs": []}', "-1"),
        (b'{"inputs": []}', "9" * 5000),
        (b"\xff", "0"),
    ],
)
def test_what_is_no_request_is_400_with_an_error(serve: Serve, body: bytes, length: str | None) -> None:
    url = serve("default").url + "/v2/models/default/infer"
    headers = {} if length is None else {"inference-header-content-length": length}
    answer = httpx.post(url, content=body, headers=headers)
    assert answer.status_code == 400 and set(answer.json()) == {"error"}


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00abc", b"\x01\x00", b"\x01\x00\x00\x00\xff"])
def test_damaged_binary_tensors_are_400(serve: Serve, raw: bytes) -> None:
    url = serve("default").url + "/v2/models/default/infer"
    for extra in (b"", b"more"):
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        answer = httpx.post(
            url, content=head + raw + extra, headers={"inference-header-content-length": str(len(head))}
        )
        assert answer.status_code == 400 and answer.json()["error"]
    missing = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 10**12}}
    head = json.dumps({"inputs": [missing]}).encode()
    answer = httpx.post(url, content=head, headers={"inference-header-content-length": str(len(head))})
    assert answer.status_code == 400
