"""Shape profiles, drawn and fixed, and batches to try in them."""

from __future__ import annotations

from hypothesis import strategies as st

from nopad.model.packing import PackedBatch, pack
from nopad.runtime.profiles import ShapeProfile

NARROW = ShapeProfile(tokens=(64, 512, 1024), sequences=(1, 8, 16), longest=(1, 64, 128))
WIDE = ShapeProfile(tokens=(64, 1024, 2048), sequences=(1, 2, 4), longest=(1, 512, 1024))


def batch_of(lengths: list[int], multiple: int) -> PackedBatch:
    return pack([[1] * length for length in lengths], multiple=multiple)


@st.composite
def ranges(draw: st.DrawFn, low: int, most: int) -> tuple[int, int, int]:
    a, b, c = sorted(draw(st.integers(low, most)) for _ in range(3))
    return a, b, c


@st.composite
def profiles(draw: st.DrawFn) -> ShapeProfile:
    """Any profiles, also with minima and with sizes that are not multiples of a block."""
    longest = draw(ranges(1, 300))
    low, best, high = draw(ranges(1, 900))
    high = max(high, longest[2], 9)  # so that it can be filled
    return ShapeProfile(tokens=(low, best, high), sequences=draw(ranges(1, 9)), longest=longest)


@st.composite
def open_profiles(draw: st.DrawFn, multiple: int) -> ShapeProfile:
    """Profiles as the planner and the defaults make them: from one text of one token on."""
    blocks = draw(st.integers(1, 12))
    most = draw(st.integers(1, 9))
    longest = draw(st.integers(1, blocks * multiple))
    tokens = (multiple, multiple, blocks * multiple)
    return ShapeProfile(tokens=tokens, sequences=(1, 1, most), longest=(1, 1, longest))
