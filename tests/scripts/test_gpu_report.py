"""The script for owners of a GPU runs; here on the CPU, with the embedded model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from reference_models import MODERNBERT
from repository import ROOT, load_script

from nopad.model.checkpoint.read_config import read_config
from nopad.runtime.bundle import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT, open_bundle

SCRIPT = ROOT / "scripts" / "gpu_report.py"


@pytest.mark.parametrize("length", [64, 128, 512])
def test_the_share_of_peak_counts_the_pairs_of_a_window(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_report = load_script("gpu_report")
    monkeypatch.setattr(gpu_report, "timed", lambda run, device: 1.0)
    sizes = {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12}
    config = read_config({**MODERNBERT, **sizes, "local_attention": 128}, task="embeddings")
    (row,) = gpu_report.measure({"nopad": SimpleNamespace(encoder_config=config)}, "cpu", length, False, length, 1)
    pairs = sum(abs(i - j) <= 64 for i in range(length) for j in range(length))
    products = 2 * 22 * (4 * 768**2 + 3 * 768 * 1152)
    assert row["flops_per_second"] == products * length + 4 * 768 * (14 * pairs + 8 * length**2)


@pytest.mark.slow
def test_the_report_compares_and_gates_every_engine_that_runs_here(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))
    command = [sys.executable, str(SCRIPT), "--checkpoint", str(DEFAULT_CHECKPOINT), "--lengths", "64,130"]
    command += ["--tokens", "260", "--rounds", "2", "--bundle", str(bundle), "--reference", str(DEFAULT_CHECKPOINT)]
    done = subprocess.run([*command, "--output", str(tmp_path / "report.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    rows = report["speed"]
    assert {(row["competitor"], row["length"], row["ragged"]) for row in rows} == {
        (name, length, ragged)
        for name in ("nopad", "transformers sdpa")
        for length in (64, 130)
        for ragged in (True, False)
    }
    assert all(row["tokens_per_second"] > 0 and 0 < row["share_of_peak"] < 2 for row in rows)
    assert report["parity"]["onnx-cpu"]["passed"] and "no file for engine torch" in report["parity"]["torch"]["refused"]
    assert open_bundle(bundle).manifest.artifacts[0].passed_on("onnx-cpu")
