"""TEI's routes through HTTP: forms of inputs, shapes of answers, statuses and headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

REVIEWS = ["splendid, go and see it", "a dull film", "an hour of my life I want back"]
EMBED, RERANK = "modernbert-embed-mean-unit", "modernbert-rerank"
Serve = Callable[..., Any]


@pytest.fixture
def post(serve: Serve) -> Callable[..., httpx.Response]:
    """POST a body (JSON, or bytes as they are) to a route of a server of this bundle."""

    def call(route: str, body: Any, *, of: str = "default", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        return httpx.post(serve(of).url + route, content=content, headers=named, timeout=60)

    return call


Post = Callable[..., httpx.Response]


def test_the_four_forms_of_inputs(post: Post, serve: Serve) -> None:
    model = next(iter(serve("default").models)).model
    one, pair = model.predict([REVIEWS[0], (REVIEWS[0], REVIEWS[1])])
    single = post("/predict", {"inputs": REVIEWS[0]}).json()
    assert [row["label"] for row in single] == list(one.scores)  # one was answered beside a pair: another micro-batch
    assert [row["score"] for row in single] == pytest.approx(list(one.scores.values()), abs=1e-6)
    assert post("/predict", {"inputs": [REVIEWS[0]]}).json() == single
    # Two strings at the top are ONE pair, whose answer is one list; in lists of their own they are a batch.
    assert post("/predict", {"inputs": REVIEWS[:2]}).json()[0]["score"] == pytest.approx(pair.score, abs=1e-6)
    batch = post("/predict", {"inputs": [[REVIEWS[0]], REVIEWS[:2]]}).json()
    assert [len(rows) for rows in batch] == [2, 2]
    assert [rows[0]["score"] for rows in batch] == pytest.approx([one.score, pair.score], abs=1e-6)


@pytest.mark.parametrize("inputs", [REVIEWS, [], [[]], [REVIEWS], ["a", ["b"]], 3, None, {"text": "a"}, [3]])
def test_other_forms_are_no_inputs(post: Post, inputs: Any) -> None:
    answer = post("/predict", {"inputs": inputs})
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "Validation" and "inputs" in answer.json()["error"]


def test_scores_are_logits_on_request_and_extra_fields_are_ignored(post: Post, serve: Serve) -> None:
    model = next(iter(serve("default").models)).model
    (answer,) = model.predict([REVIEWS[0]], return_logits=True)
    rows = post("/predict", {"inputs": REVIEWS[0], "raw_scores": True, "what": 1}).json()
    assert {row["label"]: row["score"] for row in rows} == pytest.approx(
        dict(zip(model.labels, map(float, answer.logits), strict=True)), abs=1e-5
    )
    assert rows[0]["score"] > rows[1]["score"]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("modernbert-single-mean", lambda scores: sum(scores) == pytest.approx(1)),
        ("modernbert-multi-cls", lambda scores: sum(scores) != pytest.approx(1) and max(scores) < 1),
        ("modernbert-regression-cls", lambda scores: len(scores) == 1),
    ],
)
def test_the_problem_type_decides_what_scores_are(post: Post, serve: Serve, name: str, check: Any) -> None:
    rows = post("/predict", {"inputs": "a film"}, of=name).json()
    model = next(iter(serve(name).models)).model
    assert check([row["score"] for row in rows])
    assert {row["label"]: row["score"] for row in rows} == pytest.approx(model.predict(["a film"])[0].scores, abs=1e-6)


def test_every_answer_says_who_computed_it_and_how_long_it_took(post: Post) -> None:
    answer = post("/predict", {"inputs": [[text] for text in REVIEWS]}, x_request_id="mine-7")
    headers = answer.headers
    assert headers["x-request-id"] == "mine-7" and headers["x-compute-type"] == "gpu+optimized"
    assert headers["x-nopad-engine"] == "onnx-cpu" and headers["x-nopad-precision"] == "fp32"
    assert headers["x-nopad-truncated"] == "0"
    assert int(headers["x-compute-characters"]) == sum(map(len, REVIEWS))
    assert int(headers["x-compute-tokens"]) > len(REVIEWS)
    assert headers["x-compute-time"] == headers["x-total-time"] and int(headers["x-total-time"]) >= 0
    assert post("/predict", {"inputs": "a"}).headers["x-request-id"] != "mine-7"
    assert post("/predict", {"inputs": "a"}, x_request_id="has spaces").headers["x-request-id"] != "has spaces"


def test_a_long_text_is_cut_and_counted_or_refused_with_its_place(post: Post) -> None:
    long = "film " * 3000
    cut = post("/predict", {"inputs": long})
    assert cut.status_code == 200 and cut.headers["x-nopad-truncated"] == "1"
    assert cut.headers["x-compute-tokens"] == "1024"
    refused = post("/predict", {"inputs": long, "truncate": False})
    assert refused.status_code == 422 and refused.json()["error_type"] == "Validation"
    assert "must have less than 1025 tokens. Given: 3002" in refused.json()["error"] and "index" not in refused.json()
    batch = post("/predict", {"inputs": [["short"], [long]], "truncate": False})
    assert batch.status_code == 422 and batch.json()["index"] == 1
    sides = [post("/predict", {"inputs": long + " superb", "truncation_direction": end}) for end in ("Left", "right")]
    assert [each.headers["x-nopad-truncated"] for each in sides] == ["1", "1"]
    assert sides[0].json() != sides[1].json() == post("/predict", {"inputs": long + " superb"}).json()
    assert post("/predict", {"inputs": "short", "truncation_direction": "left"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": ""}, 400, "Empty"),
        ({"inputs": "  "}, 422, "Tokenizer"),
        ({"inputs": "\ud800"}, 422, "Tokenizer"),
        ({"inputs": [["a"]] * 33}, 422, "Validation"),
        ({"texts": "a"}, 422, "Validation"),
        (b'{"inputs": "a"', 400, "Validation"),
        (b"", 422, "Validation"),
        (b'{"inputs": "\xff"}', 400, "Validation"),
        (b"[" * 100_000, 400, "Validation"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", 400, "Validation"),
        ({"inputs": "a" * 2_000_000}, 413, "Validation"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_wrong_with_a_request_decides_its_status(post: Post, body: Any, status: int, kind: str) -> None:
    answer = post("/predict", body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert set(answer.json()) == {"error", "error_type"} and answer.headers["x-request-id"]


def test_a_batch_names_the_text_that_is_to_blame_by_the_same_rule(post: Post) -> None:
    for text, status in (("", 400), (" ", 422), ("\ud800", 422)):
        single, batch = post("/predict", {"inputs": text}), post("/predict", {"inputs": [["a"], ["b"], [text]]})
        assert single.status_code == batch.status_code == status
        assert batch.json()["index"] == 2 and batch.json()["error_type"] == single.json()["error_type"]


def test_wrong_media_types_methods_and_routes(serve: Serve) -> None:
    url = serve("default").url
    for answer, status in (
        (httpx.post(url + "/predict", content=b"{}"), 415),
        (httpx.post(url + "/predict", content=b"{}", headers={"content-type": "text/plain"}), 415),
        (httpx.get(url + "/predict"), 405),
        (httpx.get(url + "/nothing"), 404),
    ):
        assert answer.status_code == status and answer.json()["error_type"] == "Validation"


def test_batch_answers_equal_the_single_ones(post: Post) -> None:
    batch = post("/predict", {"inputs": [[text] for text in REVIEWS]}).json()
    for text, rows in zip(REVIEWS, batch, strict=True):
        alone = post("/predict", {"inputs": text}).json()
        assert [row["label"] for row in rows] == [row["label"] for row in alone]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in alone], abs=1e-5)


@pytest.mark.parametrize(
    ("route", "body", "of", "said"),
    [
        ("/predict", {"inputs": "a"}, EMBED, "Model is not a classifier model"),
        ("/embed", {"inputs": "a"}, "default", "Model is not an embedding model"),
        ("/rerank", {"query": "a", "texts": ["b"]}, "default", "model is not a re-ranker model"),
    ],
)
def test_another_kind_of_model_is_424(post: Post, route: str, body: Any, of: str, said: str) -> None:
    answer = post(route, body, of=of)
    assert (answer.status_code, answer.json()) == (424, {"error": said, "error_type": "Backend"})


def test_embeddings_are_lists_also_for_one_text(post: Post, serve: Serve) -> None:
    model = next(iter(serve("modernbert-embed-cls").models)).model
    raw = model.embed(REVIEWS)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    one = post("/embed", {"inputs": REVIEWS[0]}, of="modernbert-embed-cls").json()
    assert np.asarray(one).shape == (1, 64) and np.allclose(one[0], unit[0], atol=1e-5)
    many = post("/embed", {"inputs": REVIEWS}, of="modernbert-embed-cls")
    assert np.allclose(many.json(), unit, atol=1e-5)
    as_they_are = post("/embed", {"inputs": REVIEWS, "normalize": False}, of="modernbert-embed-cls").json()
    assert np.allclose(as_they_are, raw, atol=1e-4)
    short = np.asarray(post("/embed", {"inputs": REVIEWS, "dimensions": 16}, of="modernbert-embed-cls").json())
    cut = raw[:, :16] / np.linalg.norm(raw[:, :16], axis=1, keepdims=True)
    assert np.allclose(short, cut, atol=1e-5)
    for wrong in (0, -1, 65):
        refused = post("/embed", {"inputs": "a", "dimensions": wrong}, of="modernbert-embed-cls")
        assert refused.status_code == 422 and "between 1 and 64" in refused.json()["error"]
    unknown = post("/embed", {"inputs": "a", "prompt_name": "query"}, of="modernbert-embed-cls")
    assert unknown.status_code == 422 and "no prompt named 'query'" in unknown.json()["error"]


def test_token_ids_are_decoded_and_must_be_in_the_vocabulary(post: Post, serve: Serve) -> None:
    encoder = next(iter(serve(EMBED).models)).model.encoder
    (tokens,) = encoder.encode(["a film"])
    text = post("/embed", {"inputs": "a film"}, of=EMBED).json()
    for inputs in (tokens.input_ids, [tokens.input_ids]):
        assert np.allclose(post("/embed", {"inputs": inputs}, of=EMBED).json(), text, atol=1e-5)
    mixed = post("/embed", {"inputs": ["a film", tokens.input_ids]}, of=EMBED).json()
    assert np.allclose(mixed, [text[0]] * 2, atol=1e-5)
    for inputs, index in (([5, 10**6], None), ([[5], [-1]], 1)):
        refused = post("/embed", {"inputs": inputs}, of=EMBED)
        assert refused.status_code == 422 and refused.json().get("index") == index
    for empty in ([], [[]]):
        assert post("/embed", {"inputs": empty}, of=EMBED).status_code == 400


def test_similarity_is_the_cosine(post: Post) -> None:
    vectors = np.asarray(post("/embed", {"inputs": REVIEWS}, of=EMBED).json())
    body = {"inputs": {"source_sentence": REVIEWS[0], "sentences": REVIEWS}}
    answer = post("/similarity", body, of=EMBED)
    assert answer.json() == pytest.approx(list(vectors @ vectors[0]), abs=1e-5)
    assert answer.json()[0] == pytest.approx(1, abs=1e-5)
    most = {"inputs": {"source_sentence": "a", "sentences": ["b"] * 32}, "parameters": None}
    assert len(post("/similarity", most, of=EMBED).json()) == 32
    none = {"inputs": {"source_sentence": "a", "sentences": []}}
    assert post("/similarity", none, of=EMBED).status_code == 400


def test_rerank_puts_the_best_first(post: Post, serve: Serve) -> None:
    model = next(iter(serve(RERANK).models)).model
    wanted = model.rerank("which film", REVIEWS)
    answer = post("/rerank", {"query": "which film", "texts": REVIEWS}, of=RERANK).json()
    assert [row["index"] for row in answer] == [ranked.index for ranked in wanted]
    assert [row["score"] for row in answer] == pytest.approx([ranked.score for ranked in wanted], abs=1e-6)
    assert set(answer[0]) == {"index", "score"}
    body = {"query": "which film", "texts": REVIEWS, "raw_scores": True, "return_text": True}
    raw = post("/rerank", body, of=RERANK).json()
    assert [row["text"] for row in raw] == [REVIEWS[row["index"]] for row in answer]
    logits = [row["score"] for row in raw]
    assert 1 / (1 + np.exp(-np.asarray(logits))) == pytest.approx([row["score"] for row in answer], abs=1e-5)
    assert post("/rerank", {"query": "", "texts": ["a"]}, of=RERANK).status_code == 400
    assert post("/rerank", {"query": "a", "texts": []}, of=RERANK).status_code == 400
    second = post("/rerank", {"query": "a", "texts": ["b", " "]}, of=RERANK)
    assert second.status_code == 422 and second.json()["index"] == 1


def test_tokens_have_byte_positions_and_decode_to_the_text(post: Post) -> None:
    text = "schön film"
    (rows,) = post("/tokenize", {"inputs": text}).json()
    first, last = rows[0], rows[-1]
    assert first["special"] and first["start"] is None and first["stop"] is None and first["text"] == "[CLS]"
    inner = rows[1:-1]
    assert "".join(row["text"] for row in inner).replace(" ", "") == text.replace(" ", "")
    for row in inner:
        assert text.encode()[row["start"] : row["stop"]].decode() == row["text"] and not row["special"]
    bare = post("/tokenize", {"inputs": [text], "add_special_tokens": False}).json()
    assert bare == [inner] and last["special"]
    ids = [row["id"] for row in rows]
    plain = post("/decode", {"ids": ids}).json()
    assert plain[0].strip() == text
    assert post("/decode", {"ids": [ids, ids]}).json() == plain * 2
    assert "[CLS]" in post("/decode", {"ids": ids, "skip_special_tokens": False}).json()[0]
    assert post("/decode", {"ids": [10**6]}).status_code == 422
    assert post("/decode", {"ids": []}).status_code == 400
    whole = post("/tokenize", {"inputs": "film " * 100_000}).json()
    assert len(whole[0]) == 100_002  # nothing is cut, and the time grows with the length, not its square


def test_info_and_health(serve: Serve) -> None:
    url = serve("default").url
    info = httpx.get(url + "/info").json()
    assert info["model_type"] == {
        "classifier": {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    }
    assert (info["max_client_batch_size"], info["max_input_length"], info["model_dtype"]) == (32, 1024, "float32")
    assert "embedding" in httpx.get(serve(EMBED).url + "/info").json()["model_type"]
    assert "reranker" in httpx.get(serve(RERANK).url + "/info").json()["model_type"]
    for route in ("/", "/health", "/ping", "/health/live", "/health/ready"):
        answer = httpx.get(url + route)
        assert (answer.status_code, answer.content) == (200, b"")
    assert httpx.get(url + "/docs").status_code == 200
    assert "/predict" in httpx.get(url + "/openapi.json").json()["paths"]
