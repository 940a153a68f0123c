"""Attributions from gradients of the encoder in PyTorch, through Captum: integrated gradients, and gradient x input.

The input is what the first layer reads of each token, after the norm that some encoders have there: before such a norm
the length of an embedding changes nothing, so gradient x input would be 0 and a path through 0 would have no slope. The
points of a path are equally long texts, which are packed into one stream without padding. Imports torch and captum, so
nothing imports it before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nopad.model.head import Head
from nopad.model.packing import pack
from nopad.runtime.errors import UsageError
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import FloatArray, Merge

FIRST_STEPS = 32  # of a path; doubled until the scores add up, within the budget
COMPLETE = 0.01  # largest part of the difference to the baseline that the scores may lack
MOST_TOKENS = 4096  # of a stream whose activations are kept for the backward pass
_INPUTS = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids", "prompt_lengths")


class Found(NamedTuple):
    """What the gradients of a text say."""

    scores: npt.NDArray[np.float64]  # [tokens of the whole text]
    logits: FloatArray  # [num_labels]
    label: int
    base: float  # log-odds of the baseline
    gradients: int  # that were computed


def attribute(
    encoder: Any,
    tokens: Tokens,
    places: Sequence[int],
    *,
    head: Head,
    label: Callable[[FloatArray], int],
    baseline: int,
    multiple: int,
    merge: Merge | None,
    integrated: bool,
    budget: int,
) -> Found:
    """Scores of a text's tokens for the label that `label` chooses from its logits.

    `encoder`: as `Differentiable` returns it. `places`: the tokens that the id `baseline` takes the place of, in the
    text that scores are held against. `budget`: the most steps of a path.
    """
    import torch
    from captum.attr import InputXGradient, IntegratedGradients

    stream = _Stream(encoder, tokens, head, multiple, merge)
    ids = np.asarray(tokens.input_ids)
    without = ids.copy()
    without[list(places)] = baseline
    text, nothing = stream.embed(ids), stream.embed(without)
    with torch.no_grad():
        logits = stream.logits(torch.cat([text, nothing])).cpu().numpy()
    chosen = label(logits[0])
    value, base = head.log_odds(logits, chosen)

    def log_odds(x: Any) -> Any:
        return stream.log_odds(x, chosen)

    text.requires_grad_()  # Captum warns where it has to
    if not integrated:
        found = InputXGradient(log_odds).attribute(text)
        return Found(_by_token(found), logits[0], chosen, float(base), 1)
    at_once = max(1, MOST_TOKENS // len(ids))
    steps, done = min(FIRST_STEPS, budget), 0
    while True:
        found = IntegratedGradients(log_odds).attribute(text, nothing, n_steps=steps, internal_batch_size=at_once)
        scores, done = _by_token(found), done + steps
        if abs(value - base - scores.sum()) <= COMPLETE * abs(value - base) or done + 2 * steps > budget:
            return Found(scores, logits[0], chosen, float(base), done)
        steps *= 2


def _by_token(found: Any) -> npt.NDArray[np.float64]:
    scores: npt.NDArray[np.float64] = found.detach()[0].double().sum(-1).cpu().numpy()
    return scores


class _Stream:
    """The encoder as a function of what its first layer reads: [n, tokens, hidden_size] -> [n, ...]."""

    def __init__(self, encoder: Any, tokens: Tokens, head: Head, multiple: int, merge: Merge | None) -> None:
        if tokens.windows and merge not in (None, "mean"):
            raise UsageError(f"gradients of windows are of merge='mean', not {merge!r}")
        self._encoder, self._tokens, self._head, self._multiple = encoder, tokens, head, multiple
        before, after = tokens.body
        whole = np.arange(len(tokens.input_ids))
        self._parts = [
            np.concatenate((whole[:before], whole[start:stop], whole[after:])) for _, start, stop in tokens.windows
        ] or [whole]
        self._device = next(encoder.parameters()).device
        backbone = encoder.backbone()
        self._given: Any = None  # what replaces the embeddings of the next forward
        self._seen: Any = None  # what they were
        layer = backbone.embeddings if hasattr(backbone, "embeddings") else backbone.embed_tokens
        layer.register_forward_hook(self._replace)

    def _replace(self, module: Any, arguments: Any, output: Any) -> Any:
        self._seen = output
        return output if self._given is None else self._given

    def embed(self, ids: npt.NDArray[np.int64]) -> Any:
        """What the first layer reads of the whole text with these ids, [1, tokens, hidden_size]."""
        import torch

        self._given = None
        with torch.no_grad():
            self._forward([ids[part] for part in self._parts], 1)
        out = self._seen.new_zeros(1, len(ids), self._seen.shape[-1])
        start = 0
        for part in self._parts:
            out[0, part] = self._seen[start : start + len(part)]
            start += len(part)
        return out

    def logits(self, x: Any) -> Any:
        """[n, num_labels]; of a text in windows, their mean."""
        import torch

        ids = np.asarray(self._tokens.input_ids)
        rows = [ids[part] for part in self._parts] * len(x)
        own = torch.cat([copy[part] for copy in x for part in self._parts])
        filler = -len(own) % self._multiple
        self._given = torch.cat([own, own.new_zeros(filler, own.shape[-1])])
        return self._forward(rows, len(x)).unflatten(0, (len(x), -1)).mean(1)

    def log_odds(self, x: Any, label: int) -> Any:
        """`Head.log_odds` of `logits`, [n]."""
        scaled = self.logits(x) / self._head.temperature
        if not self._head.one_label or len(self._head.labels) < 2:
            return scaled[:, label]
        others = [other for other in range(scaled.shape[1]) if other != label]
        return scaled[:, label] - scaled[:, others].logsumexp(-1)

    def _forward(self, rows: Sequence[npt.NDArray[np.int64]], copies: int) -> Any:
        import torch

        types = np.asarray(self._tokens.token_type_ids)
        batch = pack(
            [row.tolist() for row in rows],
            [types[part].tolist() for part in self._parts] * copies,
            multiple=self._multiple,
            prompt_lengths=[self._tokens.prompt_length] * len(rows),
        )
        return self._encoder(**{name: torch.from_numpy(getattr(batch, name)).to(self._device) for name in _INPUTS})
