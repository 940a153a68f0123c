"""Token id sequences of any length whose right answers are known, for the gate's stress checks.

- Up to `REAL_LONGEST` tokens: pieces of real sentences. transformers answers texts of one length together, so without
  padding; only a few texts of a length are distinct, since its answers cost as much as the engine's.
- Longer: one token, repeated. Where positions are rotary, all tokens of such a text stay equal in every layer (the
  weights of attention add up to 1, whatever they are), so that its answer is that of a text of one token.
  transformers is asked whether that holds for this model; if not, the text has no known answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from nopad.export.parity.bounds import Bounds, Row, difference, scaled
from nopad.export.parity.samples import SAMPLES
from nopad.export.reference.transformers import Reference
from nopad.runtime.predictor import Model
from nopad.runtime.types import FloatArray

Ids = tuple[int, ...]
REAL_LONGEST = 512  # tokens; the reference is quadratic in it
DISTINCT = 2  # texts of one length; of one and two tokens, as many as the sentences have
ONE_CALL = 2048  # tokens of one call of transformers
# Logits of one run where every token has its own (fill-mask: 50,368 for each token).
OUTPUT_BYTES = 512 << 20
# Rounding of a repeated token does not average out: 4.3e-5 was measured on 4,096 tokens of ModernBERT-base, against
# 3e-7 on a real text (logits 0.3). A fault makes a larger difference.
REPEATED = 1e-3


class KnownTexts:
    """Texts, an engine's answers to them, and whether they are right."""

    def __init__(self, model: Model, reference: Reference, bounds: Bounds) -> None:
        self._model = model
        self._reference = reference
        self.bounds = bounds
        self._stream = reference.content_ids(" ".join(SAMPLES))
        self._frame = reference.frame
        self._known: dict[Ids, FloatArray | None] = {}
        self._repeats: bool | None = None  # not asked yet
        self.typical = [len(reference.content_ids(text)) + 2 for text in SAMPLES]  # lengths of real sentences
        self._per_token = self._single_answer(self._stream[0]).ndim == 2
        width = self._single_answer(self._stream[0]).shape[-1] if self._per_token else 0  # logits of a token
        self.most_tokens = OUTPUT_BYTES // (4 * width) if width else 1 << 62  # of one run

    def real(self, length: int, number: int = 0) -> Ids:
        """A piece of real sentences; another piece for each `number`."""
        stream = self._stream
        start = 17 * length + 101 * number if length > 2 else number
        size = length - 2 if length > 2 else length
        content = [stream[(start + i * (1 if length > 2 else 3)) % len(stream)] for i in range(size)]
        return (self._frame[0], *content, self._frame[1]) if length > 2 else tuple(content)

    def repeated(self, length: int, number: int = 0) -> Ids:
        """One token, again and again."""
        return (self._stream[(7 * number) % len(self._stream)],) * length

    def draw(self, lengths: Sequence[int]) -> list[Ids]:
        """Texts of these lengths with known answers, if possible; neighbours of one length differ."""
        drawn: Counter[int] = Counter()
        texts = []
        for length in lengths:
            number = drawn[length] % (len(self._stream) if length <= 2 else DISTINCT)
            texts.append((self.real if length <= REAL_LONGEST else self.repeated)(length, number))
            drawn[length] += 1
        return texts

    def run(self, texts: Sequence[Ids]) -> list[FloatArray]:
        """The engine's answers, all texts in one micro-batch."""
        return self._model.run_ids(texts)

    def right_answers(self, texts: Sequence[Ids]) -> list[FloatArray | None]:
        """The right answers; None for a text without a known answer."""
        missing: defaultdict[int, list[Ids]] = defaultdict(list)
        for ids in dict.fromkeys(texts):
            if ids in self._known:
                continue
            if len(ids) > REAL_LONGEST and len(set(ids)) == 1:
                self._known[ids] = self._repeated_answer(ids) if self._answers_repeat() else None
            else:
                missing[len(ids)].append(ids)
        for length, group in missing.items():
            step = max(1, ONE_CALL // length)
            for part in (group[i : i + step] for i in range(0, len(group), step)):
                self._known |= zip(part, self._reference.equal_length_logits(part), strict=True)
        return [self._known[ids] for ids in texts]

    def compare(self, check: str, case: str, texts: Sequence[Ids], answers: Sequence[FloatArray]) -> Row:
        """One row for all texts of a batch: the worst of them."""
        right = self.right_answers(texts)
        unknown = sum(answer is None for answer in right)
        compared = [
            (ids, difference(got, want), self._bound(ids, want))
            for ids, got, want in zip(texts, answers, right, strict=True)
            if want is not None
        ]
        notes = [f"{unknown} texts have no known answer; they are finite"] if unknown else []
        if not compared:
            return Row.at_most(check, case, 0.0, 0.0, "; ".join(notes))
        worst = max(range(len(compared)), key=lambda i: compared[i][1] / compared[i][2])
        ids, value, bound = compared[worst]
        wrong = sum(value > bound for _, value, bound in compared)
        if wrong:
            notes.append(
                f"{wrong} of {len(compared)} texts are wrong, the worst is number {worst + 1}, {len(ids)} tokens"
            )
        return Row.at_most(check, case, value, bound, "; ".join(notes))

    def _bound(self, ids: Ids, want: FloatArray) -> float:
        repeated = len(ids) > REAL_LONGEST and len(set(ids)) == 1
        return scaled(max(REPEATED, 10 * self.bounds.logits) if repeated else self.bounds.logits, want)

    def _single_answer(self, token: int) -> FloatArray:
        if (token,) not in self._known:
            self._known[(token,)] = self._reference.logits([token])
        answer = self._known[(token,)]
        assert answer is not None
        return answer

    def _repeated_answer(self, ids: Ids) -> FloatArray:
        answer = self._single_answer(ids[0])
        return np.broadcast_to(answer, (len(ids), answer.shape[-1])) if self._per_token else answer

    def _answers_repeat(self) -> bool:
        """Whether this model answers a repeated token as it does the token alone."""
        if self._repeats is None:
            shorter = (self.repeated(min(length, self._model.manifest.max_length)) for length in (65, 300))
            pairs = ((self._reference.logits(ids), self._repeated_answer(ids)) for ids in shorter)
            self._repeats = all(difference(got, want) <= scaled(REPEATED / 10, want) for got, want in pairs)
        return self._repeats
