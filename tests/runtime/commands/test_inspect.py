"""`nopad inspect`: what it shows of a bundle, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nopad.runtime.bundle import open_bundle, write_manifest
from nopad.runtime.cli import run

NAME = "modernbert-single-mean"
Bundles = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


def test_inspect_shows_the_bundle_and_how_it_was_verified(own: Path, wide: None, capsys: Capture) -> None:
    assert run(["inspect", str(own)]) == 0
    out, err = capsys.readouterr()
    rows = {line[:13].strip(): line[14:].strip() for line in out.splitlines()}
    manifest = open_bundle(own).manifest
    checks = len(manifest.artifacts[0].parity["onnx-cpu"]["rows"])
    assert err == "" and rows["bundle"] == str(own) and rows["verdict"] == "verified"
    assert rows["task"] == "text-classification (single_label_classification)"
    assert rows["labels"] == "class 0, class 1, class 2" and rows["max length"] == "1024 tokens"
    assert rows["files"].startswith(f"{len(manifest.files)}, ") and rows["files"].endswith("SHA-256 checked")
    assert f"verified on onnx-cpu: {checks} of {checks} checks" in out and "worst logit difference" in out
    assert "input_ids[" in out and "cpu fp32, packed" in out


def test_inspect_shows_what_was_measured_on_data(wide: None, capsys: Capture) -> None:
    assert run(["inspect"]) == 0  # the embedded model was evaluated on real reviews
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation"))
    assert re.search(r"agreement 1.0000, label_mix \(negative 0\.\d+, positive 0\.\d+\).* accuracy 0\.9\d+", line)
    assert "mse" not in line


def test_inspect_json_is_the_manifest_and_the_path(own: Path, capsys: Capture) -> None:
    assert run(["inspect", str(own), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"path": str(own), **json.loads((own / "manifest.json").read_text("utf-8")), "tuning": []}


def test_inspect_shows_labels_and_failed_checks_as_they_are(own: Path, wide: None, capsys: Capture) -> None:
    manifest = open_bundle(own).manifest
    (artifact,) = manifest.artifacts
    report = json.loads(json.dumps(artifact.parity["onnx-cpu"])) | {"passed": False}
    report["rows"][0] |= {"passed": False, "case": "[/red] 12 tokens", "note": ":bug:"}
    odd = dataclasses.replace(manifest, labels=("[bold]", "[/bold]", ":bug:"))
    write_manifest(
        own, dataclasses.replace(odd, artifacts=(dataclasses.replace(artifact, parity={"onnx-cpu": report}),))
    )
    assert run(["inspect", str(own)]) == 0
    out = capsys.readouterr().out
    total = len(report["rows"])
    assert "[bold], [/bold], :bug:" in out and f"unverified on onnx-cpu: {total - 1} of {total} checks" in out
    assert re.search(r"failed +\w+.*, \[/red\] 12 tokens: .*\(bound .*\) :bug:", out)
    write_manifest(own, dataclasses.replace(manifest, artifacts=(dataclasses.replace(artifact, parity={}),)))
    assert run(["inspect", str(own)]) == 0
    out = capsys.readouterr().out
    assert "never checked: run nopad parity" in out and re.search("^verdict +unverified", out, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["model.cpu.onnx", "tokenizer.json"])
def test_inspect_finds_one_flipped_bit(name: str, own: Path, wide: None, capsys: Capture) -> None:
    data = bytearray((own / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own / name).write_bytes(data)
    assert run(["inspect", str(own)]) == run(["inspect", str(own), "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count(f"{own / name} is damaged") == 2
    assert run(["inspect", str(own), "--no-verify"]) == 0
    assert "not checked" in capsys.readouterr().out
    (own / name).write_bytes(data[:-1])
    assert run(["inspect", str(own), "--no-verify"]) == 3
    assert f"{own / name} has {len(data) - 1} bytes" in capsys.readouterr().err


def test_inspect_refuses_what_is_no_bundle(own: Path, checkpoint: Bundles, tmp_path: Path, capsys: Capture) -> None:
    (own / "manifest.json").write_text((own / "manifest.json").read_text("utf-8").replace("class 0", "class 9"))
    for path, words in (
        (tmp_path / "absent", "the folder does not exist"),
        (checkpoint(NAME), "it is a checkpoint: export it first"),
        (own, "does not match its own manifest_sha256"),
    ):
        assert run(["inspect", str(path)]) == 3
        assert words in capsys.readouterr().err
