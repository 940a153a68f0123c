"""LangChain's own interfaces over bundles."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="pip install 'nopad[langchain]'")
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from nopad.adapters.langchain import NopadEmbeddings, NopadReranker
from nopad.runtime import Model
from nopad.runtime.errors import UsageError

TEXTS = ["a dull film", "the dog barks", "splendid"]
DOCUMENTS = [Document(page_content=text, metadata={"row": i}, id=str(i)) for i, text in enumerate(TEXTS)]


def test_embeddings_have_the_prompt_of_what_they_are(embedding_model: Model) -> None:
    embeddings = NopadEmbeddings(embedding_model)
    query = embedding_model.embed(TEXTS[:1], prompt_name="query")[0]
    documents = embedding_model.embed(TEXTS, prompt_name="document")
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), query, atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), documents, atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_query(TEXTS[0])), query, atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_documents(TEXTS)), documents, atol=1e-6)
    assert all(type(value) is float for value in embeddings.embed_query("a"))


def test_a_vector_store_finds_by_them(embedding_model: Model) -> None:
    store = InMemoryVectorStore(NopadEmbeddings(embedding_model, query_prompt_name="document"))
    store.add_documents(DOCUMENTS)
    ((found, score),) = store.similarity_search_with_score("the dog barks", k=1)
    assert found.id == "1" and score == pytest.approx(1.0, abs=1e-5)
    assert asyncio.run(store.asimilarity_search("splendid", k=1))[0].id == "2"


def test_a_bundle_is_opened_at_once_and_checked(
    prompted: Callable[[str], tuple[Path, Path]], unverified: dict[str, Any]
) -> None:
    embeddings = NopadEmbeddings(prompted("both")[1], load_options=unverified)
    assert len(embeddings.embed_query("a")) == 64
    with pytest.raises(UsageError, match="NopadEmbeddings needs a bundle for embeddings"):
        NopadEmbeddings(None)
    with pytest.raises(UsageError, match="NopadReranker needs a bundle for rerank"):
        NopadReranker(bundle=None)
    with pytest.raises(ValueError, match="top_k"):  # pydantic's own: a misspelled option is no silence
        NopadReranker(bundle=None, top_k=3)


def test_documents_come_back_best_first(opened: Callable[[str], Model]) -> None:
    model = opened("modernbert-rerank")
    expected = model.rerank("which film?", TEXTS)
    found = NopadReranker(bundle=model).compress_documents(DOCUMENTS, "which film?")
    assert [each.id for each in found] == [str(each.index) for each in expected]
    scores = [each.metadata["relevance_score"] for each in found]
    assert scores == [each.score for each in expected]
    assert [each.metadata["row"] for each in found] == [each.index for each in expected]
    assert all("relevance_score" not in each.metadata for each in DOCUMENTS)  # copies
    best = asyncio.run(NopadReranker(bundle=model, top_n=1).acompress_documents(DOCUMENTS, "which film?"))
    assert best == found[:1]
    assert NopadReranker(bundle=model).compress_documents([], "which film?") == []
