"""Haystack: embedders of texts and of documents, a classifier and a ranker of documents, as components of haystack-ai.

A pipeline stores a component as the path of its bundle; `load_options` are keyword arguments of `nopad.runtime.load`.
Documents are answered as copies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nopad.adapters.embedding import Embedder
from nopad.adapters.opening import Opened, Source, needs
from nopad.runtime.errors import UsageError
from nopad.runtime.types import Prediction, Ranked

with needs("haystack"):
    from haystack import Document, component


@component
class NopadTextEmbedder:
    """Embeds a query, with the bundle's prompt for queries."""

    def __init__(
        self, bundle: Source, *, prompt_name: str | None = None, load_options: dict[str, Any] | None = None
    ) -> None:
        """`prompt_name`: None chooses as sentence-transformers does. Raises `UsageError` for another task's bundle."""
        self._embedder = Embedder(
            bundle, adapter="NopadTextEmbedder", query_prompt_name=prompt_name, load_options=load_options
        )
        self.bundle, self.prompt_name, self.load_options = self._embedder.opened.path, prompt_name, load_options

    def warm_up(self) -> None:
        """Open the bundle. Raises as `nopad.runtime.load`."""
        _ = self._embedder.opened.model

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """The `embedding` of a text."""
        return {"embedding": self._embedder.query(_text(text, "NopadTextEmbedder", "NopadDocumentEmbedder"))}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run` for coroutines."""
        return {"embedding": await self._embedder.aquery(_text(text, "NopadTextEmbedder", "NopadDocumentEmbedder"))}


@component
class NopadDocumentEmbedder:
    """Embeds documents, with the bundle's prompt for documents. They wait behind queries of the same model."""

    def __init__(
        self,
        bundle: Source,
        *,
        prompt_name: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        load_options: dict[str, Any] | None = None,
    ) -> None:
        """`meta_fields_to_embed`: of a document's meta, which come before its content, each with the separator.

        `prompt_name`: None chooses as sentence-transformers does. Raises `UsageError` for another task's bundle.
        """
        self._embedder = Embedder(
            bundle, adapter="NopadDocumentEmbedder", document_prompt_name=prompt_name, load_options=load_options
        )
        self.bundle, self.prompt_name, self.load_options = self._embedder.opened.path, prompt_name, load_options
        self.meta_fields_to_embed, self.embedding_separator = meta_fields_to_embed or [], embedding_separator

    def warm_up(self) -> None:
        """Open the bundle. Raises as `nopad.runtime.load`."""
        _ = self._embedder.opened.model

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """The `documents` with their embeddings."""
        vectors = self._embedder.documents(_contents(documents, self.meta_fields_to_embed, self.embedding_separator))
        return {"documents": [replace(each, embedding=row) for each, row in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run` for coroutines, however many documents there are."""
        return await asyncio.to_thread(self.run, documents)


@component
class NopadDocumentClassifier:
    """Classifies documents: the answer goes into their meta, under `classification_field`.

    It is {"label": ..., "score": ..., "details": {label: score}}, best first; of a bundle for several labels, "labels"
    are those that the text has.
    """

    def __init__(
        self,
        bundle: Source = None,
        *,
        classification_field: str = "classification",
        load_options: dict[str, Any] | None = None,
    ) -> None:
        """Raises `UsageError` for another task's bundle."""
        self._opened = Opened(
            bundle, "text-classification", adapter="NopadDocumentClassifier", load_options=load_options
        )
        self.bundle, self.load_options = self._opened.path, load_options
        self.classification_field = classification_field

    def warm_up(self) -> None:
        """Open the bundle. Raises as `nopad.runtime.load`."""
        _ = self._opened.model

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """The `documents` with their labels."""
        answers = self._opened.model.predict(_contents(documents))
        return {"documents": [self._labelled(*pair) for pair in zip(documents, answers, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run` for coroutines, however many documents there are."""
        return await asyncio.to_thread(self.run, documents)

    def _labelled(self, document: Document, answer: Prediction) -> Document:
        found: dict[str, Any] = {"label": answer.label, "score": answer.score, "details": dict(answer.scores)}
        if self._opened.manifest.head.multi_label:
            found["labels"] = list(answer.labels)
        return replace(document, meta={**document.meta, self.classification_field: found})


@component
class NopadRanker:
    """Orders documents by their relevance to a query, best first, with the model's scores."""

    def __init__(
        self,
        bundle: Source,
        *,
        top_k: int = 10,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        load_options: dict[str, Any] | None = None,
    ) -> None:
        """`top_k`: the most documents that are kept. `meta_fields_to_embed`: as of `NopadDocumentEmbedder`.

        Raises `UsageError` for another task's bundle, and a `top_k` below 1.
        """
        self._opened = Opened(bundle, "rerank", adapter="NopadRanker", load_options=load_options)
        self.bundle, self.load_options, self.top_k = self._opened.path, load_options, _positive(top_k)
        self.meta_fields_to_embed, self.embedding_separator = meta_fields_to_embed or [], embedding_separator

    def warm_up(self) -> None:
        """Open the bundle. Raises as `nopad.runtime.load`."""
        _ = self._opened.model

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """The best `documents`."""
        passages = _contents(documents, self.meta_fields_to_embed, self.embedding_separator)
        return self._best(documents, self._opened.model.rerank(query, passages), top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """`run` for coroutines."""
        passages = _contents(documents, self.meta_fields_to_embed, self.embedding_separator)
        return self._best(documents, await self._opened.model.arerank(query, passages), top_k)

    def _best(self, documents: list[Document], ranked: list[Ranked], top_k: int | None) -> dict[str, Any]:
        kept = ranked[: self.top_k if top_k is None else _positive(top_k)]
        return {"documents": [replace(documents[each.index], score=each.score) for each in kept]}


def _contents(documents: Sequence[Document], meta_fields: Sequence[str] = (), separator: str = "") -> list[str]:
    """The text of each document, after those of its meta fields that it has."""
    texts = []
    for document in documents:
        if not isinstance(document, Document):
            raise UsageError(f"documents must be haystack's Documents, not {type(document).__name__}")
        values = [str(document.meta[name]) for name in meta_fields if document.meta.get(name) is not None]
        texts.append(separator.join([*values, document.content or ""]))
    return texts


def _text(text: str, adapter: str, other: str) -> str:
    if not isinstance(text, str):
        raise UsageError(f"{adapter} embeds one text, not {type(text).__name__}; {other} is for documents")
    return text


def _positive(top_k: int) -> int:
    if top_k < 1:
        raise UsageError(f"top_k must be at least 1, got {top_k}")
    return top_k
