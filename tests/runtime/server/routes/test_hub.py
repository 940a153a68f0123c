"""The unmodified `huggingface_hub.InferenceClient` on a server's URL."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from huggingface_hub import InferenceClient, close_session
from huggingface_hub.errors import HfHubHTTPError
from running_server import Running

from nopad.runtime.bundle import open_bundle, write_manifest

Serve = Callable[..., Any]
TEXT = "a dull hour of my life that I want back"
EMBED = "modernbert-embed-mean-unit"


@pytest.fixture(autouse=True)
def _closed_sessions() -> Iterator[None]:
    yield
    close_session()  # all clients share one


@pytest.fixture
def client(serve: Serve) -> Callable[[str], InferenceClient]:
    return lambda name: InferenceClient(model=serve(name).url, token="ignored", timeout=60)


def model_of(serve: Serve, name: str) -> Any:
    return next(iter(serve(name).models)).model


def test_classification(client: Any, serve: Serve) -> None:
    (wanted,) = model_of(serve, "default").predict([TEXT], return_logits=True)
    rows = client("default").text_classification(TEXT)
    assert [(row.label, row.score) for row in rows] == list(wanted.scores.items())  # all labels, not one
    assert len(client("default").text_classification(TEXT, top_k=1)) == 1
    raw = client("default").text_classification(TEXT, function_to_apply="none")
    assert [row.score for row in raw] == pytest.approx(sorted(map(float, wanted.logits), reverse=True), abs=1e-5)
    sigmoid = client("default").text_classification(TEXT, function_to_apply="sigmoid")
    assert [row.score for row in sigmoid] == pytest.approx([1 / (1 + np.exp(-row.score)) for row in raw], abs=1e-5)
    softmax = client("default").text_classification(TEXT, function_to_apply="softmax")
    assert [row.score for row in softmax] == pytest.approx([row.score for row in rows], abs=1e-5)


def test_feature_extraction_and_similarity(client: Any, serve: Serve) -> None:
    wanted = model_of(serve, EMBED).embed([TEXT, "splendid"])
    assert np.allclose(client(EMBED).feature_extraction(TEXT), wanted[:1], atol=1e-5)
    both = client(EMBED).feature_extraction([TEXT, "splendid"], normalize=True, truncate=True, dimensions=64)
    assert both.shape == (2, 64) and np.allclose(both, wanted, atol=1e-5)
    similar = client(EMBED).sentence_similarity(TEXT, other_sentences=["splendid", TEXT])
    assert similar == pytest.approx([float(wanted[0] @ wanted[1]), 1.0], abs=1e-5)


def test_token_classification(client: Any, serve: Serve) -> None:
    (wanted,) = model_of(serve, "modernbert-token").tag([TEXT])
    groups = client("modernbert-token").token_classification(TEXT)
    assert [(row.entity_group, row.start, row.end, row.word) for row in groups] == [
        (entity.label, entity.start, entity.end, entity.text) for entity in wanted.entities
    ]
    for strategy in ("none", "simple", "first", "average", "max"):
        rows = client("modernbert-token").token_classification(TEXT, aggregation_strategy=strategy, ignore_labels=[])
        (tagged,) = model_of(serve, "modernbert-token").tag([TEXT], strategy=strategy, ignore_labels=[])
        assert [(row.entity or row.entity_group, row.word, row.start, row.end) for row in rows] == [
            (entity.label, entity.word, entity.start, entity.end) for entity in tagged.entities
        ]
        assert [row.score for row in rows] == pytest.approx([entity.score for entity in tagged.entities], abs=1e-5)
    tokens = client("modernbert-token").token_classification(TEXT, aggregation_strategy="none", ignore_labels=[])
    assert [row.entity for row in tokens] == list(wanted.labels)
    ignored = client("modernbert-token").token_classification(TEXT, ignore_labels=[wanted.entities[0].label])
    assert len(ignored) < len(groups)
    long = f"{TEXT} " * 150
    all_of_it = client("modernbert-token").token_classification(long, stride=32)
    assert all_of_it[-1].end > client("modernbert-token").token_classification(long)[-1].end + 1000
    with pytest.raises(HfHubHTTPError, match="aggregation_strategy"):
        client("modernbert-token").token_classification(TEXT, aggregation_strategy="most")


def test_fill_mask(client: Any, serve: Serve) -> None:
    mask = model_of(serve, "modernbert-mlm").manifest.mask_token
    (wanted,) = model_of(serve, "modernbert-mlm").fill([f"a {mask} film"])
    rows = client("modernbert-mlm").fill_mask(f"a {mask} film")
    assert [(row.token_str, row.score) for row in rows] == list(wanted.masks[0])
    assert rows[0].sequence == f"a {rows[0].token_str} film"
    encoder = next(iter(serve("modernbert-mlm").models)).model.encoder
    assert [encoder.decode([row.token], skip_special=False).strip() for row in rows] == [row.token_str for row in rows]
    all_rows = client("modernbert-mlm").fill_mask(f"a {mask} film", top_k=1000)
    chosen = client("modernbert-mlm").fill_mask(f"a {mask} film", targets=["e", "o", "e"])
    want = [row for row in all_rows if row.token in {encoder.token_id("e"), encoder.token_id("o")}]
    assert [(row.token, row.score) for row in chosen] == [(row.token, row.score) for row in want] and len(want) == 2
    with pytest.raises(HfHubHTTPError, match="the target 'unheardof' is not one token"):
        client("modernbert-mlm").fill_mask(f"a {mask} film", targets=["unheardof"])
    assert len(client("modernbert-mlm").fill_mask(f"a {mask} film", top_k=2)) == 2
    several = httpx.post(serve("modernbert-mlm").url, json={"inputs": f"{mask} {mask}", "parameters": {}}).json()
    assert [len(each) for each in several] == [5, 5] and several[1][0]["sequence"].startswith(mask)
    huge = httpx.post(serve("modernbert-mlm").url, json={"inputs": f"{mask} " * 1000 + "a" * 100_000, "parameters": {}})
    assert huge.status_code == 422 and "lower top_k" in huge.json()["error"]
    with pytest.raises(HfHubHTTPError, match="no .* to fill"):
        client("modernbert-mlm").fill_mask("no gap")


def test_zero_shot(bundle: Any, serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "nli"
    shutil.copytree(bundle("modernbert-single-mean"), folder)
    opened = open_bundle(folder)
    labels = ("contradiction", "neutral", "entailment")
    write_manifest(folder, dataclasses.replace(opened.manifest, labels=labels))
    running = Running({"nli": folder}).start()
    try:
        model = next(iter(running.models)).model
        client = InferenceClient(model=running.url, token="ignored", timeout=60)
        candidates = ["good", "bad", "long"]
        answers = model.predict([(TEXT, f"This is {label}.") for label in candidates], return_logits=True)
        logits = np.stack([answer.logits for answer in answers])
        template = "This is {}."
        rows = client.zero_shot_classification(TEXT, candidates, hypothesis_template=template)
        share = np.exp(logits[:, 2]) / np.exp(logits[:, 2]).sum()
        assert {row.label: row.score for row in rows} == pytest.approx(dict(zip(candidates, share, strict=True)), 1e-4)
        assert rows[0].score == max(row.score for row in rows)
        each = client.zero_shot_classification(TEXT, candidates, hypothesis_template=template, multi_label=True)
        alone = 1 / (1 + np.exp(logits[:, 0] - logits[:, 2]))
        assert {row.label: row.score for row in each} == pytest.approx(dict(zip(candidates, alone, strict=True)), 1e-4)
    finally:
        running.stop()
    with pytest.raises(HfHubHTTPError, match="not a natural language inference model"):
        InferenceClient(model=serve("default").url, token="t").zero_shot_classification(TEXT, candidates)


def test_parameters_are_an_object(serve: Serve) -> None:
    for name in ("default", EMBED):
        for parameters in ("top_k", 3, [], True):
            answer = httpx.post(serve(name).url, json={"inputs": TEXT, "parameters": parameters})
            assert answer.status_code == 422 and "parameters must be an object" in answer.json()["error"]


def test_an_errors_text_reaches_the_caller(client: Any) -> None:
    with pytest.raises(HfHubHTTPError, match="empty or only spaces") as caught:
        client("default").text_classification("  ")
    assert caught.value.response.status_code == 422 and caught.value.request_id
    with pytest.raises(HfHubHTTPError, match="top_k"):
        client("default").text_classification(TEXT, top_k=0)


def test_health_and_info_of_the_client(serve: Serve) -> None:
    client = InferenceClient(model=serve("default").url, provider="hf-inference", token="ignored")
    assert client.health_check()
    assert client.get_endpoint_info()["served_model_name"] == "default"


def test_without_parameters_the_root_answers_as_tei_does(serve: Serve) -> None:
    url = serve("default").url
    for route in ("", "/", "/invocations"):
        assert (
            httpx.post(url + route, json={"inputs": TEXT}).json()
            == httpx.post(url + "/predict", json={"inputs": TEXT}).json()
        )
    nested = httpx.post(url, json={"inputs": TEXT, "parameters": {}}).json()
    assert len(nested) == 1 and len(nested[0]) == 2
    batch = httpx.post(url, json={"inputs": [[TEXT], ["splendid"]], "parameters": {}}).json()
    assert [rows[0]["label"] for rows in batch] == ["negative", "positive"]
    ranked = httpx.post(serve("modernbert-rerank").url, json={"query": "a", "texts": ["b", "c"]}).json()
    assert {row["index"] for row in ranked} == {0, 1}
    for wrong in ({"parameters": {}}, {"inputs": 3}, {"inputs": TEXT, "parameters": 3}, [1]):
        assert httpx.post(url, json=wrong).status_code == 422
