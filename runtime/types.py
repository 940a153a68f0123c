"""The runtime's inputs and outputs: frozen records, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from nopad.runtime.errors import UsageError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
# One text, or a pair (query, passage) for models trained on pairs.
Text = str | tuple[str, str]
Truncation = Literal["truncate", "error", "window"]
Side = Literal["left", "right"]
Merge = Literal["mean", "max", "first"]
# How tokens become entities, by the names of transformers' pipeline.
Strategy = Literal["none", "simple", "first", "average", "max"]
# How a text's words are made to answer for its label, and what is removed at once (docs/explain.md).
Method = Literal["occlusion", "shapley", "integrated-gradients", "gradient-x-input"]
By = Literal["token", "word", "sentence"]
Removal = Literal["drop", "mask"]
METHODS: tuple[Method, ...] = get_args(Method)
BYS: tuple[By, ...] = get_args(By)
REMOVALS: tuple[Removal, ...] = get_args(Removal)
TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)
MERGES: tuple[Merge, ...] = get_args(Merge)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
IGNORED_LABELS = ("O",)


def in_one(text: Text) -> str:
    """A text, or the two of a pair in one, where only equality counts: digests, groups."""
    return text if isinstance(text, str) else "\n".join(text)


@dataclass(frozen=True, kw_only=True)
class LongTexts:
    """What becomes of a text over the model's max length. Raises `UsageError` for what makes no sense.

    `truncation`: "truncate" cuts it, "error" refuses it, "window" reads all of it in overlapping windows.
    """

    truncation: Truncation = "truncate"
    side: Side | None = None  # the end that "truncate" cuts off; None: the tokenizer's own
    stride: int | None = None  # tokens that neighbouring windows share; None: 128, at most a quarter of a window
    merge: Merge | None = None  # how the windows' answers become one; None: "max" for rerank, else "mean"

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, value, known in (
            ("truncation", self.truncation, TRUNCATIONS),
            ("truncation_side", self.side, (None, "left", "right")),
            ("merge", self.merge, (None, *MERGES)),
        ):
            if value not in known:
                choice = ", ".join(repr(each) for each in known if each)
                raise UsageError(f"{name} is one of {choice}, not {value!r}")
        if self.truncation != "window" and (self.stride is not None or self.merge is not None):
            raise UsageError("stride and merge are of windows: ask for truncation='window'")
        if self.side is not None and self.truncation != "truncate":
            raise UsageError("truncation_side is of texts that are cut: truncation='truncate'")
        if self.stride is not None and self.stride < 0:
            raise UsageError(f"stride must be at least 0 tokens, got {self.stride}")


class AnsweredBy(NamedTuple):
    """Who computed an answer's logits."""

    engine: str
    precision: str  # of the file that the engine ran


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of a text, and what answered."""

    tokens: int  # of the whole text, special tokens included
    tokens_used: int  # after truncation to the model's max length
    engine: str
    precision: str  # of the file that the engine ran
    windows: int = 1  # that the text was read in

    @property
    def truncated(self) -> bool:
        """Whether part of the text was cut off."""
        return self.tokens_used < self.tokens


@dataclass(frozen=True, kw_only=True)
class Prediction(Usage):
    """Answer of a text-classification or rerank model for one text.

    `scores` are softmax probabilities (single label), independent sigmoid probabilities (several labels, rerank) or
    raw values (regression). `labels` are those at or above 0.5 for several labels, else the best label alone; of a
    calibrated bundle, those at or above their thresholds. `abstained`: the score is below what the bundle was told to
    answer from (`nopad calibrate --abstain-below`); the label is the best guess all the same.
    """

    label: str
    score: float
    labels: tuple[str, ...]
    scores: Mapping[str, float]  # the best `top_k`, best first
    abstained: bool = False
    logits: FloatArray | None = None  # float32 [num_labels], on request


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A run of tokens with one label; `start` and `end` are character positions in the text.

    With the strategy "none" it is a single token, with its whole label ("B-PER").
    """

    label: str
    score: float  # mean probability of its tokens
    start: int
    end: int
    text: str
    word: str | None = None  # where a strategy was asked for: its tokens as transformers' pipeline spells them
    index: int | None = None  # with the strategy "none": the token's position, [CLS] being 0


@dataclass(frozen=True, kw_only=True)
class Tagging(Usage):
    """Answer of a token-classification model: a label per token, and the entities they form."""

    tokens_text: tuple[str, ...]
    labels: tuple[str, ...]  # of each token, special tokens left out
    scores: tuple[float, ...]
    entities: tuple[Entity, ...]
    logits: FloatArray | None = None  # float32 [tokens_used, num_labels], on request


@dataclass(frozen=True, kw_only=True)
class MaskFill(Usage):
    """Answer of a fill-mask model: for each mask in the text, its best tokens with probabilities, best first."""

    masks: tuple[tuple[tuple[str, float], ...], ...]
    token_ids: tuple[tuple[int, ...], ...]  # of the same tokens


@dataclass(frozen=True, kw_only=True)
class Embedding(Usage):
    """Answer of an embedding model: float32 [hidden_size]."""

    vector: FloatArray


@dataclass(frozen=True, kw_only=True)
class TokenEmbeddings(Usage):
    """Answer of a model for token-embeddings: the last hidden state of each token, those of a prompt included."""

    tokens_text: tuple[str, ...]  # special tokens included
    vectors: FloatArray  # float32 [tokens_used, hidden_size]


@dataclass(frozen=True, kw_only=True)
class Sparse(Usage):
    """A text's weights over the vocabulary that are not zero."""

    indices: IntArray  # int64 [n], ascending: token ids
    values: FloatArray  # float32 [n]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One passage of a reranked list."""

    index: int  # position in the caller's list of passages
    score: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What a token, word or sentence did for a label; `start` and `end` are character positions in its text."""

    start: int
    end: int
    text: str
    score: float  # log-odds: above 0 it speaks for the label, below 0 against it
    part: int = 0  # 1: it stands in the second text of a pair


@dataclass(frozen=True, kw_only=True)
class Explanation(Usage):
    """Why a model of text-classification or rerank gave a label its score.

    Everything is in log-odds of the label, log(p / (1 - p)); of several labels, rerank and regression, its logit.
    `base_value` is that of the text with everything removed; where the method is additive, it and the scores of all
    attributions add up to `value`, and `residual` is what they lack.
    """

    label: str
    score: float  # the label's score, as of `Prediction`
    value: float  # of the whole text
    base_value: float
    attributions: tuple[Attribution, ...]  # in the text's order, without overlap
    method: Method
    by: By
    removal: Removal
    runs: int  # texts that were run, or gradients computed, to find out

    @property
    def residual(self) -> float:
        """What the scores lack to `value`: about 0 for shapley and integrated-gradients."""
        return self.value - self.base_value - sum(each.score for each in self.attributions)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A text that could not be answered, in its place among the answers."""

    index: int
    error: Exception


Result = Prediction | Tagging | MaskFill | Embedding | TokenEmbeddings
