"""The packed encoder: a backbone over one stream of tokens, with the heads nopad serves.

Parameter names are those of the matching transformers class (`modeling_modernbert.py`, `modeling_bert.py`), so a
state dict moves between nopad and transformers without a mapping. Knows nothing of files, engines or export.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nopad.model.attention import AttentionFactory, PackedLayout, default_attention
from nopad.model.backbone import BertBackbone, Linear, ModernBertBackbone, activation, layer_norm
from nopad.model.config import EncoderConfig
from nopad.model.embedding import build_modules, embed, pool, reads_first_tokens
from nopad.model.errors import CheckpointError
from nopad.model.eurobert import EuroBertBackbone
from nopad.model.head import BARE
from nopad.model.packing import round_up


class PackedEncoder(nn.Module):
    """The interface of every head: packed stream in, fp32 logits out.

    `attention` replaces how attention is computed (see `nopad.model.attention`); None chooses by device and dtype.
    """

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__()
        self.encoder_config = config
        self.attention = attention

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        sequence_ids: Tensor,
        pad_index: Tensor,
        token_type_ids: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Logits of the stream (arguments: `nopad.model.packing`, int64).

        Returns fp32: [B, num_labels] for text-classification and rerank, [B, embedding_size] for embeddings,
        [T, num_labels] for token-classification, [T, vocab_size] for fill-mask, [T, hidden_size] for token-embeddings.
        Of these last three, `chosen` [R] names tokens of the stream: the head computes only theirs, in that order, and
        returns [R, ...].
        """
        layout = PackedLayout(
            position_ids=position_ids,
            sequence_ids=sequence_ids,
            pad_index=pad_index,
            half_window=self.encoder_config.half_window if any(self.encoder_config.local_layers) else -1,
            block=self.encoder_config.block,
            prompt_lengths=prompt_lengths,
        )
        asked = chosen
        if asked is not None:
            # oneDNN keeps a kernel for each number of rows, and what it keeps pins the heap between large tensors: few
            # numbers, and memory does not grow with each batch (docs/findings.md).
            chosen = F.pad(asked, (0, round_up(len(asked), 64) - len(asked)))
        # Graphs are traced with an attention of their own, and keep the whole stream to the end.
        elif self.attention is None and reads_first_tokens(self.encoder_config):
            chosen, layout = pad_index[:, 0], replace(layout, first_tokens=True)
        dropout = self.training and self.encoder_config.attention_dropout > 0
        if self.attention is not None:
            attend = self.attention(layout)
        else:
            attend = default_attention(layout, self._compute_dtype(), self.encoder_config.head_size, dropout)
        logits = self.logits(self.backbone().encode(input_ids, token_type_ids, layout, attend, chosen), layout)
        return logits if asked is None else logits[: len(asked)]

    def _compute_dtype(self) -> torch.dtype:
        device = next(self.parameters()).device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next(module.weight.dtype for module in self.modules() if isinstance(module, nn.Embedding))

    def backbone(self) -> ModernBertBackbone | BertBackbone | EuroBertBackbone:
        """The encoder below the head."""
        raise NotImplementedError

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """The head: hidden states [T, hidden_size] -> fp32 logits."""
        raise NotImplementedError


class _PredictionHead(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = activation(config.classifier_activation)
        self.norm = layer_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class _ModernBertHead(PackedEncoder):
    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.model = ModernBertBackbone(config)
        self.head = _PredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)

    def backbone(self) -> ModernBertBackbone:
        return self.model


class ModernBertClassifier(_ModernBertHead):
    """ModernBertForSequenceClassification and ModernBertForTokenClassification."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Pool (unless the task is per token), head, classifier."""
        per_token = self.encoder_config.task == "token-classification"
        rows = hidden.float() if per_token else pool(hidden, layout, self.encoder_config.pooling)
        return self.classifier(self.drop(self.head(rows)))


class ModernBertMaskedLM(_ModernBertHead):
    """ModernBertForMaskedLM."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.decoder = Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        if config.tie_word_embeddings:
            self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Scores of every vocabulary entry at every token."""
        return self.decoder(self.head(hidden.float()))


class ModernBertEmbedder(PackedEncoder, ModernBertBackbone):
    """ModernBertModel, pooled to one vector per sequence, or for token-embeddings as it is."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        ModernBertBackbone.__init__(self, config)
        self.attention = attention
        self.chain = build_modules(config)

    def backbone(self) -> ModernBertBackbone:
        """Itself: the bare model has no head, so its weights carry no prefix."""
        return self

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """The embedding of each sequence, or of each token."""
        return embed(hidden, layout, self.encoder_config, self.chain)


class BertClassifier(PackedEncoder):
    """BertForSequenceClassification and BertForTokenClassification."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.bert = BertBackbone(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def backbone(self) -> BertBackbone:
        """The encoder below the head."""
        return self.bert

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Pooler (unless the task is per token), classifier."""
        if self.encoder_config.task == "token-classification":
            rows = hidden.float()
        else:
            rows = self.bert.pooler(pool(hidden, layout, "cls"))
        return self.classifier(self.dropout(rows))


class _BertTransform(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.act = activation(config.activation)
        self.LayerNorm = layer_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.act(self.dense(x)))


class _BertPredictions(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = _BertTransform(config)
        self.decoder = Linear(config.hidden_size, config.vocab_size)
        self.bias = self.decoder.bias


class _BertMLMHead(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.predictions = _BertPredictions(config)


class BertMaskedLM(PackedEncoder):
    """BertForMaskedLM."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.bert = BertBackbone(config)
        self.cls = _BertMLMHead(config)
        if config.tie_word_embeddings:
            self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def backbone(self) -> BertBackbone:
        """The encoder below the head."""
        return self.bert

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Scores of every vocabulary entry at every token."""
        head = self.cls.predictions
        return head.decoder(head.transform(hidden.float()))


class BertEmbedder(PackedEncoder, BertBackbone):
    """BertModel, pooled to one vector per sequence, or for token-embeddings as it is."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        BertBackbone.__init__(self, config)
        self.attention = attention
        self.chain = build_modules(config)

    def backbone(self) -> BertBackbone:
        """Itself: the bare model has no head, so its weights carry no prefix."""
        return self

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """The embedding of each sequence, or of each token."""
        return embed(hidden, layout, self.encoder_config, self.chain)


class _EuroBertHead(PackedEncoder):
    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.model = EuroBertBackbone(config)

    def backbone(self) -> EuroBertBackbone:
        """The encoder below the head."""
        return self.model


class UltraBertClassifier(_EuroBertHead):
    """UltrabertForSequenceClassification, and the token classifiers of UltraBERT and EuroBERT: one linear layer."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Pool (unless the task is per token), classifier."""
        per_token = self.encoder_config.task == "token-classification"
        rows = hidden.float() if per_token else pool(hidden, layout, self.encoder_config.pooling)
        return self.classifier(self.drop(rows))


class EuroBertClassifier(_EuroBertHead):
    """EuroBertForSequenceClassification: it pools before its two layers, or (`late`) after them."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Pool, dense, classifier; or dense, classifier, pool."""
        late = self.encoder_config.pooling == "late"
        rows = hidden.float() if late else pool(hidden, layout, self.encoder_config.pooling)
        out = self.classifier(F.gelu(self.dense(rows)))
        return pool(out, layout, "mean") if late else out


class EuroBertMaskedLM(_EuroBertHead):
    """EuroBertForMaskedLM."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Scores of every vocabulary entry at every token."""
        return self.lm_head(hidden.float())


class _UltraBertPredictions(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.linear1 = Linear(config.hidden_size, config.prediction_head_size, bias=False)
        self.linear2 = Linear(config.prediction_head_size, config.hidden_size, bias=False)
        self.decoder = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        act = activation("gelu_pytorch_tanh")
        return self.decoder(act(self.linear2(act(self.linear1(x)))))


class UltraBertMaskedLM(_EuroBertHead):
    """UltrabertForMaskedLM."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.head = _UltraBertPredictions(config)
        if config.tie_word_embeddings:
            self.head.decoder.weight = self.model.embed_tokens.weight

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Scores of every vocabulary entry at every token."""
        return self.head(hidden.float())


class EuroBertEmbedder(PackedEncoder, EuroBertBackbone):
    """EuroBertModel or UltrabertModel, pooled to one vector per sequence, or for token-embeddings as it is."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        EuroBertBackbone.__init__(self, config)
        self.attention = attention
        self.chain = build_modules(config)

    def backbone(self) -> EuroBertBackbone:
        """Itself: the bare model has no head, so its weights carry no prefix."""
        return self

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """The embedding of each sequence, or of each token."""
        return embed(hidden, layout, self.encoder_config, self.chain)


_HEADS: dict[str, dict[str, type[PackedEncoder]]] = {
    "modernbert": {"fill-mask": ModernBertMaskedLM, **dict.fromkeys(BARE, ModernBertEmbedder)},
    "bert": {"fill-mask": BertMaskedLM, **dict.fromkeys(BARE, BertEmbedder)},
    "eurobert": {
        "fill-mask": EuroBertMaskedLM,
        **dict.fromkeys(BARE, EuroBertEmbedder),
        "token-classification": UltraBertClassifier,
    },
    "ultrabert": {"fill-mask": UltraBertMaskedLM, **dict.fromkeys(BARE, EuroBertEmbedder)},
}
_CLASSIFIERS: dict[str, type[PackedEncoder]] = {
    "modernbert": ModernBertClassifier,
    "bert": BertClassifier,
    "eurobert": EuroBertClassifier,
    "ultrabert": UltraBertClassifier,
}


def build_encoder(config: EncoderConfig, attention: AttentionFactory | None = None) -> PackedEncoder:
    """The encoder for `config`, with PyTorch's random initial weights.

    Raises `CheckpointError` if it does not fit into memory.
    """
    try:
        # SetFit: the classifier is the last of an embedder's modules.
        task = "embeddings" if config.modules else config.task
        return _HEADS[config.architecture].get(task, _CLASSIFIERS[config.architecture])(config, attention)
    except RuntimeError as error:  # PyTorch's for a failed allocation, or for sizes that overflow
        raise CheckpointError(
            f"config.json: not enough memory for an encoder of these sizes ({str(error).splitlines()[0]}); check "
            "hidden_size, intermediate_size and vocab_size"
        ) from None
