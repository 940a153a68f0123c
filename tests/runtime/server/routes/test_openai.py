"""The unmodified openai client on a server's /v1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from running_server import answers_with

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")

EMBED = "modernbert-embed-cls"
TEXTS = ["splendid", "a dull film"]
Serve = Callable[..., Any]


@pytest.fixture
def client(serve: Serve) -> Iterator[Callable[..., Any]]:
    opened = []

    def make(*names: str, retries: int = 0, **settings: Any) -> Any:
        url = serve(*names, **settings).url + "/v1"
        opened.append(openai.OpenAI(base_url=url, api_key="key", max_retries=retries, timeout=60))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def unit(serve: Serve, texts: list[str], dimensions: int = 64) -> Any:
    raw = next(iter(serve(EMBED).models)).model.embed(texts)[:, :dimensions]
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def test_embeddings_in_every_form(client: Any, serve: Serve) -> None:
    embeddings = client(EMBED).embeddings
    default = embeddings.create(model="whatever", input=TEXTS[0])  # the client asks for base64 by itself
    assert np.allclose(default.data[0].embedding, unit(serve, TEXTS)[0], atol=1e-5) and default.model == EMBED
    assert default.usage.prompt_tokens == default.usage.total_tokens > 0
    several = embeddings.create(model="whatever", input=TEXTS, encoding_format="float", user="somebody")
    assert [row.index for row in several.data] == [0, 1]
    assert np.allclose([row.embedding for row in several.data], unit(serve, TEXTS), atol=1e-5)
    cut = embeddings.create(model="whatever", input=TEXTS, dimensions=16)
    assert np.allclose([row.embedding for row in cut.data], unit(serve, TEXTS, 16), atol=1e-5)
    (tokens,) = next(iter(serve(EMBED).models)).model.encoder.encode([TEXTS[0]])
    for ids in (tokens.input_ids, [tokens.input_ids]):
        same = embeddings.create(model="whatever", input=ids)
        assert np.allclose(same.data[0].embedding, default.data[0].embedding, atol=1e-5)


def test_base64_is_little_endian_float32_and_equals_the_floats(serve: Serve) -> None:
    import base64

    url = serve(EMBED).url + "/v1/embeddings"
    listed = httpx.post(url, json={"input": TEXTS}).json()["data"]
    packed = httpx.post(url, json={"input": TEXTS, "encoding_format": "base64"}).json()["data"]
    for row, encoded in zip(listed, packed, strict=True):
        floats = np.array(row["embedding"], dtype="<f4")
        assert base64.b64decode(encoded["embedding"]) == floats.tobytes()


def test_models_are_listed_and_named(client: Any) -> None:
    assert [model.id for model in client(EMBED, "default").models.list()] == [EMBED, "default"]
    assert client(EMBED, "default").models.retrieve("default").owned_by == "nopad"
    with pytest.raises(openai.NotFoundError, match="no model named 'gpt-4/x'"):
        client(EMBED, "default").models.retrieve("gpt-4/x")


def test_an_unknown_name_is_404_only_among_several_models(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client(EMBED, "default").embeddings.create(model="nobody", input="a")
    assert caught.value.code == "model_not_found"
    assert client(EMBED, "default").embeddings.create(model=EMBED, input="a").model == EMBED
    with pytest.raises(openai.BadRequestError, match="not an embedding model"):
        client(EMBED, "default").embeddings.create(model="default", input="a")


@pytest.mark.parametrize(
    ("given", "error", "param"),
    [
        ("", "BadRequestError", None),
        ([], "BadRequestError", None),
        (["a", ""], "BadRequestError", "input[1]"),
        (["a", "  "], "UnprocessableEntityError", "input[1]"),
        ([[5], [10**6]], "UnprocessableEntityError", "input[1]"),
        (["a"] * 33, "UnprocessableEntityError", None),
        (3, "UnprocessableEntityError", "input"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_errors_are_of_the_clients_classes(client: Any, given: Any, error: str, param: str | None) -> None:
    with pytest.raises(getattr(openai, error)) as caught:
        client(EMBED).embeddings.create(model=EMBED, input=given)
    assert caught.value.type == "invalid_request_error" and caught.value.param == param and caught.value.request_id


def test_a_wrong_key_is_an_authentication_error(client: Any) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client(EMBED, keys=("another",)).embeddings.create(model=EMBED, input="a")
    assert caught.value.type == "authentication_error"
    assert client(EMBED, keys=("key",)).embeddings.create(model=EMBED, input="a").data


def test_the_client_comes_back_after_429(client: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(EMBED)
    real, calls = server.serving.require_ready, []

    def once_full() -> None:
        from nopad.runtime.server.errors import Fault

        calls.append(1)
        if len(calls) == 1:
            raise Fault("overloaded", "full", retry_after=0.01)
        real()

    monkeypatch.setattr(server.serving, "require_ready", once_full)
    assert client(EMBED, retries=1).embeddings.create(model=EMBED, input="a").data
    assert len(calls) == 2
    calls.clear()
    with pytest.raises(openai.RateLimitError) as caught:
        client(EMBED).embeddings.create(model=EMBED, input="a")
    assert caught.value.response.headers["retry-after-ms"] == "10"


def test_numbers_that_are_none_are_500_here(client: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    model = next(iter(serve(EMBED).models)).model
    (good,) = model.results(["a"])
    bad = dataclasses.replace(good, vector=np.full_like(good.vector, np.nan))
    answers_with(model, [bad], monkeypatch)
    with pytest.raises(openai.InternalServerError, match="not a number"):
        client(EMBED).embeddings.create(model=EMBED, input="a")
