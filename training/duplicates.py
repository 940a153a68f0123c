"""Texts that occur more than once: exactly, but for capitals and blanks, or nearly.

Nearly: texts of 20 words and more whose sets of three words in a row have a Jaccard index of 0.8 or more. Candidates
are found by MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3),
and each is then compared word by word.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_FEWEST_WORDS, _SHINGLE, _ALIKE = 20, 3, 0.8
_BANDS, _ROWS = 20, 6  # at 0.8 two texts share a band with a probability of 0.998, at 0.4 of 0.08
_TEXTS = 500  # whose shingles are in memory at once


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """For each text, the first that is the same: its own index where there is none."""

    exact: IntArray  # [texts]
    near: IntArray  # [texts], counting exact ones too; texts that are near to a common one are one group


def find_duplicates(texts: Sequence[str], *, near: bool = True) -> Duplicates:
    """Which of the texts are the same as earlier ones; not nearly so, unless `near`."""
    first: dict[bytes, int] = {}
    exact = np.array([first.setdefault(_digest(text), index) for index, text in enumerate(texts)], dtype=np.int64)
    if not near:
        return Duplicates(exact=exact, near=exact)
    parents = np.arange(len(texts))
    candidates = [index for index in first.values() if len(texts[index].split(None, _FEWEST_WORDS)) > _FEWEST_WORDS - 1]
    for earlier, later in sorted(_pairs(texts, candidates)):
        earlier, later = sorted((_root(parents, earlier), _root(parents, later)))
        if earlier != later and _alike(texts[earlier], texts[later]):
            parents[later] = earlier
    roots = np.array([_root(parents, int(index)) for index in exact], dtype=np.int64)
    return Duplicates(exact=exact, near=roots)


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _digest(text: str) -> bytes:
    return blake2b(" ".join(_words(text)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _root(parents: IntArray, index: int) -> int:
    while parents[index] != index:
        index = int(parents[index])
    return index


def _pairs(texts: Sequence[str], candidates: Sequence[int]) -> set[tuple[int, int]]:
    """Pairs of texts that share a band of their signatures, neighbours among those that share it."""
    if not candidates:
        return set()
    keys = np.concatenate(list(_band_keys(texts, candidates)))
    indices = np.asarray(candidates)
    pairs: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        same = np.flatnonzero(keys[order[1:], band] == keys[order[:-1], band])
        pairs.update(zip(indices[order[same]].tolist(), indices[order[same + 1]].tolist(), strict=True))
    return pairs


def _band_keys(texts: Sequence[str], candidates: Sequence[int]) -> Iterator[npt.NDArray[np.uint64]]:
    """Of each candidate, a key for each band of its MinHash signature: uint64 [texts, bands], some texts at a time."""
    draw = np.random.default_rng(0)  # the same in every run
    factors, offsets, mix = (draw.integers(1, 2**63, size, dtype=np.uint64) for size in (120, 120, (_SHINGLE + _ROWS)))
    for start in range(0, len(candidates), _TEXTS):
        hashes, starts = [], [0]
        for index in candidates[start : start + _TEXTS]:
            words = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _words(texts[index])])
            words = words.astype(np.uint64) + np.uint64(1)
            shingles = sum(words[at : len(words) - _SHINGLE + 1 + at] * (mix[at] | 1) for at in range(_SHINGLE))
            hashes.append(shingles)
            starts.append(starts[-1] + len(shingles))
        joined = np.concatenate(hashes)
        joined ^= joined >> np.uint64(31)
        keys = np.zeros((len(hashes), _BANDS), dtype=np.uint64)
        for number, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            least = np.minimum.reduceat(joined * (factor | 1) + offset, starts[:-1])
            keys[:, number // _ROWS] += (least ^ (least >> np.uint64(29))) * (mix[_SHINGLE + number % _ROWS] | 1)
        yield keys


def _alike(first: str, second: str) -> bool:
    one, other = (set(zip(words, words[1:], words[2:], strict=False)) for words in (_words(first), _words(second)))
    return len(one & other) >= _ALIKE * len(one | other)
