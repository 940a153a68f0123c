"""Queries and documents -> vectors as lists of floats, for the frameworks of retrieval. Knows none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from nopad.adapters.opening import Opened, Source
from nopad.runtime.prompts import DOCUMENT_PROMPTS, QUERY_PROMPTS, prompt_name_of, resolve_prompt


class Embedder:
    """An embedding bundle with its two prompts.

    A query's prompt is `query_prompt_name`, else the bundle's prompt "query", else its default prompt; a document's is
    `document_prompt_name`, else the bundle's "document", "passage" or "corpus", else its default prompt: as the
    `encode_query` and `encode_document` of sentence-transformers choose.
    """

    def __init__(
        self,
        source: Source,
        *,
        adapter: str,
        query_prompt_name: str | None = None,
        document_prompt_name: str | None = None,
        load_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises as `Opened`, and `UsageError` for the name of a prompt that the bundle lacks."""
        self.opened = Opened(source, "embeddings", adapter=adapter, load_options=load_options)
        manifest = self.opened.manifest
        for name in (query_prompt_name, document_prompt_name):
            resolve_prompt(manifest, name, None)
        self._query = query_prompt_name or prompt_name_of(manifest, QUERY_PROMPTS)
        self._document = document_prompt_name or prompt_name_of(manifest, DOCUMENT_PROMPTS)

    def query(self, text: str) -> list[float]:
        """The vector of a query. Raises `TextError` for a text that cannot be read."""
        return self.opened.model.embed([text], prompt_name=self._query)[0].tolist()

    async def aquery(self, text: str) -> list[float]:
        """`query` for coroutines; raises `OverloadedError`, too."""
        return (await self.opened.model.aembed([text], prompt_name=self._query))[0].tolist()

    def documents(self, texts: Sequence[str]) -> list[list[float]]:
        """The vectors of documents, however many; queries go first. Raises `TextError`, with the place of the text."""
        return self.opened.model.embed(texts, prompt_name=self._document, priority="batch").tolist()

    async def adocuments(self, texts: Sequence[str]) -> list[list[float]]:
        """`documents` for coroutines, in a thread that waits for room in the queue, however many they are."""
        return await asyncio.to_thread(self.documents, texts)
