"""Queries and documents get the prompts that sentence-transformers gives them, and documents wait behind queries."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from st_folders import library, quiet

from nopad.adapters.embedding import Embedder
from nopad.runtime import load
from nopad.runtime.errors import TextError, UsageError

TEXTS = ["a film about a dog", "Splendid!", "who wrote it, and when?"]


@pytest.mark.parametrize("name", ["both", "default"])
def test_prompts_are_those_of_sentence_transformers(
    prompted: Callable[[str], tuple[Path, Path]], unverified: dict[str, Any], name: str
) -> None:
    folder, bundle = prompted(name)
    with quiet():
        reference = library().SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        queries, documents = (
            call(TEXTS, show_progress_bar=False) for call in (reference.encode_query, reference.encode_document)
        )
    embedder = Embedder(bundle, adapter="test", load_options=unverified)
    assert np.abs(queries - documents).max() > 0.01  # the prompts tell
    np.testing.assert_allclose([embedder.query(text) for text in TEXTS], queries, atol=1e-5)
    np.testing.assert_allclose(embedder.documents(TEXTS), documents, atol=1e-5)


def test_prompts_by_name(prompted: Callable[[str], tuple[Path, Path]], unverified: dict[str, Any]) -> None:
    _, bundle = prompted("both")
    with load(bundle, **unverified) as model:
        embedder = Embedder(model, adapter="test", query_prompt_name="other", document_prompt_name="query")
        np.testing.assert_array_equal(embedder.query(TEXTS[0]), model.embed(TEXTS[:1], prompt_name="other")[0])
        np.testing.assert_array_equal(
            embedder.documents(TEXTS[:1]), model.embed(TEXTS[:1], prompt_name="query", priority="batch")
        )
        with pytest.raises(UsageError, match="no prompt named 'none'; it has query, document, other"):
            Embedder(model, adapter="test", document_prompt_name="none")


def test_coroutines_answer_as_threads_do(
    prompted: Callable[[str], tuple[Path, Path]], unverified: dict[str, Any]
) -> None:
    embedder = Embedder(prompted("both")[1], adapter="test", load_options=unverified)

    async def ask() -> tuple[list[float], list[list[float]]]:
        query, documents = await asyncio.gather(embedder.aquery(TEXTS[0]), embedder.adocuments(TEXTS))
        return query, documents

    query, documents = asyncio.run(ask())
    np.testing.assert_allclose(query, embedder.query(TEXTS[0]), atol=1e-6)
    np.testing.assert_allclose(documents, embedder.documents(TEXTS), atol=1e-6)
    assert embedder.documents([]) == []
    with pytest.raises(TextError, match="text 1: the text is empty"):
        embedder.documents(["a", " "])
