"""The script for owners of a GPU runs; here on the CPU, with the embedded model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nopad.runtime.bundle import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT, open_bundle

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_report.py"


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
