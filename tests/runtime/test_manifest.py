"""`nopad.runtime.manifest`: properties derived from its fields. `test_bundle` covers damaged files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nopad.runtime.bundle import open_bundle
from nopad.runtime.manifest import Manifest


@pytest.mark.parametrize(
    ("architecture", "half_window"),
    [
        ({"local_attention": 128}, 64),
        ({"local_attention": 33}, 16),
        ({"local_attention": 0}, 0),  # BERT: no local layers
        ({"model_type": "distilbert"}, None),  # a padded bundle's
        ({}, None),
    ],
)
def test_the_half_window_is_half_of_local_attention(architecture: Mapping[str, Any], half_window: int | None) -> None:
    manifest = Manifest(task="embeddings", max_length=8, artifacts=(), files={}, architecture=architecture)
    assert manifest.half_window == half_window


def test_the_embedded_bundle_has_a_half_window() -> None:
    manifest = open_bundle().manifest
    assert manifest.half_window == manifest.architecture["local_attention"] // 2
