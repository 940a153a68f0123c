"""Which texts make each training batch: shuffled anew in every epoch, by texts or by tokens, for some processes.

Every process plans the same steps from the seed and takes its own share of each, so what a step learns from does not
depend on how many processes there are. numpy only, but for the loader; knows nothing of `Trainer` and tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Sampler

from nopad.runtime.errors import UsageError
from nopad.training.errors import DataError

IntArray = npt.NDArray[np.int64]


class Batches(Sampler[list[int]]):
    """The batches of one process: lists of row numbers, as many in every epoch and in every process.

    A batch holds `texts` rows, the last of an epoch those that are left; or, with `tokens`, at most so many tokens,
    about alike in all batches. Of several `processes`, each gets about as many tokens in a step, at least one row.
    Raises `DataError` where the rows are too few, `UsageError` where they are too long for `tokens`.
    """

    def __init__(
        self,
        lengths: Sequence[int] | IntArray,
        *,
        texts: int,
        tokens: int | None = None,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._seed, self._process, self._processes = seed, process, processes
        self._texts, self.epoch = texts, 0
        if len(self._lengths) < processes:
            raise DataError(f"{len(self._lengths)} row(s) cannot be shared by {processes} processes; start fewer")
        self._token_steps = None if tokens is None else _token_steps(self._lengths, tokens, processes)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch, in each process."""
        if self._token_steps is not None:
            return self._token_steps
        whole, rest = divmod(len(self._lengths), self._texts * self._processes)
        return max(1, whole + (rest >= self._processes))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch."""
        order = np.random.default_rng((self._seed, self.epoch)).permutation(len(self._lengths))
        if self._token_steps is not None:
            # A text belongs to the step in whose equal share of all tokens it begins.
            starts = np.cumsum(self._lengths[order]) - self._lengths[order]
            cuts = np.searchsorted(starts, np.arange(1, len(self)) * (self._lengths.sum() / len(self)))
        else:
            cuts = np.arange(1, len(self)) * self._texts * self._processes
        for step in np.split(order, cuts):
            yield share(self._lengths, step, self._processes)[self._process]


def share(lengths: IntArray, rows: IntArray, processes: int) -> list[list[int]]:
    """`rows` for each process, at least one if there are as many: the longest first, to who has the fewest tokens.

    The shares differ by at most the tokens of the longest row (Graham 1969, list scheduling).
    """
    if processes == 1:
        return [rows.tolist()]
    shares: list[list[int]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for row in rows[np.argsort(-lengths[rows], kind="stable")].tolist():
        least = min(range(processes), key=tokens.__getitem__)
        shares[least].append(row)
        tokens[least] += int(lengths[row])
    return shares


def _token_steps(lengths: IntArray, tokens: int, processes: int) -> int:
    """Steps of an epoch with at most `tokens` tokens for each process.

    All steps begin at equal distances in the stream of all texts. A step's texts begin within that distance, so it has
    less than one `longest` more; shares differ by one `longest`, too. At least three texts must fit, or a step could be
    left without one.
    """
    longest, total = int(lengths.max()), int(lengths.sum())
    if tokens < 3 * longest:
        raise UsageError(
            f"a batch of {tokens:,} tokens is less than three texts of the longest length ({longest:,} tokens); give "
            f"--batch-tokens {3 * longest} or more, or a lower --max-length"
        )
    return max(1, math.ceil(total / (processes * (tokens - longest))))


def token_counts(rows: Any) -> IntArray:
    """Tokens of each row of a data set: of all texts of the row together."""
    return np.concatenate([chunk.value_lengths().to_numpy() for chunk in _chunks(rows, "input_ids")]).astype(np.int64)


def text_lengths(rows: Any) -> IntArray:
    """Tokens of each text of a data set, whose rows have one text, or several in a row and their `lengths`."""
    if "lengths" not in rows.column_names:
        return token_counts(rows)
    return np.concatenate([chunk.flatten().to_numpy() for chunk in _chunks(rows, "lengths")]).astype(np.int64)


def _chunks(rows: Any, name: str) -> Iterator[Any]:
    """A column of lists as pyarrow's arrays, of at most 1,000 rows each."""
    for batch in rows.select_columns([name]).with_format("arrow").iter(batch_size=1000):
        yield from batch[name].chunks


class BatchLoader(DataLoader[Any]):
    """A `DataLoader` over `Batches` that tells them the epoch, as `Trainer` tells it."""

    def __init__(self, rows: Any, batches: Batches, **options: Any) -> None:
        super().__init__(rows, batch_sampler=batches, **options)
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, from 0."""
        self._batches.set_epoch(epoch)
