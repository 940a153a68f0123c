"""Triton's client loads, unloads and lists models, unmodified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

import tritonclient.http as triton
from swapping_server import ADMIN, Swapping, write_models
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapping]:
    running = Swapping(write_models(tmp_path_factory.mktemp("repository")))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: Swapping) -> Iterator[Any]:
    opened = triton.InferenceServerClient(server.url.removeprefix("http://"))
    yield opened
    opened.close()


def asked(client: Any, **options: Any) -> Any:
    text = triton.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"splendid"], dtype=object))
    return client.infer("m", [text], **options)


def test_load_unload_and_index(client: Any) -> None:
    assert client.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY"}]
    first = asked(client)
    assert first.get_response()["model_version"] == "1"
    client.load_model("m", headers=ADMIN)
    assert client.is_model_ready("m", "2") and not client.is_model_ready("m", "1")
    config = {"parameters": {"bundle": {"string_value": "soft"}}}
    client.load_model("m", headers=ADMIN, config=json.dumps(config))
    assert client.get_model_metadata("m")["versions"] == ["3"]
    soft = asked(client, model_version="3")
    assert soft.get_response()["model_version"] == "3"
    assert abs(soft.as_numpy("scores") - first.as_numpy("scores")).max() > 0.01
    client.load_model("plain", headers=ADMIN)
    assert [row["name"] for row in client.get_model_repository_index()] == ["m", "plain"]
    client.unload_model("plain", headers=ADMIN)
    assert not client.is_model_ready("plain") and client.is_model_ready("m")
    assert [row["name"] for row in client.get_model_repository_index()] == ["m"]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"model_name": "m"}, "401", "admin key"),
        ({"model_name": "nowhere", "headers": ADMIN}, "400", "no bundle 'nowhere'"),
        ({"model_name": "m", "headers": ADMIN, "config": "{"}, "400", "config is a JSON object"),
        (
            {"model_name": "m", "headers": ADMIN, "config": '{"parameters": {"model": {"string_value": "a"}}}'},
            "400",
            "model",
        ),
        ({"model_name": "tampered", "headers": ADMIN}, "500", "self-check"),
    ],
)
def test_what_cannot_be_loaded_is_said(client: Any, options: dict[str, Any], status: str, words: str) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        client.load_model(**options)
    assert caught.value.status() == status
    assert client.is_model_ready("m")


def test_a_failed_load_is_in_the_index(client: Any) -> None:
    with pytest.raises(InferenceServerException):
        client.load_model("damaged", headers=ADMIN)
    (row,) = [row for row in client.get_model_repository_index() if row["name"] == "damaged"]
    assert (row["state"], row["reason"]) == ("UNAVAILABLE", "loading failed")
    with pytest.raises(InferenceServerException, match="no model named 'other'"):
        client.unload_model("other", headers=ADMIN)
