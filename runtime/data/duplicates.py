"""Texts that occur more than once: exactly, but for capitals and blanks, or nearly.

Nearly: texts of 20 words and more whose sets of three words in a row have a Jaccard index of 0.8 or more. Candidates
are found by MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3),
and each is then compared word by word.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from nopad.runtime.data.temporary import room_for_rows, temporary_folder

IntArray = npt.NDArray[np.int64]
_FEWEST_WORDS, _SHINGLE, _ALIKE = 20, 3, 0.8
_BANDS, _ROWS = 20, 6  # at 0.8 two texts share a band with a probability of 0.998, at 0.4 of 0.08
_SHINGLES = 2**17  # in memory at once, of whole texts


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """For each text, the first that is the same: its own index where there is none."""

    exact: IntArray  # [texts]
    near: IntArray  # [texts], counting exact ones too; texts that are near to a common one are one group


def find_duplicates(texts: Sequence[str], *, near: bool = True) -> Duplicates:
    """Which of the texts are the same as earlier ones; not nearly so, unless `near`.

    Texts may be read from disk each time that they are asked for: no more than some are in memory at once.
    """
    digests, long = bytearray(), bytearray()
    for text in texts:
        digests += _digest(text)
        long.append(near and len(text.split(None, _FEWEST_WORDS)) >= _FEWEST_WORDS)
    exact = _first_of_equal(np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2))
    if not near:
        return Duplicates(exact=exact, near=exact)
    parents = np.arange(len(texts))
    candidates = np.flatnonzero((exact == parents) & np.frombuffer(long, dtype=bool))
    for pair in _pairs(texts, candidates):
        earlier, later = sorted(_root(parents, index) for index in divmod(int(pair), len(texts)))
        if earlier != later and _alike(texts[earlier], texts[later]):
            parents[later] = earlier
    roots = np.fromiter((_root(parents, int(index)) for index in exact), dtype=np.int64, count=len(exact))
    return Duplicates(exact=exact, near=roots)


def _first_of_equal(digests: npt.NDArray[np.uint64]) -> IntArray:
    """For each row of [texts, 2] the first that equals it."""
    order = np.lexsort(digests.T)  # stable: equal ones stay in order
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _digest(text: str) -> bytes:
    return blake2b(" ".join(_words(text)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _root(parents: IntArray, index: int) -> int:
    while parents[index] != index:
        index = int(parents[index])
    return index


def _pairs(texts: Sequence[str], candidates: IntArray) -> IntArray:
    """Pairs of texts that share a band of their signatures, neighbours among those that share it, in order.

    A pair is the number `earlier * len(texts) + later`.
    """
    pairs = np.empty(0, dtype=np.int64)
    if not len(candidates):
        return pairs
    with tempfile.TemporaryFile(dir=temporary_folder()) as file:  # of 160 bytes a text
        with room_for_rows():
            for some in _band_keys(texts, candidates):
                file.write(some.tobytes())
            file.flush()
        keys = np.memmap(file, dtype=np.uint64, mode="r", shape=(len(candidates), _BANDS))
        for band in range(_BANDS):
            own = np.array(keys[:, band])
            order = np.argsort(own, kind="stable")
            same = np.flatnonzero(own[order[1:]] == own[order[:-1]])
            found = candidates[order[same]] * len(texts) + candidates[order[same + 1]]
            pairs = np.union1d(pairs, found)
    return pairs


def _band_keys(texts: Sequence[str], candidates: IntArray) -> Iterator[npt.NDArray[np.uint64]]:
    """Of each candidate, a key for each band of its MinHash signature: uint64 [texts, bands], some texts at a time."""
    draw = np.random.default_rng(0)  # the same in every run
    factors, offsets, mix = (draw.integers(1, 2**63, size, dtype=np.uint64) for size in (120, 120, (_SHINGLE + _ROWS)))
    for some in _shingles(texts, candidates, mix):
        starts = np.cumsum([0, *map(len, some[:-1])])
        joined = np.concatenate(some)
        joined ^= joined >> np.uint64(31)
        keys = np.zeros((len(some), _BANDS), dtype=np.uint64)
        for number, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            least = np.minimum.reduceat(joined * (factor | 1) + offset, starts)
            keys[:, number // _ROWS] += (least ^ (least >> np.uint64(29))) * (mix[_SHINGLE + number % _ROWS] | 1)
        yield keys


def _shingles(
    texts: Sequence[str], candidates: IntArray, mix: npt.NDArray[np.uint64]
) -> Iterator[list[npt.NDArray[np.uint64]]]:
    """A number for each three words in a row of each candidate, of some texts at a time."""
    some: list[npt.NDArray[np.uint64]] = []
    for index in candidates:
        words = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _words(texts[int(index)])])
        words = words.astype(np.uint64) + np.uint64(1)
        some.append(sum(words[at : len(words) - _SHINGLE + 1 + at] * (mix[at] | 1) for at in range(_SHINGLE)))
        if sum(map(len, some)) >= _SHINGLES:
            yield some
            some = []
    if some:
        yield some


def _alike(first: str, second: str) -> bool:
    one, other = (set(zip(words, words[1:], words[2:], strict=False)) for words in (_words(first), _words(second)))
    return len(one & other) >= _ALIKE * len(one | other)
