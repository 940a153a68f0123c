"""`tuning.json`: written beside the bundle, followed by `load` on the machine and the versions that it is of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from several_files import AMD, XEON, on_cpu, stand_in, with_files

from nopad.runtime import tune_file
from nopad.runtime.atomic import check_output, sha256_of
from nopad.runtime.bundle import MANIFEST, Bundle, open_bundle, record_files, write_manifest
from nopad.runtime.errors import OutputError
from nopad.runtime.predictor import Model, load
from nopad.runtime.tune_file import TUNING, Tuned, machine_key, read_entries, versions_of, write_entry

KINDS = (("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with three files on an AMD with bf16, where every engine answers at once; nothing was said yet."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    on_cpu(monkeypatch, AMD)
    stand_in(monkeypatch, lambda *_: 0.0)
    tune_file._ignore.cache_clear()
    return with_files(tmp_path / "bundle", *KINDS)


def entry_of(bundle: Bundle, **changes: Any) -> Tuned:
    """What `nopad tune --precision auto` would write here."""
    entry = Tuned(
        machine=machine_key(bundle, lambda: None),
        cpu="AMD EPYC",
        cores=2,
        manifest=sha256_of(bundle.path / MANIFEST),
        versions=versions_of("openvino"),
        engine="openvino",
        file="model.openvino.bf16.onnx",
        precision="bf16",
        token_budget=300,
        threads=3,
        asked="auto",
        tokens_per_second=1234.5,
        date="2026-11-26",
    )
    return dataclasses.replace(entry, **changes)


def facts(model: Model) -> tuple[str, str, int, int | None]:
    with model:
        return model.status().engine, model.artifact.precision, model.token_budget, model.threads


def test_load_follows_the_entry_of_this_machine_and_arguments_win_one_by_one(opened: Bundle) -> None:
    assert facts(load(opened.path)) == ("onnx-cpu", "fp32", 2048, None)
    assert write_entry(opened, entry_of(opened)) == opened.path / TUNING
    tuned = ("openvino", "bf16", 300, 3)
    assert facts(load(opened.path)) == tuned  # every digest is checked
    assert facts(load(opened.path, threads=1)) == (*tuned[:3], 1)
    assert facts(load(opened.path, token_budget=64)) == (*tuned[:2], 64, 3)
    for same in ({"engine": "openvino"}, {"precision": "bf16"}, {"precision": "auto"}, {"file": tuned_file(opened)}):
        assert facts(load(opened.path, **same)) == tuned  # type: ignore[arg-type]
    assert facts(load(opened.path, engine="onnx-cpu")) == ("onnx-cpu", "fp32", 2048, None)
    assert facts(load(opened.path, precision="fp32")) == ("onnx-cpu", "fp32", 2048, None)
    assert facts(load(opened.path, file="model.cpu.fp32.onnx", threads=2)) == ("onnx-cpu", "fp32", 2048, 2)


def tuned_file(bundle: Bundle) -> str:
    return entry_of(bundle).file


def test_a_failing_winner_is_followed_by_the_others(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    write_entry(opened, entry_of(opened))
    with load(opened.path) as model:
        order = [(engine.name, engine.precision) for engine in model.status().engines]
    assert order == [("openvino", "bf16"), ("onnx-cpu", "fp32"), ("openvino", "fp32")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"machine": "intel-xeon-12345678-2"}, "was tuned for another machine (AMD EPYC with 2 cores)"),
        ({"manifest": "0" * 64}, "has changed since it was tuned"),
        (
            {"versions": "nopad 0.0.1, openvino 2020.1"},
            "was tuned with nopad 0.0.1, openvino 2020.1, and here is nopad",
        ),
        ({"engine": "warp"}, "unknown engine 'warp'"),
        ({"token_budget": 0}, "token_budget 0"),
        ({"threads": "many"}, "threads 'many'"),
    ],
)
def test_an_entry_that_does_not_hold_is_ignored_and_that_is_said_once(
    changes: dict[str, Any], words: str, opened: Bundle, capsys: Capture
) -> None:
    write_entry(opened, entry_of(opened, **changes))
    for _ in range(3):
        assert facts(load(opened.path)) == ("onnx-cpu", "fp32", 2048, None)
    said = capsys.readouterr().err
    assert words in said and said.count("nopad tune measures anew") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 9, "entries": []}', b'{"entries": [1]}'])
def test_a_damaged_file_is_as_none(content: bytes, opened: Bundle, capsys: Capture) -> None:
    (opened.path / TUNING).write_bytes(content)
    assert facts(load(opened.path)) == ("onnx-cpu", "fp32", 2048, None)
    assert "tuning.json cannot be read" in capsys.readouterr().err
    write_entry(opened, entry_of(opened))
    assert facts(load(opened.path))[0] == "openvino"


def test_machines_live_side_by_side(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    write_entry(opened, entry_of(opened))
    write_entry(opened, entry_of(opened, token_budget=400))  # in place of the first
    on_cpu(monkeypatch, XEON)
    write_entry(opened, entry_of(opened, precision="fp32", file="model.openvino.fp32.onnx", token_budget=700))
    assert [entry.token_budget for entry in read_entries(opened)] == [400, 700]
    assert facts(load(opened.path)) == ("openvino", "fp32", 700, 3)
    on_cpu(monkeypatch, AMD)
    assert facts(load(opened.path)) == ("openvino", "bf16", 400, 3)


def test_a_folder_that_cannot_be_written_is_tuned_in_the_cache(
    opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nopad.runtime.bundle.DEFAULT_BUNDLE", opened.path)
    monkeypatch.setattr(tune_file, "DEFAULT_BUNDLE", opened.path)  # part of the package: never written to
    path = write_entry(opened, entry_of(opened))
    assert path.is_relative_to(tmp_path / "home" / ".cache" / "nopad") and not (opened.path / TUNING).exists()
    assert facts(load()) == ("openvino", "bf16", 300, 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert facts(load()) == ("onnx-cpu", "fp32", 2048, None)
    with pytest.raises(OutputError, match="neither .* nor the cache folder can be written"):
        write_entry(opened, entry_of(opened))


def test_the_bundle_stays_a_bundle(opened: Bundle) -> None:
    write_entry(opened, entry_of(opened))
    assert TUNING not in record_files(opened.path)
    write_manifest(opened.path, dataclasses.replace(opened.manifest, files=record_files(opened.path)))
    assert open_bundle(opened.path).manifest.files.keys() == opened.manifest.files.keys()
    assert json.loads((opened.path / TUNING).read_text())["format_version"] == 1
    from nopad.export.bundle import _own_files

    check_output(opened.path, MANIFEST, _own_files(opened.path))  # an export may replace it
