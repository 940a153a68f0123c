"""`nopad export` for GPUs, on a machine without one: engines built, gated where they can be, refused where not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.export.parity.samples import SAMPLES
from nopad.runtime.atomic import sha256_of
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import run
from nopad.runtime.errors import BundleError, EnvironmentProblem
from nopad.runtime.predictor import load
from nopad.runtime.profiles import ShapeProfile, write_profiles

trt = pytest.importorskip("tensorrt_rtx", reason="builds real engines; pip install 'nopad[tensorrt-rtx]'")

NAME = "modernbert-single-mean"
PROFILES = (
    ShapeProfile(tokens=(64, 512, 1024), sequences=(1, 8, 16), longest=(1, 64, 128)),
    ShapeProfile(tokens=(64, 1024, 1024), sequences=(1, 1, 2), longest=(1, 512, 1024)),
)
Bundles = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(checkpoint: Bundles, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A bundle of everything that this machine can make, through the command line, and the command's output."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "profiles.json").write_bytes(write_profiles(PROFILES))
    command = ["export", str(checkpoint(NAME)), "--target", "all", "--arch", "sm75,sm89", "--json", "--threads", "1"]
    command += ["--profiles", str(folder / "profiles.json"), "--output", str(folder / "bundle")]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[Any] = []
        patch.setattr("nopad.export.commands.export.emit", printed.append)
        assert run(command) == 0
    return folder / "bundle", json.loads(json.dumps(printed[0]))


def test_all_makes_what_it_can_and_says_why_not_the_rest(made: tuple[Path, dict[str, Any]]) -> None:
    path, printed = made
    manifest = open_bundle(path).manifest
    kinds = [(a.target, a.precision, a.sm) for a in manifest.artifacts]
    assert kinds == [
        ("cpu", "fp32", None),
        ("onnx", "fp16", None),
        ("torch", "fp16", None),
        ("tensorrt-rtx", "fp16", "sm75"),
        ("tensorrt-rtx", "fp16", "sm89"),
    ]
    assert manifest.verdict == "verified"
    assert set(printed["reports"]) == {
        "model.cpu.onnx on onnx-cpu",
        "model.fp16.onnx on onnx-cpu",
        "torch/model.safetensors on torch",
    }
    assert all(report["passed"] for report in printed["reports"].values())
    said = "\n".join(printed["skipped"])
    assert "--target tensorrt needs the package tensorrt" in said
    for sm in ("sm75", "sm89"):
        assert f"model.tensorrt-rtx.{sm}.fp16.p2.engine is not gated here" in said
    assert [engine["sm"] for engine in printed["engines"]] == ["sm75", "sm89"]


def test_the_manifest_says_what_an_engine_is_for(made: tuple[Path, dict[str, Any]]) -> None:
    path, _ = made
    manifest = open_bundle(path).manifest
    graph = next(a for a in manifest.artifacts if a.precision == "fp16" and a.target == "onnx")
    for artifact in (a for a in manifest.artifacts if a.target == "tensorrt-rtx"):
        assert artifact.profiles == PROFILES and artifact.verdict == "unverified"
        assert artifact.built_with == f"tensorrt_rtx {trt.__version__}" and artifact.platform == "Linux-x86_64"
        assert (artifact.inputs, artifact.outputs) == (graph.inputs, graph.outputs)
        assert (
            artifact.file in manifest.files and sha256_of(path / artifact.file) == manifest.files[artifact.file].sha256
        )


def test_what_cannot_run_here_is_passed_over_by_name(made: tuple[Path, dict[str, Any]]) -> None:
    path, _ = made
    with load(path, threads=1) as model:
        assert model.status().engine == "onnx-cpu" and model.artifact.precision == "fp32"
    with load(path, threads=1, engine=["tensorrt-rtx", "onnx-cpu"], allow_unverified=True) as model:
        answers = model.predict(list(SAMPLES))
        status = model.status()
    assert {answer.engine for answer in answers} == {"onnx-cpu"}
    assert [one.state for one in status.engines[:2]] == ["refused", "refused"]
    assert "no NVIDIA driver" in (status.engines[0].reason or "") or "no GPU" in (status.engines[0].reason or "")


def test_every_engine_of_the_bundle_that_runs_here_answers_alike(made: tuple[Path, dict[str, Any]]) -> None:
    path, _ = made
    logits = {}
    for name, options in {
        "fp32": {"engine": "onnx-cpu", "precision": "fp32"},
        "fp16": {"engine": "onnx-cpu", "precision": "fp16"},
        "torch": {"engine": "torch"},
    }.items():
        with load(path, threads=1, **options) as model:  # type: ignore[arg-type]
            logits[name] = model.logits(list(SAMPLES))
    for name, rows in logits.items():
        for row, want in zip(rows, logits["fp32"], strict=True):
            assert row == pytest.approx(want, abs=2e-2), name


def test_a_damaged_engine_is_noticed(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import shutil

    path = Path(shutil.copytree(made[0], tmp_path / "bundle"))
    engine = path / "model.tensorrt-rtx.sm75.fp16.p2.engine"
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    with pytest.raises(BundleError, match=r"sm75\.fp16\.p2\.engine is damaged"):
        open_bundle(path)  # `load` reads an engine's file where that engine may run
    engine.write_bytes(data[:1000])
    with pytest.raises(BundleError, match="has 1000 bytes"):
        load(path, verify=False)
    engine.rename(path / "other.engine")
    with pytest.raises(BundleError, match="lacks the file"):
        load(path, verify=False)


def test_int8_is_calibrated_gated_and_built(checkpoint: Bundles, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in SAMPLES * 4))
    result = export_checkpoint(
        checkpoint(NAME),
        tmp_path / "bundle",
        ExportOptions(
            target="tensorrt-rtx",
            precision="int8",
            archs=["sm75", "sm89"],
            profiles=PROFILES[:1],
            calibrate=str(texts),
            threads=1,
        ),
    )
    graph, *engines = result.bundle.manifest.artifacts
    assert (graph.precision, [(e.precision, e.sm) for e in engines]) == ("int8", [("int8", "sm75"), ("int8", "sm89")])
    assert graph.quantized and all(engine.quantized == graph.quantized for engine in engines)
    assert set(result.reports) == {"model.int8.onnx on onnx-cpu"}
    assert not list(tmp_path.glob("bundle/.int8*")) and not (tmp_path / "bundle" / "model.fp16.onnx").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--target", "tensorrt-rtx", "--arch", "sm75", "--precision", "fp32"], 2, "no fp32 on sm75"),
        (["--target", "tensorrt-rtx", "--arch", "sm75", "--precision", "bf16"], 2, "Turing has no bf16"),
        (["--target", "tensorrt-rtx", "--precision", "int8"], 2, "needs texts to find its scales on: --calibrate FILE"),
        (["--target", "tensorrt-rtx", "--calibrate", "{}/profiles.json"], 2, "--calibrate is for --precision int8"),
        (["--target", "tensorrt"], 4, "needs the package tensorrt: pip install 'nopad[tensorrt]'"),
        (["--target", "onnx", "--arch", "sm75"], 2, "--arch is for engines"),
        (["--target", "tensorrt-rtx", "--exporter", "optimum"], 3, "--exporter nopad"),
        (["--target", "tensorrt-rtx", "--profiles", "{}/absent.json"], 3, "cannot read {}/absent.json"),
        (["--target", "tensorrt-rtx", "--profiles", "{}/upside.json"], 3, "profile 1: tokens: min 128, opt 64"),
        (
            ["--target", "tensorrt-rtx", "--arch", "sm75", "--profiles", "{}/long.json"],
            2,
            "max_position_embeddings 1024",
        ),
        (["--target", "tensorrt-rtx", "--arch", "sm75", "--hardware-compatible"], 3, "TensorRT-RTX"),
    ],
)
def test_bad_options_leave_nothing(
    options: list[str], code: int, words: str, checkpoint: Bundles, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "profiles.json").write_bytes(write_profiles(PROFILES))
    long = dataclasses.replace(PROFILES[1], tokens=(64, 2048, 2048), longest=(1, 2048, 2048))
    (tmp_path / "long.json").write_bytes(write_profiles([long]))
    upside = json.loads(write_profiles(PROFILES))
    upside["profiles"][0]["tokens"] = [128, 64, 256]
    (tmp_path / "upside.json").write_text(json.dumps(upside))
    before = sorted(tmp_path.iterdir())
    arguments = [option.replace("{}", str(tmp_path)) for option in options]
    assert run(["export", str(checkpoint(NAME)), "--output", str(tmp_path / "made"), *arguments]) == code
    err = capsys.readouterr().err
    assert words.replace("{}", str(tmp_path)) in err and "Traceback" not in err, err
    assert sorted(tmp_path.iterdir()) == before


def test_the_gate_of_an_engine_that_cannot_run_here_is_an_error(
    made: tuple[Path, dict[str, Any]], checkpoint: Bundles, capsys: Capture
) -> None:
    command = ["parity", str(made[0]), "--reference", str(checkpoint(NAME)), "--engine", "tensorrt-rtx", "--quiet"]
    before = (made[0] / "manifest.json").read_bytes()
    assert run(command) == 4
    assert "driver" in capsys.readouterr().err
    assert (made[0] / "manifest.json").read_bytes() == before
    with pytest.raises(EnvironmentProblem):
        load(made[0], engine="tensorrt-rtx", allow_unverified=True)
