"""Optimization profiles, the shapes that a TensorRT engine is built for: their file, and which batches fit them.

A profile bounds the three dynamic sizes of a packed batch (`nopad.model.packing`): tokens of the stream, sequences, and
the longest sequence (`pad_index` is [sequences, longest]). `nopad.runtime.batching` plans micro-batches that fit;
`nopad.runtime.planning.search` finds profiles from data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.model.packing import PackedBatch
from nopad.runtime.errors import InputFileError

Range = tuple[int, int, int]  # min, opt, max, as in TensorRT
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ShapeProfile:
    """One optimization profile. Raises `ValueError` unless 1 <= min <= opt <= max, and some batch can fit it."""

    tokens: Range  # of the stream, filler included: multiples of the attention block
    sequences: Range
    longest: Range  # tokens of the longest sequence

    def __post_init__(self) -> None:
        """Refuse ranges that no builder accepts."""
        for name, sizes in dataclasses.asdict(self).items():
            low, best, high = sizes
            if not 1 <= low <= best <= high:
                raise ValueError(f"{name}: min {low}, opt {best}, max {high} are not 1 <= min <= opt <= max")
        if self.longest[2] > self.tokens[2]:
            raise ValueError(f"longest: max {self.longest[2]} is more than tokens: max {self.tokens[2]}")
        if self.sequences[0] > self.tokens[2]:
            raise ValueError(f"sequences: min {self.sequences[0]} is more than tokens: max {self.tokens[2]}")

    def shapes(self, sizes: Sequence[str]) -> list[tuple[int, ...]]:
        """Min, opt and max shape of a tensor with these symbolic `sizes` (`tokens`, `sequences`, `longest`)."""
        return [tuple(getattr(self, size)[place] for size in sizes) for place in range(3)]

    def fits(self, batch: PackedBatch) -> bool:
        """Whether this batch is within the profile."""
        return self.admits(len(batch.input_ids), *batch.pad_index.shape)

    def admits(self, tokens: int, sequences: int, longest: int) -> bool:
        """Like `fits`, for a batch of this shape; `tokens` includes filler."""
        sizes = ((tokens, self.tokens), (sequences, self.sequences), (longest, self.longest))
        return all(low <= size <= high for size, (low, _, high) in sizes)


def profile_from_json(raw: Mapping[str, Any]) -> ShapeProfile:
    """Parse a profile of a manifest or a profiles file. Raises `ValueError` or `TypeError`."""
    ranges = {}
    for field in dataclasses.fields(ShapeProfile):
        sizes = raw.get(field.name)
        if not isinstance(sizes, list | tuple) or len(sizes) != 3 or not all(type(size) is int for size in sizes):
            raise ValueError(f"{field.name} is {sizes!r}, not [min, opt, max]")
        ranges[field.name] = (sizes[0], sizes[1], sizes[2])
    return ShapeProfile(**ranges)


def write_profiles(profiles: Sequence[ShapeProfile], **about: Any) -> bytes:
    """The bytes of a profiles file, for `nopad export --profiles`; `about` records where the profiles come from."""
    raw = {"format_version": FORMAT_VERSION, "profiles": [dataclasses.asdict(profile) for profile in profiles], **about}
    return (json.dumps(raw, indent=2) + "\n").encode()


def read_profiles(path: Path) -> tuple[ShapeProfile, ...]:
    """Read a profiles file. Raises `InputFileError`."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path} is not valid JSON ({error}); make it with nopad plan") from None
    if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
        raise InputFileError(
            f"{path} is not a profiles file of format version {FORMAT_VERSION}; make it with nopad plan"
        )
    entries = raw.get("profiles")
    if not isinstance(entries, list) or not entries:
        raise InputFileError(f"{path} has no profiles; make it with nopad plan")
    profiles = []
    for number, entry in enumerate(entries, 1):
        try:
            profiles.append(profile_from_json(entry if isinstance(entry, dict) else {}))
        except ValueError as error:
            raise InputFileError(f"{path}, profile {number}: {error}") from None
    return tuple(profiles)


def shape_of(batch: PackedBatch) -> str:
    """A batch's three sizes, for messages."""
    sequences, longest = batch.pad_index.shape
    return f"a stream of {len(batch.input_ids)} tokens, {sequences} sequences, the longest of {longest}"


def choose_profile(profiles: Sequence[ShapeProfile], batch: PackedBatch) -> int | None:
    """Index of the smallest profile that the batch fits (by longest sequence, then tokens); None if it fits none."""
    fitting = [i for i, profile in enumerate(profiles) if profile.fits(batch)]
    return min(fitting, key=lambda i: (profiles[i].longest[2], profiles[i].tokens[2], i), default=None)
