"""LlamaIndex: `NopadEmbedding` (`BaseEmbedding`) and `NopadRerank` (a node postprocessor), of llama-index-core."""

from __future__ import annotations

from typing import Any

from nopad.adapters.embedding import Embedder
from nopad.adapters.opening import Opened, needs
from nopad.runtime.batching import WINDOW
from nopad.runtime.errors import UsageError
from nopad.runtime.types import Ranked

with needs("llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, field_serializer
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle


class NopadEmbedding(BaseEmbedding):
    """An embedding bundle as LlamaIndex's `BaseEmbedding`. Texts of documents wait behind queries of the same model."""

    bundle: Any = Field(description="A bundle's folder, or an opened model.")
    query_prompt_name: str | None = Field(default=None, description="None chooses as sentence-transformers does.")
    document_prompt_name: str | None = Field(default=None, description="None chooses as sentence-transformers does.")
    load_options: dict[str, Any] | None = Field(default=None, description="Keyword arguments of nopad.runtime.load.")
    embed_batch_size: int = Field(default=WINDOW, gt=0, le=2048, description="Texts that nopad packs together.")
    _embedder: Embedder = PrivateAttr()

    def __init__(self, bundle: Any = None, **fields: Any) -> None:
        """Opens the bundle. Raises as `load`, and `UsageError` for a bundle of another task or a prompt it lacks."""
        super().__init__(bundle=bundle, **fields)
        self._embedder = Embedder(
            bundle,
            adapter="NopadEmbedding",
            query_prompt_name=self.query_prompt_name,
            document_prompt_name=self.document_prompt_name,
            load_options=self.load_options,
        )
        if "model_name" not in self.model_fields_set:
            self.model_name = self._embedder.opened.model.bundle.path.name

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex stores it."""
        return "NopadEmbedding"

    @field_serializer("bundle")
    def _path(self, bundle: Any) -> str | None:
        return self._embedder.opened.path

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self._embedder.aquery(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.documents([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._embedder.adocuments([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.documents(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._embedder.adocuments(texts)


class NopadRerank(BaseNodePostprocessor):
    """A reranking bundle as a node postprocessor: the nodes that answer the query best, with the model's scores."""

    bundle: Any = Field(description="A bundle's folder, or an opened model.")
    top_n: int | None = Field(default=None, gt=0, description="How many nodes are kept; None: all.")
    load_options: dict[str, Any] | None = Field(default=None, description="Keyword arguments of nopad.runtime.load.")
    _opened: Opened = PrivateAttr()

    def __init__(self, bundle: Any = None, **fields: Any) -> None:
        """Opens the bundle. Raises as `load`, and `UsageError` for a bundle of another task."""
        super().__init__(bundle=bundle, **fields)
        self._opened = Opened(bundle, "rerank", adapter="NopadRerank", load_options=self.load_options)
        _ = self._opened.model

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex stores it."""
        return "NopadRerank"

    @field_serializer("bundle")
    def _path(self, bundle: Any) -> str | None:
        return self._opened.path

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, passages = _asked(nodes, query_bundle)
        return self._best(nodes, self._opened.model.rerank(query, passages))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, passages = _asked(nodes, query_bundle)
        return self._best(nodes, await self._opened.model.arerank(query, passages))

    def _best(self, nodes: list[NodeWithScore], ranked: list[Ranked]) -> list[NodeWithScore]:
        return [NodeWithScore(node=nodes[each.index].node, score=each.score) for each in ranked[: self.top_n]]


def _asked(nodes: list[NodeWithScore], query_bundle: QueryBundle | None) -> tuple[str, list[str]]:
    if query_bundle is None:
        raise UsageError("NopadRerank needs the query: postprocess_nodes(nodes, query_str=...)")
    return query_bundle.query_str, [each.node.get_content(metadata_mode=MetadataMode.EMBED) for each in nodes]
