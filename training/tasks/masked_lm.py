"""Masked-language modelling: some tokens of a text are hidden, and the model says which they were.

The recipe is ModernBERT's (B. Warner et al., "Smarter, Better, Faster, Longer", arXiv 2412.13663): 30 % of the tokens;
of these BERT's 80 % become the mask, 10 % any token, 10 % stay (J. Devlin et al., arXiv 1810.04805).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.errors import CheckpointError
from nopad.model.head import Task as HeadTask
from nopad.training.tasks.base import DRAW, ROW, TARGETS, TEACHER, Array, FloatArray
from nopad.training.tasks.token_targets import (
    IGNORED,
    TokenTask,
    known_targets,
    need_offsets,
    pack_token_targets,
)

MASK_PROBABILITY = 0.3
_MASKED, _REPLACED = 0.8, 0.1  # of the hidden tokens; the others stay as they are


@dataclass(frozen=True, kw_only=True)
class MaskedLM(TokenTask):
    """Targets are the ids of hidden tokens (`pack_token_targets`); logits [hidden tokens, vocabulary].

    Training hides other tokens in each epoch, by its `DRAW`: a run that goes on, where random numbers have been drawn
    for other batches, hides those that it would have. Rows to evaluate have a number, and always the same tokens are
    hidden in each.
    """

    head: ClassVar[HeadTask] = "fill-mask"
    metric_names: ClassVar[Sequence[str]] = ("perplexity", "accuracy")
    best_metric: ClassVar[str] = "perplexity"

    mask_probability: float
    whole_word: bool  # hide all pieces of a word together
    mask_id: int = -1  # of the tokenizer, as is
    vocabulary: int = 0  # the number of its tokens

    def with_tokenizer(self, tokenizer: Any) -> MaskedLM:
        """See `Task.with_tokenizer`."""
        need_offsets(tokenizer)
        if tokenizer.mask_token_id is None:
            raise CheckpointError(
                "the tokenizer has no mask token, so nothing can be hidden; name one with --tokenizer"
            )
        return dataclasses.replace(self, mask_id=tokenizer.mask_token_id, vocabulary=len(tokenizer))

    def encode(self, rows: Mapping[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """Columns `text` (and `number`, of rows to evaluate) -> the tokens of each part of `max_length` tokens.

        `unit` says which tokens are hidden together; it is -1 for special tokens, which never are. `part` is the part's
        number in its text.
        """
        columns = tokenizer(
            rows["text"],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        text_of = columns.pop("overflow_to_sample_mapping")
        special = columns.pop("special_tokens_mask")
        parts = range(len(text_of))
        first: dict[int, int] = {}  # part of each text
        for part in parts:
            first.setdefault(text_of[part], part)
        units = [columns.word_ids(part) if self.whole_word else range(len(special[part])) for part in parts]
        encoded = {
            ROW: [rows[ROW][text] for text in text_of],
            "unit": [
                [-1 if never or unit is None else unit for unit, never in zip(units[part], special[part], strict=True)]
                for part in parts
            ],
        }
        encoded["part"] = [part - first[text_of[part]] for part in parts]
        if "number" in rows:  # the text's number, and that of the part in its text
            encoded["number"] = [[rows["number"][text_of[part]], encoded["part"][part]] for part in parts]
        return {**columns, **encoded}

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        if "number" in rows[0]:  # an evaluation takes none of training's random numbers
            hidden = [self._hide(row, np.random.default_rng(row["number"])) for row in rows]
        elif DRAW in rows[0]:
            hidden = [self._hide(row, np.random.default_rng((*row[DRAW], row[ROW], row["part"]))) for row in rows]
        else:
            drawn = np.random.default_rng(int(torch.randint(2**62, ())))
            hidden = [self._hide(row, drawn) for row in rows]
        return pack_token_targets(hidden, multiple=multiple)

    def _hide(self, row: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
        """The row with some tokens hidden, and their ids as its `target`."""
        ids, units = np.array(row["input_ids"]), np.array(row["unit"])
        chosen = random.random(max(units.max(), 0) + 1) < self.mask_probability
        hidden = (units >= 0) & chosen[units]
        fate = random.random(len(ids))
        seen = np.where(hidden & (fate < _MASKED), self.mask_id, ids)
        replaced = hidden & (fate >= _MASKED) & (fate < _MASKED + _REPLACED)
        seen = np.where(replaced, random.integers(self.vocabulary, size=len(ids)), seen)
        return {**row, "input_ids": seen, "target": np.where(hidden, ids, IGNORED).tolist()}

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of what hidden tokens may be (V. Sanh et al., arXiv:1910.01108), softened.

        The mean over the hidden tokens; entries of the vocabulary that the tokenizer does not have do not count.
        """
        own, theirs = (x[:, : self.vocabulary].float() / temperature for x in (logits, batch[TEACHER]))
        apart = F.kl_div(own.log_softmax(-1), theirs.log_softmax(-1), reduction="sum", log_target=True)
        return apart * temperature**2 / max(len(own), 1)

    def judge(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of each row: the sum of its losses and the number of right answers, [rows, 2]; its hidden tokens, [rows]."""
        hidden = batch[TARGETS] != IGNORED
        targets = known_targets(batch)
        losses = F.cross_entropy(logits, targets, reduction="none")
        each = torch.stack([losses, (logits.argmax(-1) == targets).to(losses.dtype)], dim=1)
        sums = each.new_zeros(len(hidden), 2).index_add(0, hidden.nonzero()[:, 0], each)
        return sums, hidden.sum(1)

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Perplexity, and the share of hidden tokens that were found; neither where no token was hidden."""
        if not targets.any():
            return {}
        loss, right = predictions.sum(axis=0, dtype=np.float64) / int(targets.sum())
        return {"perplexity": float(np.exp(loss)), "accuracy": float(right)}
