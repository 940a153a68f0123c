"""Token classification: each word has a label, and entities are what the labels of a text make together.

Words are found in the tokens by their characters, in the tokens of the plain text: those that serving makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nopad.model.head import Task as HeadTask
from nopad.runtime.entities import Tag, entity_scores, read_tags, spans
from nopad.training.tasks.base import TARGETS, Array, FloatArray
from nopad.training.tasks.token_targets import (
    IGNORED,
    TokenTask,
    need_offsets,
    pack_token_targets,
)


@dataclass(frozen=True, kw_only=True)
class TokenLabels(TokenTask):
    """Targets are label indices of tokens (`pack_token_targets`); logits [tokens that have one, labels].

    The first piece of a word has the word's label. With `label_all_tokens` its other pieces have the label that goes
    on with it (`I-PER` after `B-PER`, `E-PER` at the end under BIOES), else none.
    """

    head: ClassVar[HeadTask] = "token-classification"
    metric_names: ClassVar[Sequence[str]] = ("f1", "precision", "recall", "accuracy")
    best_metric: ClassVar[str] = "f1"

    labels: tuple[str, ...]
    label_all_tokens: bool

    @property
    def _tags(self) -> tuple[Tag | None, ...]:
        return read_tags(self.labels)

    def with_tokenizer(self, tokenizer: Any) -> TokenLabels:
        """See `Task.with_tokenizer`."""
        need_offsets(tokenizer)
        return self

    def encode(self, rows: Mapping[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """Columns `text`, `words` (start and end of each, in characters) and `target` (label of each) -> tokens."""
        columns = tokenizer(
            rows["text"],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        offsets = columns.pop("offset_mapping")
        targets = [
            self._of_tokens(words_of_tokens(at, words), labels)
            for at, words, labels in zip(offsets, rows["words"], rows["target"], strict=True)
        ]
        return {**columns, "target": targets}

    def _of_tokens(self, words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
        """The target of each token, from the word that it belongs to and the labels of the words."""
        pieces: dict[int, list[int]] = {}
        for token, word in enumerate(words):
            if word is not None:
                pieces.setdefault(word, []).append(token)
        targets = [IGNORED] * len(words)
        for word, own in pieces.items():
            labelled = own if self.label_all_tokens else own[:1]
            for token in labelled:
                first, last = token == labelled[0], token == labelled[-1]
                targets[token] = self._of_piece(labels[word], first=first, last=last)
        return targets

    def _of_piece(self, label: int, *, first: bool, last: bool) -> int:
        """The label of a piece of a word; `IGNORED` where the model has no label for it."""
        tag = self._tags[label]
        if tag is None or not tag.place or (first and last):
            return label
        begins, ends = tag.place in ("B", "S"), tag.place in ("E", "S")
        place = "B" if first and begins else "E" if last and ends else "I"
        wanted = Tag(kind=tag.kind, place=place)
        return self._tags.index(wanted) if wanted in self._tags else IGNORED

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_token_targets(rows, multiple=multiple)

    def judge(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The best label and the true one of each token, int64 [rows, tokens]."""
        targets = batch[TARGETS]
        best = torch.full_like(targets, IGNORED)
        best[targets != IGNORED] = logits.argmax(-1)
        return best, targets

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Precision, recall and F1 of whole entities, over all texts together, and the accuracy of tokens.

        An entity is right if its kind, its first and its last token are. Labels make entities as in serving.
        """
        known = targets != IGNORED
        found, true = (
            [spans([self._tags[int(label)] for label in row[own]]) for row, own in zip(rows, known, strict=True)]
            for rows in (predictions, targets)
        )
        return {
            **entity_scores(found, true),
            "accuracy": float((predictions == targets)[known].mean()) if known.any() else 0.0,
        }


def words_of_tokens(offsets: Sequence[Sequence[int]], words: Sequence[Sequence[int]]) -> list[int | None]:
    """The word that each token belongs to: the first that ends after the token begins; None if there is none.

    Both are starts and ends in characters of the text. What is between words is blank and goes with the word after it:
    some tokenizers begin a token with it, others make it a token of its own, which serving reads like any other.
    """
    found: list[int | None] = []
    word = 0
    for start, end in offsets:
        if start >= end:  # [CLS] and the like
            found.append(None)
            continue
        while word < len(words) and words[word][1] <= start:
            word += 1
        found.append(word if word < len(words) else None)
    return found
