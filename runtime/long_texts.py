"""Texts over the model's max length, read in overlapping windows: how they are divided, and how answers become one.

The windows are those of transformers' `tokenizer(text, return_overflowing_tokens=True, stride=...)`, from the beginning
of the text on. Special tokens, a prompt and the first text of a pair stand in every window. Knows no engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nopad.model.head import PER_TOKEN, Head, softmax
from nopad.runtime.errors import TextError, UsageError
from nopad.runtime.tokenizer import Tokens, Window
from nopad.runtime.types import FloatArray, LongTexts, MaskFill, Merge

T = TypeVar("T")
STRIDE = 128  # tokens that neighbouring windows share, but at most a quarter of what a window has room for
MOST_WINDOWS = 512  # of one text


def check_merge(merge: Merge | None, task: str) -> None:
    """Raises `UsageError` for a way to merge that the task's answers have not."""
    if merge in (None, "first") or task in ("text-classification", "rerank") or (merge, task) == ("mean", "embeddings"):
        return
    own = "mean and first" if task == "embeddings" else "first: each token is answered from the window that suits it"
    raise UsageError(f"merge={merge!r} is not for {task}, which knows {own}")


def divide(tokens: Tokens, max_length: int, long: LongTexts) -> Tokens | TextError:
    """The tokens of a whole text with its `windows`, where it has more than `max_length`; of "first", that window.

    Raises `UsageError` for a stride that no window has room for.
    """
    start, end = tokens.body
    if start == end:
        return tokens
    room = max_length - (tokens.used - (end - start))
    if room < 1:
        return TextError(
            f"of the model's {max_length} tokens none is left for the text beside what stands in every window (special "
            "tokens, a prompt, the first text of a pair): shorten these"
        )
    stride = min(STRIDE, room // 4) if long.stride is None else long.stride
    if stride >= room:
        said = f"a window has room for {room} tokens of the text, so a stride of {stride} never comes to its end"
        if not isinstance(tokens.text, tuple):
            raise UsageError(f"{said}; give a smaller one")
        return TextError(f"{said}; give a smaller one, or shorten the first text")
    starts = range(start, max(start + 1, end - stride), room - stride)
    if long.merge == "first":
        first = _part(tokens, start, min(end, start + room))
        return dataclasses.replace(first, tokens=tokens.used)
    if len(starts) > MOST_WINDOWS:
        return TextError(
            f"the text has {tokens.used} tokens and would be read in {len(starts)} windows, over the limit of "
            f"{MOST_WINDOWS}: divide it, for example into chapters, or lower the stride of {stride}"
        )
    windows = [(at, min(end, at + room)) for at in starts]
    return dataclasses.replace(tokens, windows=tuple(Window(_part(tokens, at, stop), at, stop) for at, stop in windows))


def _part(whole: Tokens, start: int, stop: int) -> Tokens:
    """What the model reads of a window: the whole text without what the body has before and after it."""
    before, after = whole.body

    def of(values: list[T]) -> list[T]:
        return values[:before] + values[start:stop] + values[after:]

    ids = of(whole.input_ids)
    return Tokens(
        text=whole.text,
        input_ids=ids,
        token_type_ids=of(whole.token_type_ids),
        tokens=len(ids),
        offsets=of(whole.offsets),
        special=of(whole.special),
        pieces=of(whole.pieces),
        prompt_length=whole.prompt_length,
    )


def merged(
    text: Tokens, logits: Sequence[FloatArray], head: Head, merge: Merge | None, *, unit: bool = False
) -> FloatArray:
    """The logits of a text from those of its windows, of the same meaning and shape as a short text's.

    Per token [tokens, labels or size]: each token's, from the window in which it stands farthest from a border.
    Embeddings [size]: the mean by the windows' tokens, of length 1 if `unit`.
    Else [labels]: "mean"; or "max", where texts have one label those of the surest window, else each label's largest.
    """
    if head.task in PER_TOKEN:
        return _by_token(text, logits)
    rows = np.stack(logits)
    if head.task == "embeddings":
        mean = np.average(rows, axis=0, weights=[window.tokens.used for window in text.windows])
        length = float(np.linalg.norm(mean))
        return np.asarray(mean / length if unit and length > 0 else mean, dtype=np.float32)
    # Of logits, not of probabilities: as right, and better calibrated on long reviews (docs/long-texts.md).
    if (merge or ("max" if head.task == "rerank" else "mean")) == "mean":
        return np.asarray(rows.mean(axis=0), dtype=np.float32)
    if head.one_label:
        return logits[int(softmax(rows).max(axis=-1).argmax())]
    return np.asarray(rows.max(axis=0), dtype=np.float32)


def merged_masks(text: Tokens, answers: Sequence[MaskFill | TextError], mask_id: int | None) -> MaskFill:
    """The candidates of each mask of a text, from the window in which it stands farthest from a border.

    `answers`: of the windows, an error for those without a mask.
    """
    owners = _owners(text)
    masks, token_ids = [], []
    for place in [place for place, token in enumerate(text.input_ids) if token == mask_id]:
        window, answer = text.windows[owners[place]], answers[owners[place]]
        assert isinstance(answer, MaskFill)  # it holds this mask
        number = window.tokens.input_ids[: int(_local(text, window, np.array([place]))[0])].count(mask_id)
        masks.append(answer.masks[number])
        token_ids.append(answer.token_ids[number])
    return dataclasses.replace(
        next(answer for answer in answers if isinstance(answer, MaskFill)),
        masks=tuple(masks),
        token_ids=tuple(token_ids),
        tokens=text.tokens,
        tokens_used=text.used,
        windows=len(text.windows),
    )


def _by_token(text: Tokens, logits: Sequence[FloatArray]) -> FloatArray:
    owners = _owners(text)
    out = np.empty((text.used, logits[0].shape[-1]), dtype=np.float32)
    for number, (window, rows) in enumerate(zip(text.windows, logits, strict=True)):
        places = np.flatnonzero(owners == number)
        out[places] = rows[_local(text, window, places)]
    return out


def _owners(text: Tokens) -> npt.NDArray[np.int64]:
    """For each token of the text the window in which it stands farthest from a border, the text's own ends aside."""
    start, end = text.body
    owners = np.zeros(text.used, dtype=np.int64)
    owners[end:] = len(text.windows) - 1
    best = np.full(text.used, -1)
    for number, window in enumerate(text.windows):
        places = np.arange(window.start, window.stop)
        before = text.used if window.start == start else places - window.start
        after = text.used if window.stop == end else window.stop - 1 - places
        room = np.broadcast_to(np.minimum(before, after), places.shape)
        better = room > best[window.start : window.stop]
        best[places[better]], owners[places[better]] = room[better], number
    return owners


def _local(text: Tokens, window: Window, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places in the whole text -> places in the window, for what the window holds."""
    start, end = text.body
    shift = np.where(
        places < start, 0, np.where(places < end, window.start - start, end - start - (window.stop - window.start))
    )
    return places - shift
