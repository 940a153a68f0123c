"""Embeddings of tokens: TEI's /embed_all, and the same under vLLM's, KServe's and the hub's names."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("fastapi", reason="the extra serve is not installed")

Serve = Callable[..., Any]
TOKENS, EMBED = "modernbert-tokens", "modernbert-embed-mean-unit"
TEXTS = ["splendid, go and see it", "ok", "a dull film, and an hour of my life I want back"]


@pytest.fixture(scope="module")
def hidden(checkpoint: Callable[[str], Path]) -> list[Any]:
    """transformers' own last hidden states."""
    folder = checkpoint(TOKENS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy() for text in TEXTS]


def same(got: Any, want: list[Any]) -> bool:
    return len(got) == len(want) and all(
        np.shape(ours) == theirs.shape and np.allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
        for ours, theirs in zip(got, want, strict=True)
    )


def test_every_token_has_its_last_hidden_state(serve: Serve, hidden: list[Any]) -> None:
    url = serve(TOKENS).url
    answer = httpx.post(url + "/embed_all", json={"inputs": TEXTS})
    assert answer.status_code == 200 and same(answer.json(), hidden)
    assert int(answer.headers["x-compute-tokens"]) == sum(map(len, hidden))
    assert same(httpx.post(url + "/embed_all", json={"inputs": TEXTS[1]}).json(), hidden[1:2])
    ids = [row["id"] for row in httpx.post(url + "/tokenize", json={"inputs": TEXTS[1]}).json()[0]]
    assert same(httpx.post(url + "/embed_all", json={"inputs": [ids]}).json(), hidden[1:2])
    assert same(httpx.post(url, json={"inputs": TEXTS[0], "parameters": {}}).json(), hidden[:1])
    vertex = httpx.post(url + "/vertex", json={"instances": [{"inputs": TEXTS[0]}, {"inputs": TEXTS[1]}]})
    assert same([rows[0] for rows in vertex.json()["predictions"]], hidden[:2])
    assert httpx.get(url + "/info").json()["model_type"] == {"embedding": {"pooling": "none"}}


def test_long_texts_are_cut_or_refused_as_by_embed(serve: Serve) -> None:
    url, long = serve(TOKENS).url + "/embed_all", "again and " * 1500
    cut = httpx.post(url, json={"inputs": ["a", long]})
    assert [len(rows) for rows in cut.json()] == [3, 1024] and cut.headers["x-nopad-truncated"] == "1"
    refused = httpx.post(url, json={"inputs": ["a", long], "truncate": False})
    assert refused.status_code == 422 and "must have less than 1025 tokens. Given: " in refused.json()["error"]
    assert refused.json()["index"] == 1
    for body, status in (({"inputs": []}, 400), ({"inputs": ["a", " "]}, 422), ({"inputs": ["a"] * 33}, 422)):
        assert httpx.post(url, json=body).status_code == status
    whole = httpx.post(url, json={"inputs": long, "truncation": "window"}).json()
    assert len(whole) == 1 and len(whole[0]) > 1500


def test_vllms_pooling_gives_a_vector_for_each_token(serve: Serve, hidden: list[Any]) -> None:
    url = serve(TOKENS).url + "/pooling"
    body = httpx.post(url, json={"input": TEXTS, "use_activation": False}).json()
    assert same([row["data"] for row in body["data"]], hidden)
    assert body["usage"]["prompt_tokens"] == sum(map(len, hidden))
    ask = {"input": TEXTS[1], "dimensions": 8, "encoding_format": "base64"}
    (row,) = httpx.post(url, json=ask).json()["data"]
    cut = hidden[1][:, :8]
    unit = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    assert np.allclose(np.frombuffer(base64.b64decode(row["data"]), "<f4").reshape(-1, 8), unit, atol=1e-5)


def test_kserve_puts_text_after_text_without_padding(serve: Serve, hidden: list[Any]) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    given = triton.InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object))
    with triton.InferenceServerClient(serve(TOKENS).url.removeprefix("http://")) as client:
        outputs = client.get_model_metadata(TOKENS)["outputs"]
        assert outputs == [
            {"name": "token_embedding", "datatype": "FP32", "shape": [-1, 64]},
            {"name": "tokens", "datatype": "INT64", "shape": [-1]},
        ]
        assert client.get_model_config(TOKENS)["output"][1]["data_type"] == "TYPE_INT64"
        for binary in (True, False):
            wanted = [triton.InferRequestedOutput(each["name"], binary_data=binary) for each in outputs]
            answer = client.infer(TOKENS, [given], outputs=wanted)
            tokens = answer.as_numpy("tokens")
            assert tokens.dtype == np.int64 and tokens.tolist() == [len(rows) for rows in hidden]
            assert same(np.split(answer.as_numpy("token_embedding"), np.cumsum(tokens)[:-1]), hidden)
        with pytest.raises(Exception, match="classification is a number of classes of FP32 scores"):
            client.infer(TOKENS, [given], outputs=[triton.InferRequestedOutput("tokens", class_count=2)])


def test_grpc_names_the_types_as_triton_does(serve: Serve) -> None:
    pytest.importorskip("grpc", reason="the extra grpc is not installed")
    from nopad.runtime.server.grpc.transcode import config_response

    config = httpx.get(f"{serve(TOKENS).url}/v2/models/{TOKENS}/config").json()
    assert [tensor.data_type for tensor in config_response(config).config.output] == [11, 9]  # Triton's FP32 and INT64


def test_the_feature_extraction_of_the_hub_is_that_of_each_token(serve: Serve, hidden: list[Any]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=serve(TOKENS).url, token="ignored", timeout=60)
    assert same(client.feature_extraction(TEXTS[0]), hidden[:1])


def test_what_the_other_embeddings_need_is_said(serve: Serve) -> None:
    tokens, pooled = serve(TOKENS).url, serve(EMBED).url
    refused = httpx.post(pooled + "/embed_all", json={"inputs": "a"})
    assert refused.status_code == 424 and refused.json() == {
        "error": "Model has no embedding of each token; export its checkpoint with --task token-embeddings",
        "error_type": "Backend",
    }
    other = "Model is not an embedding model; export its checkpoint with --task embeddings"
    sentences = {"source_sentence": "a", "sentences": ["b"]}
    for route, body in (("/embed", "a"), ("/similarity", sentences), ("/", sentences)):
        refused = httpx.post(tokens + route, json={"inputs": body})
        assert (refused.status_code, refused.json()["error"]) == (424, other)
    refused = httpx.post(tokens + "/v1/embeddings", json={"input": "a"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, other)
    plain = httpx.post(serve("default").url + "/embed_all", json={"inputs": "a"})
    assert (plain.status_code, plain.json()["error"]) == (424, "Model has no embedding of each token")


def test_both_bundles_of_a_checkpoint_are_served_beside_each_other(serve: Serve, hidden: list[Any]) -> None:
    server = serve(EMBED, TOKENS)
    assert same(httpx.post(server.url + "/embed_all", json={"inputs": TEXTS}).json(), hidden)
    pooled = httpx.post(server.url + "/embed", json={"inputs": TEXTS}).json()
    assert np.shape(pooled) == (len(TEXTS), 64)
