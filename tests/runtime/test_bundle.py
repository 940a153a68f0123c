"""The bundle folder: any change is noticed, newer formats are refused, nothing outside the folder is opened."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.bundle import open_bundle, record_calibration, record_parity, write_manifest
from nopad.runtime.errors import BundleError, IntegrityError, NewerVersionError, UnverifiedError
from nopad.runtime.manifest import FORMAT_VERSION, Calibration, to_json
from nopad.runtime.predictor import load

NAME = "modernbert-single-mean"
FILES = ("manifest.json", "model.cpu.onnx", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def own(bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bundle(NAME), tmp_path / "bundle"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and update its digest."""
    path = folder / "manifest.json"
    raw = json.loads(path.read_text("utf-8"))
    del raw["manifest_sha256"]
    change(raw)
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    raw["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(raw), "utf-8")


def test_these_are_all_files(own: Path) -> None:
    assert {path.name for path in own.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_noticed(name: str, own: Path) -> None:
    path = own / name
    clean = path.read_bytes()
    for place in (0, len(clean) // 3, len(clean) // 2, len(clean) - 2):
        for bit in (1, 64):
            spoiled = bytearray(clean)
            spoiled[place] ^= bit
            path.write_bytes(spoiled)
            # (In white space of the manifest's JSON a flip is caught as damage too: it is no white space any more.)
            with pytest.raises(BundleError, match=name):
                load(own)
    path.write_bytes(clean)
    assert open_bundle(own).manifest.verdict == "verified"


@pytest.mark.parametrize("name", FILES[1:])
def test_a_truncated_file_is_noticed_even_without_digests(name: str, own: Path) -> None:
    data = (own / name).read_bytes()
    (own / name).write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match=f"{name} has {len(data) - 1} bytes, the manifest says {len(data)}"):
        load(own, verify=False)


def test_without_digests_a_flipped_bit_passes_the_door(own: Path) -> None:
    path = own / "tokenizer_config.json"
    path.write_bytes(path.read_bytes().replace(b"true", b"trUe").replace(b"[UNK]", b"[uNK]"))
    assert open_bundle(own, verify=False).path == own
    with pytest.raises(IntegrityError, match="SHA-256"):
        open_bundle(own)


def test_only_files_that_are_opened_are_read(tmp_path: Path, openvino_bundle: Path) -> None:
    several = tmp_path / "several"
    shutil.copytree(openvino_bundle, several)
    files = {artifact.precision: several / artifact.file for artifact in open_bundle(several).manifest.artifacts}
    data = files["int8"].read_bytes()
    files["int8"].write_bytes(data[:-9] + bytes(byte ^ 1 for byte in data[-9:]))
    with load(several, precision="fp32", allow_unverified=True) as model:
        assert model.status().engine == "openvino"
    # The damaged file itself is refused, though others could answer in its place.
    with pytest.raises(IntegrityError, match=files["int8"].name):
        load(several, precision="int8", allow_unverified=True)
    with pytest.raises(IntegrityError, match=files["int8"].name):
        open_bundle(several)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(name: str, own: Path) -> None:
    (own / name).unlink()
    with pytest.raises(BundleError, match=f"lacks the file {name}"):
        load(own)


def test_a_newer_format_is_refused_with_both_versions(own: Path) -> None:
    rewrite(own, lambda raw: raw.update(format_version=FORMAT_VERSION + 1, created={"nopad": "9.9"}))
    with pytest.raises(NewerVersionError, match=rf"version {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}.*nopad 9\.9"):
        load(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.update(task="summarization"), "summarization"),
        (lambda raw: raw.update(problem_type="ranking"), "ranking"),
        (lambda raw: raw["artifacts"][0].update(layout="sparse"), "sparse"),
        (lambda raw: raw.pop("max_length"), "max_length"),
        (lambda raw: raw.pop("artifacts"), "artifacts"),
        (lambda raw: raw.update(files=[]), "malformed"),
        (lambda raw: raw.update(tokenizer="../../etc/passwd"), "etc/passwd"),
        (lambda raw: raw["artifacts"][0].update(file="/etc/passwd"), "/etc/passwd"),
        (lambda raw: raw["artifacts"][0].update(file="missing.onnx"), "missing.onnx"),
        (lambda raw: raw["files"].update({"..\\x": {"sha256": "", "bytes": 0}}), "x"),
        (lambda raw: raw["files"].update({"../x": {"sha256": "", "bytes": 0}}), r"\.\./x"),
        (lambda raw: raw["files"].update({"a\0b": {"sha256": "", "bytes": 0}}), "not a listed file"),
        (lambda raw: raw.pop("format_version"), "format_version"),
        (lambda raw: raw.update(format_version=True), "format_version"),
        (lambda raw: raw.update(format_version=-1), "-1"),
        (lambda raw: raw.update(max_length="512"), "max_length is '512'"),
        (lambda raw: raw.update(calibration=[1.5]), "calibration"),
        (lambda raw: raw.update(calibration={}), "temperature"),
        (lambda raw: raw.update(calibration={"temperature": "1.5"}), "temperature is '1.5'"),
        (lambda raw: raw.update(calibration={"temperature": True}), "temperature is True"),
        (lambda raw: raw.update(calibration={"temperature": -1.5}), "temperature must be a positive number"),
        (lambda raw: raw.update(calibration={"temperature": 1.5, "thresholds": [0.5]}), "each of the 3 labels"),
        (lambda raw: raw.update(calibration={"temperature": 1.5, "thresholds": ["a", "b", "c"]}), "malformed"),
        (lambda raw: raw.update(calibration={"temperature": 1.5, "abstain_below": 7}), "abstain_below must be"),
        (lambda raw: raw.update(calibration={"temperature": 1.5, "found": []}), "found"),
        (lambda raw: raw.update(max_length=-1), "max_length"),
        (lambda raw: raw.update(pad_token_id=None), "pad_token_id"),
        (lambda raw: raw.update(labels=[]), "no labels"),
        (lambda raw: raw.update(labels=["a", "a", "b"]), "distinct"),
        (lambda raw: raw.update(labels=["a", 1, None]), "distinct"),
        (lambda raw: raw["artifacts"][0].update(token_multiple=0), "token_multiple"),
        (lambda raw: raw["artifacts"][0].update(inputs=["input_ids"]), "inputs"),
        (lambda raw: raw["artifacts"][0].update(parity=[]), "parity"),
        (
            lambda raw: raw["artifacts"][0].update(
                profiles=[dict.fromkeys(("tokens", "sequences", "longest"), [64, 32, 64])]
            ),
            "min 64, opt 32",
        ),
        (lambda raw: raw["artifacts"][0].update(profiles=["wide"]), "malformed"),
        (lambda raw: raw["artifacts"][0].update(target=None), "target"),
    ],
)
def test_a_malformed_manifest_is_refused(change: Callable[[dict[str, Any]], None], words: str, own: Path) -> None:
    (own.parent / "x").write_bytes(b"")
    rewrite(own, change)
    with pytest.raises(BundleError, match=words):
        load(own)


def test_a_link_out_of_the_bundle_is_refused(own: Path) -> None:
    outside = own.parent / "outside.onnx"
    (own / "model.cpu.onnx").rename(outside)
    (own / "model.cpu.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"model\.cpu\.onnx points outside"):
        load(own)


def test_the_labels_must_be_as_many_as_the_logits(own: Path) -> None:
    rewrite(own, lambda raw: raw.update(labels=["a", "b"]))
    with load(own, threads=1) as model, pytest.raises(BundleError, match="has 3 labels, the manifest names 2"):
        model.predict(["a film"])


@pytest.mark.parametrize("content", ["[]", "{", '{"truncation_side": "top"}', '{"model_input_names": 1}'])
def test_a_tokenizer_configuration_is_read_only_if_listed_and_sound(content: str, own: Path) -> None:
    (own / "tokenizer_config.json").write_text(content)
    with pytest.raises(BundleError, match="tokenizer_config.json"):
        load(own, verify=False)
    rewrite(own, lambda raw: raw["files"].pop("tokenizer_config.json"))
    with load(own, threads=1) as model:  # a file that nobody vouches for says nothing
        assert model.predict(["a film"])[0].label in model.labels


def test_the_left_end_is_cut_where_the_tokenizer_says_so(own: Path) -> None:
    path = own / "tokenizer_config.json"
    text = json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"})
    path.write_text(text)
    record = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
    rewrite(own, lambda raw: raw["files"].update({"tokenizer_config.json": record}))
    with load(own, threads=1) as model:
        (tokens,) = model.encode(["a " * 3000 + "splendid"])
    assert not isinstance(tokens, Exception) and "".join(tokens.pieces).endswith("splendid[SEP]")


def test_unknown_keys_are_kept(own: Path) -> None:
    rewrite(own, lambda raw: raw.update(owner={"team": "search"}))
    opened = open_bundle(own)
    assert opened.manifest.extra == {"owner": {"team": "search"}}
    record_parity(opened, "model.cpu.onnx", "onnx-cpu", {"passed": True, "rows": []})
    assert json.loads((own / "manifest.json").read_text("utf-8"))["owner"] == {"team": "search"}
    assert open_bundle(own).manifest.verdict == "verified"


def test_what_was_recorded_meanwhile_is_kept(own: Path) -> None:
    opened = open_bundle(own)  # by two commands, which take minutes
    calibration = Calibration(temperature=1.5)
    record_calibration(opened, calibration)
    record_parity(opened, "model.cpu.onnx", "onnx-cpu", {"passed": True, "rows": []})
    record_calibration(opened, calibration)
    manifest = open_bundle(own).manifest
    assert manifest.calibration == calibration
    assert manifest.artifacts[0].parity["onnx-cpu"] == {"passed": True, "rows": []}
    rewrite(own, lambda raw: raw.update(labels=["another", "model's", "labels"]))
    for record in (
        lambda: record_calibration(opened, None),
        lambda: record_parity(opened, "model.cpu.onnx", "onnx-cpu", {"passed": False, "rows": []}),
    ):
        with pytest.raises(BundleError, match="was replaced meanwhile, so nothing was recorded"):
            record()
    assert open_bundle(own).manifest.calibration == calibration


@pytest.mark.parametrize(
    "parity",
    [
        {},
        {"onnx-cpu": {"passed": False, "rows": []}},
        {"onnx-cpu": {"passed": "yes", "rows": []}},
        {"onnx-cuda": {"passed": True, "rows": []}},  # another engine's kernels prove nothing about this one's
    ],
)
def test_only_a_passed_gate_opens_without_being_told(parity: Any, own: Path) -> None:
    opened = open_bundle(own)
    artifact = dataclasses.replace(opened.manifest.artifacts[0], parity=parity)
    # The verdict that the file states counts for nothing: it follows from the gate's report.
    write_manifest(own, dataclasses.replace(opened.manifest, artifacts=(artifact,)))
    with pytest.raises(UnverifiedError, match=r"nopad parity.*allow_unverified=True"):
        load(own)
    with load(own, allow_unverified=True, threads=1) as model:
        assert model.predict(["a film"])[0].label in model.labels


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "no manifest.json"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")), "nopad export"),
        (lambda folder: folder.write_text("x"), "does not exist"),
        (lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text("[1]")), "not a nopad manifest"),
        (lambda folder: (folder.mkdir(), (folder / "manifest.json").write_bytes(b"\xff{}")), "damaged"),
        (lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text("[" * 100_000)), "damaged"),
        (lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text("1" * 5000)), "damaged"),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "manifest.json").write_text('{"format_version": 1, "x": "\\ud800"}'),
            ),
            "manifest_sha256",
        ),
        (lambda folder: (folder / "manifest.json").mkdir(parents=True), "cannot read .*Is a directory"),
    ],
)
def test_what_is_no_bundle_is_said_to_be_none(make: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    make(folder)
    with pytest.raises(BundleError, match=words):
        load(folder)


def test_the_manifest_tells_the_truth(own: Path, checkpoint: Callable[[str], Path]) -> None:
    raw = json.loads((own / "manifest.json").read_text("utf-8"))
    assert set(raw["files"]) == set(FILES[1:])
    for name, record in raw["files"].items():
        data = (own / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    source = checkpoint(NAME)
    for name, digest in raw["source"]["sha256"].items():
        assert digest == hashlib.sha256((source / name).read_bytes()).hexdigest()
    assert set(raw["source"]["sha256"]) == {"config.json", "model.safetensors"}
    assert (raw["task"], raw["problem_type"]) == ("text-classification", "single_label_classification")
    assert raw["labels"] == ["class 0", "class 1", "class 2"]
    assert (raw["pooling"], raw["max_length"], raw["verdict"]) == ("mean", 1024, "verified")
    assert raw["architecture"]["model_type"] == "modernbert" and raw["architecture"]["local_layers"] == [1, 2]
    (artifact,) = raw["artifacts"]
    assert (artifact["target"], artifact["precision"], artifact["layout"]) == ("cpu", "fp32", "packed")
    report = artifact["parity"]["onnx-cpu"]
    assert report["passed"] and len(report["rows"]) > 60
    assert {"transformers", "torch"} <= set(report["versions"])
    assert {"nopad", "torch", "transformers", "onnx", "onnxruntime", "time"} <= set(raw["created"])
    assert to_json(open_bundle(own).manifest) == (own / "manifest.json").read_bytes()
