"""What cannot be exported is refused by name, and nothing half-written stays."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import nopad.export.bundle
import nopad.export.bundle_files
from nopad.export.graph.onnx import export_graph
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import run
from nopad.runtime.errors import OutputError, UnverifiedError
from nopad.runtime.predictor import load

Bundles = Callable[[str], Path]
NAME = "modernbert-single-mean"


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    data = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(data[: len(data) // 2])


def another_tokenizer(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    raw["model"]["vocab"] |= {f"extra {i}": len(raw["model"]["vocab"]) + i for i in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(raw), "utf-8")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changes))

    return change


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def file(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def vocabulary(content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        no_tokenizer(folder)
        (folder / "vocab.txt").write_bytes(content)

    return change


BAD: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no tokenizer": (no_tokenizer, ("no tokenizer", "AutoTokenizer")),
    "broken tokenizer": (broken_tokenizer, ("tokenizer.json is damaged",)),
    "another model's tokenizer": (another_tokenizer, ("470 entries", "vocab_size is 420")),
    "cut tokenizer configuration": (file("tokenizer_config.json", b'{"a": 1'), ("tokenizer_config.json",)),
    "tokenizer configuration of another kind": (file("tokenizer_config.json", b"[]"), ("tokenizer_config.json",)),
    "vocabulary that is no text": (vocabulary(b"[UNK]\n\xff\xfe\n"), ("vocab.txt is damaged",)),
    "empty vocabulary": (vocabulary(b"\n"), ("vocab.txt is empty",)),
    "pickled weights": (pickled, ("pytorch_model.bin", "pickle", "safe_serialization=True")),
    "no weights": (no_weights, ("no model.safetensors",)),
    "truncated weights": (truncated, ("model.safetensors is damaged or cut short",)),
    "no config": (no_config, ("no config.json",)),
    "another's model_type": (changed_config(model_type="roberta"), ("has no weights for text-classification",)),
    "unknown model_type": (changed_config(model_type="own_encoder"), ("cannot open", "own_encoder")),
    "another size": (changed_config(intermediate_size=128), ("mlp.Wi.weight", "shape")),
    "scaled positions": (changed_config(rope_scaling={"rope_type": "mrope"}), ("'mrope'", "not supported")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_refused(
    name: str, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD[name]
    folder = shutil.copytree(checkpoint(NAME), tmp_path / "checkpoint")
    spoil(folder)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    assert run(["export", str(folder), "--output", str(outputs / "bundle"), "--quiet"]) == 3
    message = capsys.readouterr().err
    assert message.startswith("nopad: ") and "Traceback" not in message
    for word in words:
        assert word in message
    assert list(outputs.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-length", "5000"], 2, "outside 3..1024"),
        (["--precision", "int4"], 2, "fp32"),
        (["--target", "coreml"], 2, "onnx"),
        (["--task", "rerank"], 3, "one label"),
        (["--task", "fill-mask"], 3, "not fine-tuned for fill-mask"),
        (["--exporter", "optimum", "--precision", "fp16"], 3, "--exporter nopad"),
    ],
)
def test_a_bad_option_is_refused(
    options: list[str], code: int, words: str, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(checkpoint(NAME)), "--output", str(tmp_path / "b"), "--quiet", *options]) == code
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_optimum_without_its_package_says_how_to_get_it(
    checkpoint: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)  # as if it were not installed
    command = ["export", str(checkpoint(NAME)), "--exporter", "optimum", "--output", str(tmp_path / "b"), "--quiet"]
    assert run(command) == 4
    assert "nopad[optimum]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not transformers.__version__.startswith("4."), reason="transformers 5 reads these keys")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", ["sliding_attention"] * 3 + ["full_attention"]),
        ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 20_000.0}}),
        ("rope_parameters", {"sliding_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("sliding_window", 40),
    ],
)
def test_a_transformers_that_computes_another_model_is_no_reference(
    key: str, value: Any, checkpoint: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(checkpoint(NAME), tmp_path / "checkpoint")
    changed_config(**{key: value})(folder)
    assert run(["export", str(folder), "--output", str(tmp_path / "bundle"), "--quiet"]) == 3
    message = capsys.readouterr().err
    assert key in message and "use transformers 5" in message
    assert not (tmp_path / "bundle").exists()


def test_a_foreign_folder_is_left_alone_and_a_bundle_is_replaced(
    checkpoint: Bundles, bundle: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis, old = tmp_path / "thesis", tmp_path / "bundle"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("1")
    source = str(checkpoint(NAME))
    assert run(["export", source, "--output", str(thesis), "--quiet"]) == 3
    assert "thesis" in capsys.readouterr().err and [p.name for p in thesis.iterdir()] == ["chapter.txt"]
    (thesis / "manifest.json").write_text('{"name": "a web application"}')
    assert run(["export", source, "--output", str(thesis), "--quiet"]) == 3
    assert "holds files that nopad does not replace (chapter.txt, manifest.json)" in capsys.readouterr().err
    assert (thesis / "chapter.txt").read_text() == "1"
    shutil.copytree(bundle(NAME), old)
    (old / "notes.txt").write_text("mine")
    assert run(["export", source, "--output", str(old), "--no-parity", "--quiet"]) == 3
    assert "(notes.txt)" in capsys.readouterr().err and open_bundle(old).manifest.verdict == "verified"
    (old / "notes.txt").unlink()
    assert run(["export", source, "--output", str(old), "--no-parity", "--quiet"]) == 0
    assert open_bundle(old).manifest.verdict == "unverified"


def test_a_bundle_that_fails_the_gate_is_marked_and_refused(
    checkpoint: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = nopad.export.bundle_files.cast

    def off(encoder: Any, precision: Any) -> Any:
        with torch.no_grad():
            encoder.classifier.bias += 0.01
        return honest(encoder, precision)

    monkeypatch.setattr(nopad.export.bundle_files, "cast", off)
    output = tmp_path / "bundle"
    assert run(["export", str(checkpoint(NAME)), "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert "unverified" in printed and "parity FAILED" in printed
    with pytest.raises(UnverifiedError, match="nopad parity"):
        load(output)
    assert run(["predict", str(output), "a film"]) == 3
    assert run(["parity", str(output), "--reference", str(checkpoint(NAME)), "--quiet"]) == 1
    assert run(["inspect", str(output)]) == 0
    assert "unverified" in capsys.readouterr().out
    with load(output, allow_unverified=True, threads=1) as model:
        assert model.predict(["a film"])[0].label in model.labels


PROGRAM = "import sys; from nopad.runtime.cli import main; main(sys.argv[1:])"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: the write fails as it does on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(
    checkpoint: Bundles,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nopad.export.bundle_files, "export_graph", export_graph)  # not a copy of its file
    source = str(checkpoint(NAME))  # made before the disk is full
    request.getfixturevalue("full_disk")
    assert run(["export", source, "--output", str(tmp_path / "bundle")]) == 4
    said = capsys.readouterr().err
    assert "disk is full" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "stop"),
    [("exporting the graph", signal.SIGINT), pytest.param("parity: ", signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_ctrl_c_leaves_nothing(step: str, stop: signal.Signals, checkpoint: Bundles, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "export", str(checkpoint(NAME)), "--output", str(tmp_path / "bundle")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next((line for line in process.stderr if step in line), "")
        assert said, "the step was never announced"
        assert list(tmp_path.glob(".bundle.*.partial"))  # it was in the middle of it
        time.sleep(0.2)
        process.send_signal(stop)
        rest = process.stderr.read()
        assert process.wait(timeout=120) == 128 + stop, rest
    assert ("interrupted" if stop == signal.SIGINT else "terminated") in rest and "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_do_not_write_one_bundle(checkpoint: Bundles, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "export", str(checkpoint(NAME)), "--output", str(tmp_path / "bundle")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert first.stderr is not None
    for line in first.stderr:
        if "exporting" in line:
            break
    with pytest.raises(OutputError, match="another process is writing"):
        nopad.export.bundle.export_checkpoint(checkpoint(NAME), tmp_path / "bundle")
    first.communicate(timeout=300)
    assert first.returncode == 0
    assert open_bundle(tmp_path / "bundle").manifest.verdict == "verified"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
