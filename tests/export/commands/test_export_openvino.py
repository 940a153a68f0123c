"""Graphs for OpenVINO through the commands: export with its gate, predict, parity, inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nopad.model.cpus import cpu_at_hand
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, open_bundle
from nopad.runtime.cli import run
from nopad.runtime.predictor import load

TEXTS = ["A splendid film, I laughed all evening.", "Dull, long and badly acted."]
needs_bf16 = pytest.mark.skipif(not cpu_at_hand().bf16, reason="this CPU has no bf16 instructions")


def exported(output: Path, target: str, precisions: str) -> list[str]:
    """The embedded checkpoint's bundle, which has passed its gate; "file on engine" of each report."""
    export = ["export", str(DEFAULT_CHECKPOINT), "-o", str(output), "--target", target, "--precision", precisions]
    assert run([*export, "--threads", "1", "--quiet", "--json"]) == 0
    return [f"{one.file} on {engine}" for one in open_bundle(output).manifest.artifacts for engine in one.parity]


@needs_bf16
def test_bf16_of_target_cpu_is_openvinos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    gated = exported(bundle, "cpu", "fp32,bf16")
    assert gated == ["model.cpu.onnx on onnx-cpu", "model.openvino.bf16.onnx on openvino"]
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "verified" and sorted(report["reports"]) == sorted(gated) and not report["skipped"]
    answers = {}
    for precision, engine in (("fp32", "onnx-cpu"), ("bf16", "openvino")):
        with load(bundle, precision=precision, threads=1) as model:
            assert model.status().engine == engine and model.artifact.precision == precision
            answers[precision] = [one.label for one in model.predict(TEXTS)]
    assert answers["fp32"] == answers["bf16"] == ["positive", "negative"]
    with load(bundle, threads=1) as model:  # never a lower precision unasked
        assert model.artifact.precision == "fp32"
    predict = ["predict", str(bundle), "--engine", "openvino", "--precision", "bf16", "--threads", "1", "--quiet"]
    assert run([*predict, TEXTS[0]]) == 0
    assert "positive" in capsys.readouterr().out


@needs_bf16
@pytest.mark.slow
def test_every_precision_of_target_openvino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    files = [f"model.openvino{kind}.onnx" for kind in ("", ".bf16", ".int8")]
    assert exported(bundle, "openvino", "fp32,bf16,int8") == [f"{file} on openvino" for file in files]
    assert {path.name for path in bundle.iterdir()} == {*open_bundle(bundle).manifest.files, "manifest.json"}
    capsys.readouterr()
    for precision in ("fp32", "bf16", "int8"):
        judge = ["parity", str(bundle), "-r", str(DEFAULT_CHECKPOINT), "--engine", "openvino", "--precision", precision]
        assert run([*judge, "--threads", "1", "--quiet", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["passed"] and report["engine"] == "openvino"
        predict = ["predict", str(bundle), "--engine", "openvino", "--precision", precision, "--threads", "1"]
        assert run([*predict, "--quiet", TEXTS[1]]) == 0
        assert "negative" in capsys.readouterr().out
    assert run(["inspect", str(bundle)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "openvino int8, packed, 1.7 MB" in shown
    assert "quantized int8 12, weight_bits 8, scales group, group 64" in shown
    assert shown.count("verified on openvino") == 3
