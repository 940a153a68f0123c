"""The Python model of `nopad export --triton`, run by a stand-in for Triton: its answers are those of `load(bundle)`.

`tests/support/triton_double.py` says what the stand-in is made from; `test_triton_server.py` asks a real server.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
import triton_double
from triton_double import Server, TritonError, triton

from nopad.export.triton import write_triton
from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.predictor import load
from nopad.runtime.tokenizer import Tokens

TEXTS = ["a film", "?", "the plot is a mess, and the actors know it", "Zürich", "so good " * 40, "no"]
PAIRS = [(text, other) for text, other in zip(TEXTS, reversed(TEXTS), strict=True)]
Start = Callable[[Path], Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A server of the repository that is made of a bundle."""
    running: list[Any] = []

    def started(folder: Path) -> Server:
        write_triton(folder, tmp_path / "models")
        running.append(triton(tmp_path / "models"))
        server: Server = running[-1].__enter__()
        return server

    yield started
    for each in running:
        each.__exit__(None, None, None)


def column(values: Any) -> Any:
    return np.array([value.encode() if isinstance(value, str) else value for value in values], dtype=object).reshape(
        -1, 1
    )


def asked(texts: Any) -> dict[str, Any]:
    if isinstance(texts[0], str):
        return {"text": column(texts)}
    return {"text": column([first for first, _ in texts]), "text_pair": column([second for _, second in texts])}


def outputs(response: Any) -> dict[str, Any]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def in_requests(server: Server, name: str, texts: Any) -> list[dict[str, Any]]:
    """The texts in requests of one, two, three, ... that come together."""
    parts, place = [], 0
    while place < len(texts):
        parts.append(texts[place : place + len(parts) + 1])
        place += len(parts[-1])
    return [outputs(each) for each in server.infer(name, [asked(part) for part in parts])]


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_classes_and_scores_are_those_of_predict(texts: Any, start: Start) -> None:
    server = start(DEFAULT_BUNDLE)
    got = in_requests(server, "bundle", texts)
    with load(DEFAULT_BUNDLE, engine="onnx-cpu", threads=1) as model:
        want = model.predict(texts)
        rows = [[answer.scores[label] for label in model.labels] for answer in want]
    assert np.concatenate([each["scores"] for each in got]) == pytest.approx(np.array(rows), abs=1e-6)
    labels = [label.decode() for each in got for label in each["label"].ravel()]
    assert labels == [answer.label for answer in want] and len(set(labels)) == 2


def test_the_bundles_probes_are_asked_once_and_by_the_first_request(start: Start) -> None:
    server = start(DEFAULT_BUNDLE)
    assert server.streams == []  # no BLS while a model is loaded
    server.infer("bundle", [asked(["a film"])])
    first = len(server.streams)
    assert ["probes answered as transformers does" in line for line in triton_double.Logger.lines] == [True]
    server.infer("bundle", [asked(["a film"])])
    assert first > 1 and len(server.streams) == first + 1


def test_requests_that_come_together_share_a_packed_stream(start: Start) -> None:
    server = start(DEFAULT_BUNDLE)
    server.infer("bundle", [asked(["a film"])])
    server.streams.clear()
    server.infer("bundle", [asked([text]) for text in ("a film", "no", "the plot is a mess")])
    (stream,) = server.streams
    with load(DEFAULT_BUNDLE, engine="onnx-cpu", threads=1) as model:
        lengths = [
            tokens.used for tokens in model.encode(["a film", "no", "the plot is a mess"]) if isinstance(tokens, Tokens)
        ]
    assert stream["input_ids"] == (sum(lengths),)  # no padding
    assert stream["pad_index"] == (3, max(lengths))


def test_rerank_answers_pairs(start: Start, bundle: Callable[[str], Path]) -> None:
    folder = bundle("bert-rerank")
    got = in_requests(start(folder), "bundle", PAIRS)
    with load(folder, engine="onnx-cpu", threads=1) as model:
        want = [answer.score for answer in model.predict(PAIRS)]
    assert np.concatenate([each["scores"] for each in got])[:, 0] == pytest.approx(want, abs=1e-6)
    assert len(set(want)) == len(want)


def test_entities_come_as_json(start: Start, bundle: Callable[[str], Path]) -> None:
    folder = bundle("modernbert-token")
    got = in_requests(start(folder), "bundle", TEXTS)
    found = [json.loads(row) for each in got for row in each["entities"].ravel()]
    with load(folder, engine="onnx-cpu", threads=1) as model:
        want = [
            [
                {name: getattr(each, name) for name in ("label", "score", "start", "end", "text")}
                for each in tagged.entities
            ]
            for tagged in model.tag(TEXTS)
        ]
    assert any(want)
    for ours, theirs in zip(found, want, strict=True):
        assert [{**each, "score": None} for each in ours] == [{**each, "score": None} for each in theirs]
        assert [each["score"] for each in ours] == pytest.approx([each["score"] for each in theirs], abs=1e-6)


def test_embeddings_and_their_size(start: Start, bundle: Callable[[str], Path]) -> None:
    folder = bundle("modernbert-embed-mean-unit")
    got = in_requests(start(folder), "bundle", TEXTS)
    with load(folder, engine="onnx-cpu", threads=1) as model:
        want = model.embed(TEXTS)
    assert np.concatenate([each["embedding"] for each in got]) == pytest.approx(want, abs=1e-5)


def test_masks_come_as_json(start: Start, bundle: Callable[[str], Path]) -> None:
    folder = bundle("modernbert-mlm")
    with load(folder, engine="onnx-cpu", threads=1) as model:
        texts = [f"a {model.manifest.mask_token} film", f"{model.manifest.mask_token} and {model.manifest.mask_token}"]
        want = [fill.masks for fill in model.fill(texts)]
    server = start(folder)
    (got,) = server.infer("bundle", [asked(texts)])
    rows = [json.loads(row) for row in outputs(got)["masks"].ravel()]
    assert [[[name for name, _ in mask] for mask in row] for row in rows] == [
        [[name for name, _ in mask] for mask in row] for row in want
    ]
    (refused,) = server.infer("bundle", [asked(["no mask at all"])])
    assert refused.error().code() == TritonError.INVALID_ARG and "text 0" in refused.error().message()


def test_a_bad_request_fails_alone(start: Start) -> None:
    server = start(DEFAULT_BUNDLE)
    (alone,) = server.infer("bundle", [asked(["a film"])])
    bad = {"text": column(["fine", b"\xff\xfe"])}
    uneven = {"text": column(["one", "two"]), "text_pair": column(["one"])}
    together = [asked(["a film"]), bad, uneven, asked([" "]), asked(["a film"])]
    first, second, third, empty, fourth = server.infer("bundle", together)
    for good in (first, fourth):
        assert outputs(good)["scores"] == pytest.approx(outputs(alone)["scores"], abs=1e-6)
    said = {second: "text 1 is not valid UTF-8", third: "2 elements, 'text_pair' 1", empty: "text 0: the text is empty"}
    for response, message in said.items():
        assert message in response.error().message() and response.error().code() == TritonError.INVALID_ARG
        assert response.output_tensors() == []


def test_what_the_graph_says_is_every_requests_error_and_the_next_batch_is_answered(start: Start) -> None:
    server = start(DEFAULT_BUNDLE)
    server.fail = "out of memory"
    for _ in range(2):  # as the first request of all, too
        refused = server.infer("bundle", [asked(["a film"]), asked(["no"])])
        for response in refused:
            assert response.error().code() == TritonError.INTERNAL
            assert "Triton's model bundle_graph failed: out of memory" in response.error().message()
        server.fail = None
        assert all(not each.has_error() for each in server.infer("bundle", [asked(["a film"]), asked(["no"])]))
        server.fail = "out of memory"


def test_a_graph_that_answers_otherwise_than_it_was_verified_answers_nobody(start: Start) -> None:
    server = start(DEFAULT_BUNDLE)
    server.shift = 0.5
    (refused,) = server.infer("bundle", [asked(["a film"])])
    assert "does not answer here as it was verified" in refused.error().message()
    server.shift = 0.0
    (answered,) = server.infer("bundle", [asked(["a film"])])
    assert not answered.has_error()


def test_a_damaged_tokenizer_is_not_loaded(tmp_path: Path) -> None:
    write_triton(DEFAULT_BUNDLE, tmp_path)
    (tmp_path / "bundle" / "1" / "tokenizer.json").write_text("{}")
    with pytest.raises(Exception, match=r"tokenizer\.json has 2 bytes"), triton(tmp_path):
        pass


# As pybind11 and the module declare them, `self` left out: src/pb_stub.cc and triton_python_backend_utils.py.
PUBLISHED = {
    "InferenceRequest": {
        "request_id": "",
        "correlation_id": 0,
        "inputs": ...,
        "requested_output_names": ...,
        "model_name": ...,
        "model_version": -1,
        "flags": 0,
        "timeout": 0,
        "preferred_memory": ...,
    },
    "InferenceRequest.exec": {"decoupled": False},
    "InferenceRequest.inputs": {},
    "InferenceRequest.requested_output_names": {},
    "InferenceResponse": {"output_tensors": (), "error": None},
    "InferenceResponse.output_tensors": {},
    "InferenceResponse.has_error": {},
    "InferenceResponse.error": {},
    "PreferredMemory": {"preferred_memory_type": ..., "preferred_device_id": 0},
    "Tensor": {"name": ..., "numpy_array": ...},
    "Tensor.name": {},
    "Tensor.as_numpy": {},
    "Tensor.is_cpu": {},
    "Tensor.shape": {},
    "TritonError": {"message": ..., "code": TritonError.INTERNAL},
    "TritonError.code": {},
    "TritonError.message": {},
    "Logger.log_info": {"message": ...},
    "get_input_tensor_by_name": {"inference_request": ..., "name": ...},
    "get_output_tensor_by_name": {"inference_response": ..., "name": ...},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_stand_in_has_the_published_signatures(name: str) -> None:
    """Of triton-inference-server/server at ca56352ddc8ef3a0dd315aad79f361debd2f282c, `python_backend/src/pb_stub.cc`,
    and of python_backend's `src/resources/triton_python_backend_utils.py` at 28aaeb7be16c71466bc571dc9d41bdbc356b1f4c.

    The newest arguments (`trace`, `parameters`) are left out, and so nopad cannot use them.
    """
    found: Any = triton_double
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters
    ours = [parameter for parameter in parameters.values() if parameter.name != "self"]
    assert [parameter.name for parameter in ours] == list(PUBLISHED[name])
    for parameter, default in zip(ours, PUBLISHED[name].values(), strict=True):
        assert default is ... or parameter.default == default


def test_the_model_uses_no_other_name_of_tritons() -> None:
    from nopad.runtime import triton as module

    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "_pb"
    }
    constants = {"TRITONSERVER_MEMORY_CPU"}
    assert used - constants <= {name.split(".")[0] for name in PUBLISHED} and len(used) >= 8
    assert all(hasattr(triton_double, name) for name in used)
