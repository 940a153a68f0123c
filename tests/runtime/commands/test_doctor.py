"""`nopad doctor`: its report and its exit code."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from changed_bundles import tampered, warmer
from several_files import AMD, OLD, on_cpu

from nopad.runtime.cli import run
from nopad.runtime.engines.cpu_speeds import speeds_of
from nopad.runtime.engines.gpus import Gpu
from nopad.runtime.engines.selection import engine_order

Capture = pytest.CaptureFixture[str]


def doctor(capsys: Capture, *bundle: str) -> tuple[int, dict[str, dict[str, Any]]]:
    capsys.readouterr()
    code = run(["doctor", "--json", *bundle])
    checks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(check) == {"name", "ok", "detail"} for check in checks)
    return code, {check["name"]: check for check in checks}


def test_doctor_reports_the_machine_and_its_code_says_whether_it_can_predict(capsys: Capture) -> None:
    code, checks = doctor(capsys)
    assert {"python", "cpu", "gpu", "can train", "can export", "can predict", "embedded model"} <= set(checks)
    for check in checks.values():
        assert isinstance(check["ok"], bool) and check["detail"]
    for package in ("numpy", "tokenizers", "onnxruntime", "torch", "transformers", "datasets", "scikit-learn"):
        assert checks[package]["detail"].startswith(importlib.metadata.version(package)) and checks[package]["ok"]
    assert checks["python"]["detail"].startswith(sys.version.split()[0]) and "cores" in checks["cpu"]["detail"]
    assert code == (0 if checks["can predict"]["ok"] and checks["embedded model"]["ok"] else 4)


def test_doctor_tries_the_embedded_model(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("nopad.runtime.bundle.DEFAULT_BUNDLE", own)
    code, checks = doctor(capsys)
    assert code == 0 and re.match(
        r"answers 'class \d' \(0\.\d\d\) on engine onnx-cpu", checks["embedded model"]["detail"]
    )
    (own / "model.cpu.onnx").write_bytes(b"")
    code, checks = doctor(capsys)
    assert code == 4 and not checks["embedded model"]["ok"] and checks["can predict"]["ok"]
    assert (
        "IntegrityError" in checks["embedded model"]["detail"]
        and "model.cpu.onnx" in checks["embedded model"]["detail"]
    )


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, wide: None, capsys: Capture) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "onnx"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, checks = doctor(capsys)
    assert code == 4 and checks["onnx"]["detail"] == "not installed (export)" and checks["can train"]["ok"]
    assert checks["can predict"]["detail"] == "no: pip install 'nopad[cpu]' (lacks onnxruntime)"
    assert checks["can export"]["detail"] == "no: pip install 'nopad[export]' (lacks onnx)"
    assert run(["doctor"]) == 4
    assert "-- can export" in " ".join(capsys.readouterr().out.split())


def test_doctor_says_what_an_engine_lacks(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorrt" else find(name))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    gpu = Gpu(name="Tesla T4", sm="sm75", memory=15 << 30)
    monkeypatch.setattr("nopad.runtime.commands.doctor.gpus", lambda: (gpu,))
    _, checks = doctor(capsys)
    assert re.match("Tesla T4, sm75, 15 GiB: .*fp16.* attention", checks["gpu"]["detail"])
    engines = {name.split(": ")[1]: check for name, check in checks.items() if name.startswith("engine ")}
    assert list(engines) == list(engine_order("sm75"))
    assert engines["tensorrt"]["detail"].startswith("no: lacks tensorrt") and not engines["tensorrt"]["ok"]
    assert engines["tensorrt"]["detail"].endswith(": pip install 'nopad[tensorrt]'")
    assert "has no TensorrtExecutionProvider; install onnxruntime-gpu" in engines["onnx-tensorrt"]["detail"]
    assert engines["onnx-cuda"] == {"name": engines["onnx-cuda"]["name"], "ok": True, "detail": "can run"}


def test_doctor_shows_the_cpu_its_speeds_and_what_a_faster_engine_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    monkeypatch.setattr("nopad.runtime.commands.doctor.gpus", lambda: ())
    on_cpu(monkeypatch, AMD)
    _, checks = doctor(capsys)
    row = speeds_of(AMD)
    assert "AMD EPYC 9454 (avx2, avx512f, avx512_vnni, avx512_bf16)" in checks["cpu"]["detail"]
    assert checks["bf16"]["detail"].startswith("yes")
    assert row.source in checks["cpu speeds"]["detail"] and "onnx-cpu fp32 1," in checks["cpu speeds"]["detail"]
    lacking = checks["engine 3: openvino"]  # last, as it is not installed
    fastest = max(speed for (engine, _), speed in row.speeds.items() if engine == "openvino")
    assert not lacking["ok"] and "lacks openvino: pip install 'nopad[openvino]' (" in lacking["detail"]
    assert f"{fastest:g} times onnx-cpu in fp32)" in lacking["detail"]
    on_cpu(monkeypatch, OLD)
    _, checks = doctor(capsys)
    assert checks["bf16"]["detail"].startswith("no instructions") and "not measured" in checks["cpu speeds"]["detail"]


def test_a_bundle_that_is_given_is_checked_by_its_probes(capsys: Capture, tmp_path: Path) -> None:
    for folder, ok, words in (
        (warmer(tmp_path / "good"), True, "probes answered as transformers does"),
        (tampered(tmp_path / "bad"), False, "does not answer here as it was verified"),
        (tmp_path / "missing", False, "no bundle at"),
    ):
        code, checks = doctor(capsys, str(folder))
        assert checks["self-check"]["ok"] is ok and words in checks["self-check"]["detail"]
        assert (code == 0) is ok or not checks["can predict"]["ok"]
