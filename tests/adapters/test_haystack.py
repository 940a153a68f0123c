"""Haystack's components over bundles, alone and in pipelines."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("haystack", reason="pip install 'nopad[haystack]'")
from haystack import Document, Pipeline
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from nopad.adapters.haystack import NopadDocumentClassifier, NopadDocumentEmbedder, NopadRanker, NopadTextEmbedder
from nopad.runtime import Model, load
from nopad.runtime.errors import UsageError

TEXTS = ["a dull film", "the dog barks", "splendid"]
DOCUMENTS = [Document(content=text, meta={"row": i}) for i, text in enumerate(TEXTS)]


def test_no_telemetry_is_sent_by_these_tests() -> None:
    assert sys.modules["haystack.telemetry._telemetry"].telemetry is None


def test_embedders_have_the_prompt_of_what_they_embed(embedding_model: Model) -> None:
    text, documents = NopadTextEmbedder(embedding_model), NopadDocumentEmbedder(embedding_model)
    query = embedding_model.embed(TEXTS[:1], prompt_name="query")[0]
    rows = embedding_model.embed(TEXTS, prompt_name="document")
    for found in (text.run(TEXTS[0]), asyncio.run(text.run_async(TEXTS[0]))):
        np.testing.assert_allclose(found["embedding"], query, atol=1e-6)
    for found in (documents.run(DOCUMENTS), asyncio.run(documents.run_async(DOCUMENTS))):
        np.testing.assert_allclose([each.embedding for each in found["documents"]], rows, atol=1e-6)
        assert [each.id for each in found["documents"]] == [each.id for each in DOCUMENTS]
    assert all(each.embedding is None for each in DOCUMENTS)  # copies
    assert documents.run([]) == {"documents": []}
    with pytest.raises(UsageError, match="NopadTextEmbedder embeds one text, not list"):
        text.run(TEXTS)
    with pytest.raises(UsageError, match="must be haystack's Documents, not str"):
        documents.run(TEXTS)


def test_meta_fields_come_before_the_content(embedding_model: Model) -> None:
    embedder = NopadDocumentEmbedder(
        embedding_model, meta_fields_to_embed=["title", "row"], embedding_separator=" | ", prompt_name="other"
    )
    (found,) = embedder.run([Document(content="a dull film", meta={"row": 7, "title": None})])["documents"]
    expected = embedding_model.embed(["7 | a dull film"], prompt_name="other")[0]
    np.testing.assert_allclose(found.embedding, expected, atol=1e-6)


def test_a_pipeline_finds_by_embeddings(embedding_model: Model) -> None:
    store = InMemoryDocumentStore()
    store.write_documents(NopadDocumentEmbedder(embedding_model).run(DOCUMENTS)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("query", NopadTextEmbedder(embedding_model, prompt_name="document"))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("query.embedding", "retriever.query_embedding")
    found = pipeline.run({"query": {"text": "the dog barks"}})["retriever"]["documents"]
    assert [each.content for each in found] == ["the dog barks"]
    again = asyncio.run(pipeline.run_async({"query": {"text": "splendid"}}))["retriever"]["documents"]
    assert [each.content for each in again] == ["splendid"]


def test_labels_go_into_the_meta(opened: Callable[[str], Model]) -> None:
    with load(threads=1) as model:
        classifier, answers = NopadDocumentClassifier(model), model.predict(TEXTS)
        for found in (classifier.run(DOCUMENTS), asyncio.run(classifier.run_async(DOCUMENTS))):
            assert [each.meta["classification"]["label"] for each in found["documents"]] == [a.label for a in answers]
            first = found["documents"][0].meta
            assert first["row"] == 0 and first["classification"]["details"] == pytest.approx(dict(answers[0].scores))
    assert "classification" not in DOCUMENTS[0].meta
    several = opened("modernbert-multi-cls")
    (found,) = NopadDocumentClassifier(several, classification_field="topics").run(DOCUMENTS[:1])["documents"]
    assert found.meta["topics"]["labels"] == list(several.predict(TEXTS[:1])[0].labels)


def test_documents_come_back_best_first(opened: Callable[[str], Model]) -> None:
    model = opened("modernbert-rerank")
    expected = model.rerank("which film?", TEXTS)
    ranker = NopadRanker(model, top_k=2)
    for found in (ranker.run("which film?", DOCUMENTS), asyncio.run(ranker.run_async("which film?", DOCUMENTS))):
        assert [each.meta["row"] for each in found["documents"]] == [each.index for each in expected[:2]]
        assert [each.score for each in found["documents"]] == pytest.approx([each.score for each in expected[:2]])
    assert len(ranker.run("which film?", DOCUMENTS, top_k=3)["documents"]) == 3
    assert ranker.run("which film?", []) == {"documents": []}
    with pytest.raises(UsageError, match="top_k must be at least 1, got 0"):
        ranker.run("which film?", DOCUMENTS, top_k=0)


def test_a_pipeline_is_stored_as_paths_and_opens_its_bundle_when_it_runs(
    prompted: Callable[[str], tuple[Path, Path]], unverified: dict[str, Any], opened: Callable[[str], Model]
) -> None:
    embedding, rerank = prompted("both")[1], opened("modernbert-rerank")
    pipeline = Pipeline()
    pipeline.add_component("query", NopadTextEmbedder(embedding, prompt_name="other", load_options=dict(unverified)))
    documents = NopadDocumentEmbedder(embedding, meta_fields_to_embed=["row"], load_options=dict(unverified))
    pipeline.add_component("documents", documents)
    pipeline.add_component("label", NopadDocumentClassifier(classification_field="mood"))
    pipeline.add_component("rank", NopadRanker(rerank, top_k=3))
    stored = pipeline.dumps()
    again = Pipeline.loads(stored, allowed_modules=["nopad.adapters.haystack"])
    assert again.dumps() == stored
    query = again.get_component("query")
    assert query._embedder.opened._models == {}
    query.warm_up()
    query.warm_up()
    assert len(query._embedder.opened._models) == 1
    assert query.run("a") == pipeline.get_component("query").run("a")


@pytest.mark.parametrize(
    ("component", "task"),
    [(NopadTextEmbedder, "embeddings"), (NopadDocumentEmbedder, "embeddings"), (NopadRanker, "rerank")],
)
def test_a_bundle_of_another_task_is_refused(component: Any, task: str) -> None:
    with pytest.raises(UsageError, match=f"{component.__name__} needs a bundle for {task}; "):
        component(None)


def test_a_classifier_refuses_an_embedding_bundle(embedding_model: Model) -> None:
    with pytest.raises(UsageError, match="NopadDocumentClassifier needs a bundle for text-classification"):
        NopadDocumentClassifier(embedding_model)
