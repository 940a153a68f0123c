"""TEI's /embed_sparse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

Serve = Callable[..., Any]
MASKED = "modernbert-mlm"
TEXTS = ["splendid, go and see it", "a dull film"]


@pytest.mark.slow  # it exports a bundle
def test_weights_are_splades_and_only_those_that_are_not_zero(serve: Serve) -> None:
    server = serve(MASKED)
    answer = httpx.post(server.url + "/embed_sparse", json={"inputs": TEXTS})
    logits = next(iter(server.models)).model.logits(TEXTS)
    assert len(answer.json()) == 2 and int(answer.headers["x-compute-tokens"]) == sum(map(len, logits))
    for rows, of_tokens in zip(answer.json(), logits, strict=True):
        wanted = np.log1p(np.maximum(of_tokens, 0)).max(axis=0)
        found = {row["index"]: row["value"] for row in rows}
        assert set(found) == set(np.flatnonzero(wanted).tolist()) and len(found) > 0
        assert list(found.values()) == pytest.approx([wanted[index] for index in found], abs=1e-5)
    single = httpx.post(server.url + "/embed_sparse", json={"inputs": TEXTS[0]}).json()
    assert [row["index"] for row in single[0]] == [row["index"] for row in answer.json()[0]] and len(single) == 1


def test_what_has_no_weights_is_refused(serve: Serve) -> None:
    url = serve("default").url
    sparse = httpx.post(url + "/embed_sparse", json={"inputs": "a"})
    assert sparse.status_code == 424 and "not an embedding model with SPLADE pooling" in sparse.json()["error"]
    assert httpx.post(url + "/embed_sparse", json={"inputs": 3}).status_code == 422
