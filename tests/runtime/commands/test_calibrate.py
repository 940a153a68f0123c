"""`nopad calibrate`: what it finds, prints and writes, who follows it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from nopad.model.head import sigmoid, softmax
from nopad.runtime.atomic import sha256_of
from nopad.runtime.bundle import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT, MANIFEST, open_bundle, write_manifest
from nopad.runtime.cli import run
from nopad.runtime.errors import NewerVersionError
from nopad.runtime.manifest import Calibration, from_json
from nopad.runtime.predictor import load
from nopad.runtime.tune_file import Tuned, read_entries, write_entry

Bundles = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
WORDS = (
    "a dull film",
    "splendid",
    "not bad",
    "so so",
    "an hour I want back",
    "see it",
    "I fell asleep",
    "a masterpiece",
)
TEXTS = [f"{WORDS[i % 8]}, {WORDS[i // 8 % 8]} and {WORDS[i // 64]}" for i in range(400)]
TRUE = 2.5  # the temperature by which labels are drawn


def logits_of(folder: Path, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with load(folder, threads=1) as model:
        return np.stack(model.logits(texts))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with labels that are drawn from the embedded model's own probabilities at another temperature."""
    path = tmp_path_factory.mktemp("rows") / "held out.jsonl"
    sure = softmax(logits_of(DEFAULT_BUNDLE, TEXTS) / np.float32(TRUE))[:, 1]
    labels = (np.random.default_rng(0).random(len(sure)) < sure).astype(int)
    path.write_text(
        "".join(json.dumps({"text": t, "label": int(n)}) + "\n" for t, n in zip(TEXTS, labels, strict=True))
    )
    return path


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """A copy of the embedded bundle, to be calibrated."""
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))


@pytest.fixture
def several(embedded: Path) -> Path:
    """The same as a model whose texts may have several labels."""
    manifest = open_bundle(embedded).manifest
    write_manifest(embedded, dataclasses.replace(manifest, problem_type="multi_label_classification"))
    return embedded


def calibrated(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """Run it with --json; the object that it prints."""
    assert run(["calibrate", *map(str, arguments), "--threads", "1", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (line,) = out.splitlines()
    value: dict[str, Any] = json.loads(line)
    return value


def refused(capsys: Capture, code: int, *arguments: object) -> str:
    """Run it where it must be refused; its message."""
    assert run(["calibrate", *map(str, arguments), "--threads", "1", "--quiet"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_pairs_of_texts(embedded: Path, tmp_path: Path, capsys: Capture) -> None:
    pairs = [(text.split(", ")[0], text.split(", ")[1]) for text in TEXTS]
    with load(embedded, threads=1) as model:
        sure = softmax(np.stack(model.logits(pairs)) / np.float32(TRUE))[:, 1]
    labels = np.random.default_rng(0).random(len(sure)) < sure
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": a, "other": b, "label": int(n)} for (a, b), n in zip(pairs, labels, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = calibrated(capsys, embedded, "--data", path, "--second-field", "other", "--dry-run")
    assert found["rows"] == len(TEXTS) and abs(found["temperature"] / TRUE - 1) < 0.3
    assert "8 different texts are too few" in refused(capsys, 3, embedded, "--data", path, "--dry-run")
    assert "'third'" in refused(capsys, 3, embedded, "--data", path, "--second-field", "third")


def test_the_temperature_is_found_written_and_followed(embedded: Path, rows: Path, capsys: Capture) -> None:
    with load(embedded, threads=1) as model:
        before = model.predict(TEXTS, return_logits=True)
    shown = calibrated(capsys, embedded, "--data", rows)
    assert shown["written"] is True and shown["thresholds"] is None
    assert shown["temperature"] == pytest.approx(TRUE, rel=0.25)  # of 400 rows
    assert (shown["rows"], shown["engine"], shown["precision"]) == (400, "onnx-cpu", "fp32")
    assert shown["data"] == "held out.jsonl" and shown["data_sha256"] == sha256(rows.read_bytes()).hexdigest()
    for figure in ("nll", "ece", "brier"):
        assert shown["after"][figure] < shown["before"][figure]
    assert shown["after"]["accuracy"] == shown["before"]["accuracy"]
    assert sum(one["count"] for one in shown["bins"]["after"]) == shown["held_out_rows"] < 400
    with load(embedded, threads=1) as model:
        after = model.predict(TEXTS, return_logits=True)
    for old, new in zip(before, after, strict=True):
        assert new.label == old.label and list(new.scores) == list(old.scores)
        assert sum(new.scores.values()) == pytest.approx(1)
        assert old.logits is not None and new.logits is not None and (new.logits == old.logits).all()
        assert list(new.scores.values()) == pytest.approx(
            sorted(softmax(new.logits / np.float32(shown["temperature"])), reverse=True)
        )
    # Once more, from its own logits again.
    assert calibrated(capsys, embedded, "--data", rows)["temperature"] == shown["temperature"]


def test_the_manifest_tells_how_it_was_found_and_inspect_shows_it(
    embedded: Path, rows: Path, wide: None, capsys: Capture
) -> None:
    shown = calibrated(capsys, embedded, "--data", rows, "--abstain-below", 0.6)
    raw = json.loads((embedded / MANIFEST).read_text("utf-8"))
    assert raw["format_version"] == 2
    recorded = raw["calibration"]
    assert (recorded["temperature"], recorded["thresholds"]) == (shown["temperature"], None)
    assert recorded["abstain_below"] == 0.6
    found = recorded["found"]
    assert found == {name: shown[name] for name in found}
    assert {"data_sha256", "rows", "before", "after", "date", "engine", "precision", "nopad"} <= set(found)
    counted = recorded["baseline"]  # how the calibrated bundle answers these texts
    with load(embedded, threads=1) as model:
        answers = model.predict(TEXTS)
        labels = [*(sum(each.label == label for each in answers) for label in model.labels), 0]
    assert counted["labels"] == labels and sum(counted["confidence"]) == len(TEXTS)
    assert sum(counted["length"][:3]) == sum(each.tokens <= 8 for each in answers)
    assert abs(sum(counted["confidence"][:14]) - sum(each.score <= 0.7 for each in answers)) <= 1
    manifest = open_bundle(embedded).manifest
    assert (manifest.head.temperature, manifest.head.abstain_below) == (shown["temperature"], 0.6)
    assert manifest.extra == {} and manifest.verdict == "verified"
    assert run(["inspect", str(embedded)]) == 0
    out = capsys.readouterr().out
    assert re.search(
        rf"^calibrated +temperature {shown['temperature']:.4f}, abstains below 0.6000 *$", out, re.MULTILINE
    )
    assert f"before (nll {found['before']['nll']:.4f}" in out
    assert run(["inspect", str(embedded), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == recorded


def test_what_it_prints(embedded: Path, rows: Path, wide: None, capsys: Capture) -> None:
    assert run(["calibrate", str(embedded), "--data", str(rows), "--threads", "1", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"learned from (\d+) rows, judged on the other (\d+); no text is on both sides", out)
    assert re.search(r"^expected calibration error +0\.\d{4} +0\.\d{4} *$", out, re.MULTILINE)
    assert re.search(r"^0\.93 to 1\.00 +\d+ +0\.\d{3} +[01]\.\d{3}", out, re.MULTILINE)
    assert re.search(r"learned from all 400 rows: temperature \d\.\d{4}$", out, re.MULTILINE)
    assert "not all is better" not in err
    assert "answering the texts" in err and "nothing was written (--dry-run)" in err


def test_dry_run_writes_nothing_and_reset_takes_it_back(embedded: Path, rows: Path, capsys: Capture) -> None:
    write_manifest(embedded, open_bundle(embedded).manifest)  # as this version writes it
    fresh = (embedded / MANIFEST).read_bytes()
    dry = calibrated(capsys, embedded, "--data", rows, "--dry-run")
    assert dry["written"] is False and (embedded / MANIFEST).read_bytes() == fresh
    assert calibrated(capsys, "--data", rows, "--dry-run")["temperature"] == dry["temperature"]  # the embedded model
    assert calibrated(capsys, embedded, "--data", rows)["temperature"] == dry["temperature"]
    assert open_bundle(embedded).manifest.format_version == 2
    assert calibrated(capsys, embedded, "--reset", "--dry-run") == {
        "bundle": str(embedded), "written": False, "removed_temperature": dry["temperature"]
    }  # fmt: skip
    assert open_bundle(embedded).manifest.format_version == 2
    assert calibrated(capsys, embedded, "--reset")["written"] is True
    assert (embedded / MANIFEST).read_bytes() == fresh
    assert run(["calibrate", str(embedded), "--reset"]) == 0
    assert "has no calibration" in capsys.readouterr().err


def test_an_older_nopad_refuses_a_calibrated_bundle(
    embedded: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    calibrated(capsys, embedded, "--data", rows)
    monkeypatch.setattr("nopad.runtime.manifest.FORMAT_VERSION", 1)
    with pytest.raises(NewerVersionError, match="format version 2, this nopad reads up to 1: upgrade nopad"):
        from_json((embedded / MANIFEST).read_bytes(), "manifest.json")


def test_uncertain_answers_are_marked(embedded: Path, rows: Path, tmp_path: Path, capsys: Capture) -> None:
    shown = calibrated(capsys, embedded, "--data", rows, "--abstain-below", 0.7)
    assert 0 < shown["after"]["abstained"] < 1 and shown["before"]["abstained"] is None
    assert shown["after"]["answered_accuracy"] > shown["after"]["accuracy"]
    with load(embedded, threads=1) as model:
        answers = model.predict(TEXTS)
    assert {answer.abstained for answer in answers} == {True, False}
    assert all(answer.abstained == (answer.score < 0.7) for answer in answers)
    uncertain = next(answer for answer in answers if answer.abstained)
    text = TEXTS[answers.index(uncertain)]
    assert run(["predict", str(embedded), text]) == 0
    assert f"{uncertain.label} (abstained)" in capsys.readouterr().out
    assert run(["predict", str(embedded), text, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["abstained"] is True
    for output in (tmp_path / "answers.csv", tmp_path / "answers.parquet"):
        assert run(["predict", str(embedded), "-i", str(rows), "-o", str(output), "--quiet"]) == 0
        read = pandas.read_csv if output.suffix == ".csv" else pandas.read_parquet
        assert list(read(output)["abstained"]) == [answer.abstained for answer in answers]


def test_an_interrupted_job_is_not_resumed_with_another_calibration(
    embedded: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "answers.jsonl"
    command = ["predict", str(embedded), "-i", str(rows), "-o", str(output), "--quiet"]
    with monkeypatch.context() as patch:
        written = 0

        def interrupt(file: Any, value: Any) -> None:
            nonlocal written
            written += 1
            if written > 300:
                raise KeyboardInterrupt
            file.write((json.dumps(value) + "\n").encode())

        patch.setattr("nopad.runtime.offline.answers._write", interrupt)
        assert run(command) == 130
    capsys.readouterr()
    calibrated(capsys, embedded, "--data", rows)
    assert run([*command, "--resume"]) == 2
    assert "was started with another bundle" in capsys.readouterr().err


def test_the_tuning_of_the_bundle_still_holds(embedded: Path, rows: Path, capsys: Capture) -> None:
    bundle = open_bundle(embedded)
    entry = Tuned(
        machine="m", cpu="c", cores=2, manifest=sha256_of(embedded / MANIFEST), versions="v", engine="onnx-cpu",
        file="model.cpu.onnx", precision="fp32", token_budget=300, threads=1, asked=None, tokens_per_second=1.0,
        date="2026-11-27",
    )  # fmt: skip
    write_entry(bundle, entry)
    stale = dataclasses.replace(entry, machine="another", manifest="0" * 64)
    write_entry(bundle, stale)
    for arguments in (("--data", rows), ("--reset",)):
        assert run(["calibrate", str(embedded), *map(str, arguments), "--threads", "1"]) == 0
        now = {one.machine: one for one in read_entries(bundle)}
        assert now == {
            "m": dataclasses.replace(entry, manifest=sha256_of(embedded / MANIFEST)),
            "another": stale,
        }


def test_the_diagram_is_an_svg_file_with_both_curves_and_the_counts(
    embedded: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "reliability.svg"
    shown = calibrated(capsys, embedded, "--data", rows, "--output", output, "--dry-run")
    assert shown["output"] == str(output)
    svg = ElementTree.fromstring(output.read_text("utf-8"))
    names = [one.text for one in svg.iter("{http://www.w3.org/2000/svg}text") if "name" in one.get("class", "")]
    assert sorted(filter(None, names)) == ["after", "after", "before", "before", "ideal"]
    tips = [one.text or "" for one in svg.iter("{http://www.w3.org/2000/svg}title")]
    for name in ("before", "after"):
        counts = [one["count"] for one in shown["bins"][name] if one["count"]]
        drawn = [int(tip.split()[1].replace(",", "")) for tip in tips if tip.startswith(f"{name}:")]
        assert drawn == counts * 2  # in the diagram, and in the plot of counts


def test_several_labels_get_a_threshold_each(several: Path, tmp_path: Path, wide: None, capsys: Capture) -> None:
    sure = sigmoid(logits_of(several, TEXTS) / np.float32(TRUE))
    truth = (np.random.default_rng(1).random(sure.shape) < sure).astype(int)
    path = tmp_path / "rows.csv"
    pandas.DataFrame({"text": TEXTS, "negative": truth[:, 0], "positive": truth[:, 1]}).to_csv(path, index=False)
    command = (several, "--data", path, "--label-field", "negative,positive")
    shown = calibrated(capsys, *command)
    assert set(shown["thresholds"]) == {"negative", "positive"}
    assert shown["after"]["f1"] > 0 and shown["after"]["nll"] < shown["before"]["nll"]
    thresholds = list(shown["thresholds"].values())
    with load(several, threads=1) as model:
        assert model.manifest.head.thresholds == tuple(thresholds)
        for answer in model.predict(TEXTS[:50]):
            chosen = {name for name, least in shown["thresholds"].items() if answer.scores[name] >= least}
            assert set(answer.labels) == chosen
    assert run(["inspect", str(several)]) == 0
    assert f"thresholds (negative {thresholds[0]:.4f}, positive {thresholds[1]:.4f})" in capsys.readouterr().out
    plain = calibrated(capsys, *command, "--thresholds", "none")
    assert plain["thresholds"] is None and plain["temperature"] == shown["temperature"]
    assert refused(capsys, 2, *command, "--abstain-below", 0.5).count("exactly one label") == 1


def short_reviews(imdb: Path, which: slice, folder: Path) -> Path:
    """A file of some of the test reviews, from the shortest on: these take seconds."""
    with (imdb / "test.jsonl").open(encoding="utf-8") as file:
        reviews = sorted(file, key=len)[which]
    path = folder / "reviews.jsonl"
    path.write_text("".join(reviews), encoding="utf-8")
    return path


def test_real_reviews(embedded: Path, imdb: Path, tmp_path: Path, capsys: Capture) -> None:
    path = short_reviews(imdb, slice(1000), tmp_path)
    command = ["calibrate", str(embedded), "--data", str(path), "--abstain-below", "0.8", "--threads", "1", "--json"]
    assert run(command) == 0
    out, err = capsys.readouterr()
    shown = json.loads(out)
    print(f"held-out reviews: {shown['before']} -> {shown['after']}, T {shown['held_out_temperature']}")
    before, after = shown["before"], shown["after"]
    assert after["nll"] < before["nll"] and after["accuracy"] == before["accuracy"] > 0.8
    assert 1 < shown["temperature"] < 1.3  # it is nearly calibrated, and a little surer than right
    assert 1 - after["answered_accuracy"] < 0.6 * (1 - after["accuracy"])  # of ten mistakes at most six are left
    assert after["ece"] < before["ece"] and "not all is better" not in err


def test_what_gets_worse_is_said(embedded: Path, imdb: Path, tmp_path: Path, capsys: Capture) -> None:
    path = short_reviews(imdb, slice(600, 1000), tmp_path)
    assert run(["calibrate", str(embedded), "--data", str(path), "--threads", "1", "--json", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    before, after = (json.loads(out)[when] for when in ("before", "after"))
    assert after["ece"] > before["ece"]
    said = err[err.index("not all is better on the held-out rows (") :]
    assert f"expected calibration error {before['ece']:.4f}, then {after['ece']:.4f}" in said


# --- the gate


def test_a_calibrated_bundle_passes_the_gate_and_keeps_its_calibration(
    embedded: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    shown = calibrated(capsys, embedded, "--data", rows, "--abstain-below", 0.6)
    (tmp_path / "few.jsonl").write_text("".join(rows.read_text().splitlines(keepends=True)[:40]))
    judge = ["parity", str(embedded), "-r", str(DEFAULT_CHECKPOINT), "--longest", "33", "--json", "--quiet"]
    assert run([*judge, "--data", str(tmp_path / "few.jsonl")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and {"probabilities", "labels"} <= {row["check"] for row in report["rows"]}
    manifest = open_bundle(embedded).manifest
    assert manifest.calibration is not None and manifest.calibration.temperature == shown["temperature"]
    assert manifest.head.abstain_below == 0.6 and manifest.evaluation == report["evaluation"]
    assert manifest.verdict == "verified"


def test_thresholds_do_not_fail_the_gate(bundle: Bundles, checkpoint: Bundles, tmp_path: Path, capsys: Capture) -> None:
    name = "modernbert-multi-cls"
    own = Path(shutil.copytree(bundle(name), tmp_path / "own"))
    manifest = open_bundle(own).manifest
    logits = logits_of(own, TEXTS[:40])
    middle = np.sort(sigmoid(logits / np.float32(3)), axis=0)[19:21].mean(axis=0)  # half of the texts get each label
    thresholds = tuple(float(x) for x in middle)
    write_manifest(own, dataclasses.replace(manifest, calibration=Calibration(temperature=3.0, thresholds=thresholds)))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:40]))
    capsys.readouterr()
    judge = ["parity", str(own), "-r", str(checkpoint(name)), "--longest", "33", "--quiet", "--data", str(path)]
    assert run(judge) == 0
    assert open_bundle(own).manifest.head.thresholds == thresholds


# --- refusals


def test_an_interrupted_write_leaves_the_old_manifest(
    embedded: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before = (embedded / MANIFEST).read_bytes()
    names = sorted(os.listdir(embedded))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nopad.runtime.atomic.os.replace", fail)
        assert run(["calibrate", str(embedded), "--data", str(rows), "--threads", "1"]) == 130
    assert (embedded / MANIFEST).read_bytes() == before and sorted(os.listdir(embedded)) == names
    with load(embedded, threads=1) as model:
        assert model.manifest.calibration is None


def test_wrong_usage(embedded: Path, rows: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "give --data FILE" in refused(capsys, 2, embedded)
    assert "--reset takes no --data" in refused(capsys, 2, embedded, "--data", rows, "--reset")
    assert "name it .svg" in refused(capsys, 2, embedded, "--data", rows, "-o", tmp_path / "plot.png")
    assert "does not exist" in refused(capsys, 3, embedded, "--data", rows, "-o", tmp_path / "no" / "plot.svg")
    assert "the embedded model is part of the installed package" in refused(capsys, 2, "--data", rows)
    assert "the embedded model is part" in refused(capsys, 2, DEFAULT_BUNDLE, "--reset")
    assert "--thresholds f1 is for models" in refused(capsys, 2, embedded, "--data", rows, "--thresholds", "f1")
    assert "0<x<1" in refused(capsys, 2, embedded, "--data", rows, "--abstain-below", 1)
    assert "does not exist" in refused(capsys, 3, tmp_path / "none", "--data", rows)
    assert open_bundle(embedded).manifest.calibration is None


def test_data_that_teach_nothing_are_refused(embedded: Path, rows: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "rows.jsonl"

    def with_labels(labels: Sequence[int | None]) -> Path:
        records = [{"text": t} | ({} if n is None else {"label": n}) for t, n in zip(TEXTS, labels, strict=False)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    assert "40 different texts are too few" in refused(capsys, 3, embedded, "--data", rows, "--limit", 40)
    assert "has no labels: name their column" in refused(capsys, 3, embedded, "--data", with_labels([None] * 80))
    assert "no row has the label 'positive'" in refused(capsys, 3, embedded, "--data", with_labels([0] * 80))
    best = [int(row.argmax()) for row in logits_of(embedded, TEXTS[:80])]
    assert "leave no error to learn" in refused(capsys, 3, embedded, "--data", with_labels(best))
    wrong = [1 - label for label in best]
    assert "nothing to do with their labels" in refused(capsys, 3, embedded, "--data", with_labels(wrong))
    assert open_bundle(embedded).manifest.calibration is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problem_type": "regression"}, "this bundle does regression"),
        ({"task": "token-classification"}, "this bundle does token-classification"),
        ({"task": "fill-mask"}, "this bundle does fill-mask"),
        ({"task": "embeddings"}, "this bundle does embeddings"),
        ({"task": "rerank"}, "this bundle does rerank"),
        ({"activation": "Softmax"}, "cross-encoder"),
    ],
)
def test_what_has_no_labels_to_be_sure_of_is_refused(
    change: dict[str, Any], words: str, embedded: Path, rows: Path, capsys: Capture
) -> None:
    write_manifest(embedded, dataclasses.replace(open_bundle(embedded).manifest, **change))
    assert words in refused(capsys, 2, embedded, "--data", rows)


def test_a_bundle_that_failed_the_gate_is_not_calibrated(embedded: Path, rows: Path, capsys: Capture) -> None:
    manifest = open_bundle(embedded).manifest
    artifact = dataclasses.replace(manifest.artifacts[0], parity={"onnx-cpu": {"passed": False, "rows": []}})
    write_manifest(embedded, dataclasses.replace(manifest, artifacts=(artifact,)))
    assert "nopad parity" in refused(capsys, 3, embedded, "--data", rows)


def test_a_bundle_that_was_replaced_meanwhile_is_left_alone(
    embedded: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import nopad.runtime.calibration as calibration

    fit = calibration.calibrate

    def while_another_exports(*arguments: Any, **options: Any) -> Any:
        manifest = open_bundle(embedded).manifest
        write_manifest(embedded, dataclasses.replace(manifest, labels=tuple(reversed(manifest.labels))))
        return fit(*arguments, **options)

    monkeypatch.setattr(calibration, "calibrate", while_another_exports)
    assert "was replaced meanwhile, so nothing was recorded" in refused(capsys, 3, embedded, "--data", rows)
    assert open_bundle(embedded).manifest.calibration is None
