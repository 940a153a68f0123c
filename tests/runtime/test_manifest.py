"""`nopad.runtime.manifest`: properties derived from its fields. `test_bundle` covers damaged files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from nopad.runtime.bundle import open_bundle
from nopad.runtime.manifest import Calibration, Manifest, from_json, to_json


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


CALIBRATIONS = [
    Calibration(temperature=1.5),
    Calibration(temperature=0.25, abstain_below=0.75, found={"rows": 80, "before": {"ece": 0.125}}),
    Calibration(temperature=2.0, thresholds=(0.25, 0.875)),
]


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=str)
def test_a_calibration_comes_back_as_it_was_and_is_what_the_head_says(calibration: Calibration) -> None:
    plain = open_bundle().manifest
    several = {"problem_type": "multi_label_classification"} if calibration.thresholds else {}
    manifest = dataclasses.replace(plain, calibration=calibration, extra={"owner": "us"}, **several)  # type: ignore[arg-type]
    data = to_json(manifest)
    again = from_json(data, "manifest.json")
    assert again == manifest and to_json(again) == data
    head = again.head
    assert (head.temperature, head.thresholds) == (calibration.temperature, calibration.thresholds)
    assert head.abstain_below == calibration.abstain_below
    assert head.uncalibrated == dataclasses.replace(plain, **several).head  # type: ignore[arg-type]


def test_only_a_calibrated_manifest_needs_a_newer_nopad() -> None:
    plain = open_bundle().manifest
    for manifest, version in ((plain, 1), (dataclasses.replace(plain, calibration=CALIBRATIONS[0]), 2)):
        raw = json.loads(to_json(manifest))
        assert raw["format_version"] == manifest.format_version == version
        assert ("calibration" in raw) == (version == 2)
