"""Token classification: each word has a label, and entities are what the labels of a text make together.

Words are found in the tokens by their characters, in the tokens of the plain text: those that serving makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.head import Task as HeadTask
from nopad.runtime.entities import Tag, entity_scores, read_tags, spans
from nopad.training.tasks.base import TARGETS, TEACHER, Array, FloatArray
from nopad.training.tasks.token_targets import (
    IGNORED,
    TokenTask,
    need_offsets,
    pack_token_targets,
)


class _Piece(NamedTuple):
    """A token that has a label: which, of which word, and whether it is the first and the last of that word's."""

    token: int
    word: int
    first: bool
    last: bool


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
        places = [words_of_tokens(at, words) for at, words in zip(offsets, rows["words"], strict=True)]
        pieces = [self._pieces(words) for words in places]
        targets = []
        for own, words, labels in zip(pieces, places, rows["target"], strict=True):
            targets.append([IGNORED] * len(words))
            for piece in own:
                targets[-1][piece.token] = self._of_piece(labels[piece.word], first=piece.first, last=piece.last)
        encoded = {**columns, "target": targets}
        if TEACHER in rows:
            taught = zip(rows[TEACHER], pieces, targets, strict=True)
            encoded[TEACHER] = [
                self._of_teacher(answers, [piece for piece in own if target[piece.token] != IGNORED])
                for answers, own, target in taught
            ]
        return encoded

    def _pieces(self, words: Sequence[int | None]) -> list[_Piece]:
        """The tokens of a text that have a label, in their order, from the word that each token belongs to."""
        tokens: dict[int, list[int]] = {}
        for token, word in enumerate(words):
            if word is not None:
                tokens.setdefault(word, []).append(token)
        labelled = {word: own if self.label_all_tokens else own[:1] for word, own in tokens.items()}
        return [
            _Piece(token=token, word=word, first=token == own[0], last=token == own[-1])
            for word, own in labelled.items()
            for token in own
        ]

    def _of_teacher(self, answers: Sequence[float], pieces: Sequence[_Piece]) -> FloatArray:
        """What a teacher that has said `answers` of the words [words * labels] says of their pieces [pieces * labels].

        Each label of a word goes, with its probability, to the label that the piece has for it.
        """
        size = len(self.labels)
        logits = np.asarray(answers, dtype=np.float32).reshape(-1, size)
        found = logits[[piece.word for piece in pieces]]
        for first, last in ((True, False), (False, False), (False, True)):
            labels = [self._of_piece(label, first=first, last=last) for label in range(size)]
            goes = [label if piece == IGNORED else piece for label, piece in enumerate(labels)]
            own = [(piece.first, piece.last) == (first, last) for piece in pieces]
            moved = np.full((sum(own), size), -np.inf, dtype=np.float32)
            np.logaddexp.at(moved.T, goes, found[own].T)
            found[own] = moved
        return found.ravel()

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

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """Kullback-Leibler divergence as of classes (Hinton, arXiv:1503.02531), the mean over the tokens with a target.

        It is 0 for tokens of a word that the teacher has not read: their answers are NaN.
        """
        teacher = batch[TEACHER]
        read = ~teacher.isnan().any(-1)
        own, theirs = (logits[read].float() / temperature).log_softmax(-1), (teacher[read] / temperature).softmax(-1)
        apart = F.kl_div(own, theirs, reduction="sum")  # of probabilities: those of some labels are 0
        return apart * temperature**2 / max(len(teacher), 1)

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
            map(self._spans, rows, known)  # of one text at a time: those of all would grow with the rows
            for rows in (predictions, targets)
        )
        return {
            **entity_scores(found, true),
            "accuracy": float((predictions == targets)[known].mean()) if known.any() else 0.0,
        }

    def _spans(self, labels: Array, known: Array) -> list[tuple[str, int, int]]:
        return spans([self._tags[int(label)] for label in labels[known]])


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


def answers_of_words(
    logits: FloatArray, offsets: Sequence[Sequence[int]], words: Sequence[Sequence[int]]
) -> FloatArray:
    """A tagger's logits of a text's tokens [tokens, labels] -> of its words [words, labels]: of each one's first token.

    NaN for a word that has no token, since the text was cut before it.
    """
    answers = np.full((len(words), logits.shape[1]), np.nan, dtype=np.float32)
    for token, word in reversed(list(enumerate(words_of_tokens(offsets, words)))):
        if word is not None:
            answers[word] = logits[token]
    return answers
