"""LlamaIndex's own interfaces over bundles."""

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="pip install 'nopad[llama-index]'")
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, TextNode

from nopad.adapters.llamaindex import NopadEmbedding, NopadRerank
from nopad.runtime import Model
from nopad.runtime.errors import UsageError

TEXTS = ["a dull film", "the dog barks", "splendid"]


def test_embeddings_have_the_prompt_of_what_they_are(embedding_model: Model) -> None:
    embedding = NopadEmbedding(embedding_model, embed_batch_size=2)
    assert isinstance(embedding, BaseEmbedding) and embedding.model_name == embedding_model.bundle.path.name
    query = embedding_model.embed(TEXTS[:1], prompt_name="query")[0]
    documents = embedding_model.embed(TEXTS, prompt_name="document")

    async def ask() -> tuple[list[float], list[float], list[list[float]]]:
        return (
            await embedding.aget_query_embedding(TEXTS[0]),
            await embedding.aget_text_embedding(TEXTS[0]),
            await embedding.aget_text_embedding_batch(TEXTS),
        )

    answers = asyncio.run(ask())
    for found in (embedding.get_query_embedding(TEXTS[0]), answers[0]):
        np.testing.assert_allclose(found, query, atol=1e-6)
    for found in (embedding.get_text_embedding(TEXTS[0]), answers[1]):
        np.testing.assert_allclose(found, documents[0], atol=1e-6)
    for rows in (embedding.get_text_embedding_batch(TEXTS), answers[2]):
        np.testing.assert_allclose(rows, documents, atol=1e-6)


def test_nodes_are_embedded_with_their_metadata(embedding_model: Model) -> None:
    nodes = NopadEmbedding(embedding_model)([TextNode(text="a dull film", metadata={"year": 1999})])
    expected = embedding_model.embed(["year: 1999\n\na dull film"], prompt_name="document")[0]
    np.testing.assert_allclose(nodes[0].embedding, expected, atol=1e-6)


def test_it_is_stored_as_the_path_of_its_bundle(
    prompted: Callable[[str], tuple[Path, Path]], embedding_model: Model, unverified: dict[str, Any]
) -> None:
    bundle = prompted("both")[1]
    embedding = NopadEmbedding(bundle, query_prompt_name="other", load_options=unverified)
    stored = embedding.to_dict()
    assert stored["bundle"] == str(bundle) and stored["class_name"] == "NopadEmbedding"
    expected = embedding_model.embed(["a"], prompt_name="other")[0]
    for again in (NopadEmbedding.from_dict(stored), pickle.loads(pickle.dumps(embedding))):
        np.testing.assert_allclose(again.get_query_embedding("a"), expected, atol=1e-6)
    with pytest.raises(UsageError, match="NopadEmbedding needs a bundle for embeddings"):
        NopadEmbedding(None)


def test_nodes_come_back_best_first(opened: Callable[[str], Model]) -> None:
    model = opened("modernbert-rerank")
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.5) for i, text in enumerate(TEXTS)]
    expected = model.rerank("which film?", TEXTS)
    found = NopadRerank(model).postprocess_nodes(nodes, query_str="which film?")
    assert [(each.node.node_id, each.score) for each in found] == [(str(e.index), e.score) for e in expected]
    assert [node.score for node in nodes] == [0.5] * 3  # copies
    best = asyncio.run(NopadRerank(model, top_n=1).apostprocess_nodes(nodes, query_str="which film?"))
    assert best == found[:1]
    assert NopadRerank(model).to_dict()["bundle"] == str(model.bundle.path)
    with pytest.raises(UsageError, match="needs the query"):
        NopadRerank(model).postprocess_nodes(nodes)
    with pytest.raises(UsageError, match="NopadRerank needs a bundle for rerank"):
        NopadRerank(None)
