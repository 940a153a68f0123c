"""LangChain: `NopadEmbeddings` (`Embeddings`) and `NopadReranker` (`BaseDocumentCompressor`), of langchain-core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nopad.adapters.embedding import Embedder
from nopad.adapters.opening import Opened, Source, needs
from nopad.runtime.types import Ranked

with needs("langchain"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings


class NopadEmbeddings(Embeddings):
    """An embedding bundle as LangChain's `Embeddings`. Documents wait behind queries of the same model."""

    def __init__(
        self,
        bundle: Source,
        *,
        query_prompt_name: str | None = None,
        document_prompt_name: str | None = None,
        load_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens `bundle`, a folder or an opened model.

        `query_prompt_name`, `document_prompt_name`: None chooses as sentence-transformers does
        (`nopad.adapters.embedding`). `load_options`: keyword arguments of `nopad.runtime.load`.
        Raises as `load`, and `UsageError` for a bundle of another task or a prompt that it lacks.
        """
        self._embedder = Embedder(
            bundle,
            adapter="NopadEmbeddings",
            query_prompt_name=query_prompt_name,
            document_prompt_name=document_prompt_name,
            load_options=load_options,
        )
        _ = self._embedder.opened.model  # opened now, not in the first request

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query, with its prompt."""
        return self._embedder.query(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of documents, with their prompt."""
        return self._embedder.documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` for coroutines."""
        return await self._embedder.aquery(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` for coroutines."""
        return await self._embedder.adocuments(texts)


class NopadReranker(BaseDocumentCompressor):
    """A reranking bundle as LangChain's document compressor.

    Documents come back best first, as copies whose metadata have a `relevance_score`.
    """

    model_config = {"arbitrary_types_allowed": True, "extra": "forbid"}

    bundle: Any  # a folder, or an opened model
    top_n: int | None = None  # how many are kept; None: all
    load_options: dict[str, Any] | None = None  # keyword arguments of `nopad.runtime.load`
    _opened: Opened

    def model_post_init(self, context: Any) -> None:
        """Open the bundle. Raises as `load`, and `UsageError` for a bundle of another task."""
        self._opened = Opened(self.bundle, "rerank", adapter="NopadReranker", load_options=self.load_options)
        _ = self._opened.model

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The `top_n` documents that answer the query best."""
        return self._best(documents, self._opened.model.rerank(query, [each.page_content for each in documents]))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` for coroutines."""
        passages = [each.page_content for each in documents]
        return self._best(documents, await self._opened.model.arerank(query, passages))

    def _best(self, documents: Sequence[Document], ranked: list[Ranked]) -> list[Document]:
        return [
            documents[each.index].model_copy(
                update={"metadata": {**documents[each.index].metadata, "relevance_score": each.score}}
            )
            for each in ranked[: self.top_n]
        ]
