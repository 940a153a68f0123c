"""What is kept of a reference's answer, and what of a probe in a manifest is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nopad.runtime.bundle import open_bundle
from nopad.runtime.errors import BundleError
from nopad.runtime.manifest import from_json, to_json
from nopad.runtime.probes import MOST, MOST_OF_TOKENS, probe_from_json, probe_of

ANSWERS = arrays.arrays(
    np.float32,
    st.one_of(st.tuples(st.integers(1, 3000)), st.tuples(st.integers(1, 40), st.integers(1, 90))),
    elements=st.floats(-100, 100, width=32),
)
TEXTS = st.one_of(st.text(min_size=1), st.tuples(st.text(), st.text()))


@settings(max_examples=50)
@given(ANSWERS, TEXTS)
def test_a_probe_keeps_the_largest_element_and_comes_back_from_json(answer: Any, text: Any) -> None:
    best_of = 0 if answer.ndim == 2 else None
    for probe in (probe_of(text, answer), probe_of(text, answer, best_of)):
        assert np.array_equal(probe.part(answer), probe.wanted)
        assert np.abs(probe.wanted).max() == np.abs(answer).max()
        assert probe.wanted.size <= (MOST if answer.ndim == 1 else MOST_OF_TOKENS)
        assert probe_from_json(json.loads(json.dumps(dataclasses.asdict(probe)))) == probe


def test_of_a_row_the_highest_elements_are_kept() -> None:
    answer = np.zeros((3, 500), dtype=np.float32)
    answer[1, 400:410] = np.arange(1, 11)
    probe = probe_of("a [MASK]", answer, best_of=1)
    assert set(range(900, 910)) <= set(probe.at) and all(500 <= place < 1000 for place in probe.at)


@pytest.mark.parametrize(
    "change",
    [
        {"text": 3},
        {"text": ["a", "b", "c"]},
        {"shape": [3]},
        {"shape": [True, 2]},
        {"at": [2]},
        {"at": [-1, 0]},
        {"values": "no base64"},
        {"values": ""},
        {"values": "AADAfwAAwH8="},  # NaN
    ],
)
def test_a_damaged_probe_is_a_malformed_manifest(change: dict[str, Any]) -> None:
    manifest = open_bundle().manifest
    raw = {**dataclasses.asdict(manifest.probes[0]), **change}
    with pytest.raises((TypeError, ValueError)):
        probe_from_json(raw)
    data = to_json(dataclasses.replace(manifest, probes=(), extra={"probes": [raw]}))
    with pytest.raises(BundleError, match="malformed"):
        from_json(data, "manifest.json")
