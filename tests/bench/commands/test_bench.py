"""`nopad bench` as people run it, with the real libraries."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import transformers

from nopad.bench.report.files import JSON, MARKDOWN, read_report
from nopad.export.parity.samples import PAIRS
from nopad.model.cpus import cpu_at_hand
from nopad.runtime import cli

QUICK = ["--threads", "1", "--quiet", "--no-build-time"]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "NOPAD_DATA"):
        monkeypatch.delenv(name, raising=False)


def bench(*arguments: object) -> int:
    os.environ.pop("RAYON_NUM_THREADS", None)  # of the run before, in this same process
    return cli.run(["bench", *map(str, arguments), *QUICK])


def test_a_bundle_beside_transformers(
    bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "modernbert-single-mean"
    code = bench(bundle(name), "-r", checkpoint(name), "--against", "hf-sdpa-bf16,hf-fa2", "-w", "sst2-64", "--rounds",
                 3, "-o", tmp_path / "out")  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    report = read_report(tmp_path / "out")
    assert report.complete and report.reference == "hf-sdpa" and report.threads == 1
    states = {subject.name: subject.status for subject in report.subjects}
    half = "ok" if cpu_at_hand().bf16 else "missing"
    assert states == {"nopad-fp32": "ok", "hf-sdpa": "ok", "hf-sdpa-bf16": half, "hf-fa2": "missing"}
    assert "- hf-fa2: missing. FlashAttention-2" in printed
    ours, theirs, *others = report.cells
    assert (ours.subject, theirs.subject) == ("nopad-fp32", "hf-sdpa")
    for cell in report.cells:
        assert cell.status == "ok" and set(cell.rounds) == {0, 1, 2} and cell.peak_bytes
    assert ours.agreement == 1.0 and ours.logit_difference is not None and ours.logit_difference < 1e-5
    for other in others:  # in half precision
        assert other.logit_difference is not None and 1e-6 < other.logit_difference < 0.1
    assert {"fp32", "int8"} <= {peak.precision for peak in report.peaks} and "against the best peer" in printed
    # Streams are filled up to whole blocks, matrices to the longest text; both count the same real tokens.
    (ragged,) = report.workloads
    assert ragged.tokens <= (ours.computed_tokens or 0) < ragged.padded_tokens == theirs.computed_tokens
    assert "generated words" in ragged.source
    first = next(subject for subject in report.subjects if subject.name == "nopad-fp32")
    assert first.load_seconds and first.cold_seconds and first.import_seconds and first.version == "0.1.0"
    assert printed == (tmp_path / "out" / MARKDOWN).read_text() and "| nopad-fp32 |" in printed
    assert (tmp_path / "out" / "bench.html").read_text().startswith("<!DOCTYPE html>")


def test_the_folder_of_texts_is_found_through_either_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    context = click.Context(cli.cli)
    for _ in range(2):  # the command is resolved anew for each use
        command = cli.cli.get_command(context, "bench")
    option = next(parameter for parameter in command.params if parameter.name == "data_folder")
    monkeypatch.setenv("NOPAD_DATA", "theirs")
    assert option.resolve_envvar_value(context) == "theirs"
    monkeypatch.setenv("NOPAD_BENCH_DATA_FOLDER", "ours")
    assert option.resolve_envvar_value(context) == "ours"


def _installed(package: str) -> bool:
    import importlib.metadata

    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
def test_tasks_per_token_are_compared_too(
    bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "modernbert-token"
    assert bench(bundle(name), "-r", checkpoint(name), "--against", "hf-sdpa", "-w", "sst2-64", "--rounds", 1, "-o",
                 tmp_path / "out") == 0  # fmt: skip
    cells = {cell.subject: cell for cell in read_report(tmp_path / "out").cells}
    assert cells["nopad-fp32"].agreement == 1.0 and (cells["nopad-fp32"].logit_difference or 1) < 1e-5


@pytest.mark.parametrize("name", ["bert-rerank", pytest.param("modernbert-single-mean", marks=pytest.mark.slow)])
def test_pairs_of_texts_are_read_alike_by_all(
    name: str, bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"query": query, "passage": f"{passage} " * n} for n in (1, 2) for query, passage in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = ["--text-field", "query", "--second-field", "passage"]
    assert bench(bundle(name), "-r", checkpoint(name), "--against", "hf-sdpa", "--data", tmp_path / "pairs.jsonl",
                 *fields, "--rounds", 1, "-o", tmp_path / "out") == 0  # fmt: skip
    report = read_report(tmp_path / "out")
    cells = {cell.subject: cell for cell in report.cells}
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(name))
    ids = tokenizer([row["query"] for row in rows], [row["passage"] for row in rows])["input_ids"]
    assert report.workloads[0].lengths == tuple(map(len, ids))
    assert cells["hf-sdpa"].status == "ok" and cells["hf-sdpa"].computed_tokens == len(ids) * max(map(len, ids))
    assert cells["nopad-fp32"].status == "ok" and (cells["nopad-fp32"].logit_difference or 1) < 1e-5


def test_own_texts_without_a_reference_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": text, "label": label} for text, label in (("splendid", "positive"), ("a dull film", "negative"))]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows * 4)))
    assert (
        bench("--against", "none", "--data", tmp_path / "mine.jsonl", "--batches", "1,8", "--rounds", 2, "--json") == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["reference"] is None and report["complete"] is True
    assert [(cell["workload"], cell["accuracy"]) for cell in report["cells"]] == [("mine-1", 1.0), ("mine-8", 1.0)]
    assert all(cell["derived"]["ratio"] is None and cell["derived"]["p50"] > 0 for cell in report["cells"])


def test_a_forecast_alone_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--forecast", "t4,l4", "--no-measure", "-w", "1x512", "-o", tmp_path) == 0
    report = read_report(tmp_path)
    assert report.complete and not report.cells and not report.subjects
    assert {forecast["gpu"] for forecast in report.forecasts} == {"t4", "l4"}
    printed = capsys.readouterr().out
    assert "## Forecasts, not measurements" in printed and "| t4 | 1x512 |" in printed
    assert bench("--forecast", "voodoo2", "--no-measure", "-w", "1x512") == 2
    assert "t4, l4" in capsys.readouterr().err


def test_too_little_memory_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    code = bench("--against", "none", "-w", "1x16", "-w", "1x32", "--rounds", 1, "--memory-limit", 0.02, "-o", tmp_path)
    assert code == 0
    report = read_report(tmp_path)
    assert [cell.status for cell in report.cells] == ["out of memory"] * 2 and report.complete
    assert all(cell.seconds == () for cell in report.cells)


def test_ctrl_c_keeps_the_rounds_so_far(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nopad.runtime.cli", "bench", "--against", "none", "-w", "1x64", "-w", "1x128",
               "--rounds", "1000", "--threads", "1", "--output", str(tmp_path / "out")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "out" / JSON).exists() and any(cell.seconds for cell in read_report(tmp_path / "out").cells):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err, err
    report = read_report(tmp_path / "out")
    assert report.complete is False
    first, second = report.cells
    assert first.status == "ok" and 0 < len(set(first.rounds)) < 1000
    assert (second.status, second.note) == ("not run", "not reached")
    assert "Interrupted" in (tmp_path / "out" / MARKDOWN).read_text() and (tmp_path / "out" / "bench.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "delay"),
    [
        ("1x32: nopad-fp32 in a process of its own", 0.5),
        ("1x32: opening nopad-int8", 0.0),
        ("1x32: opening nopad-int8", 0.3),
        ("1x32: taking turns", 0.0),
        ("1x64: nopad-fp32 in a process of its own", 0.0),  # what the turns had opened is closed
        ("1x64: nopad-fp32 in a process of its own", 0.5),
        ("1x64: opening nopad-fp32", 0.1),
        ("1x64: taking turns", 0.2),
    ],
)
def test_ctrl_c_at_any_moment_with_several_openvino_models(
    moment: str, delay: float, openvino_bundle: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "nopad.runtime.cli", "bench", str(openvino_bundle), "--allow-unverified",
               "--against", "none", "--precision", "fp32,int8", "-w", "1x32", "-w", "1x64", "--rounds", "5",
               "--threads", "1", "--output", str(tmp_path / "out")]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        said = [*itertools.takewhile(lambda line: moment not in line, lines)]
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        said += lines
    assert process.returncode == 130 and "interrupted" in said[-1], said
    report = read_report(tmp_path / "out")
    assert report.complete is False
    first = [cell for cell in report.cells if cell.workload == "1x32"]
    assert len(first) == 2
    if "1x64" in moment or "turns" in moment:  # the first round is written before it is shown
        assert all(cell.status == "ok" and cell.seconds for cell in first)
    assert "Interrupted" in (tmp_path / "out" / MARKDOWN).read_text() and (tmp_path / "out" / "bench.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-w", "imdb"], 2, "unknown workload 'imdb'; there are sst2-64"),
        (["--against", "tei"], 2, "unknown competitor 'tei'; there are hf-sdpa, hf-sdpa-bf16"),
        (["--against", "none,hf-sdpa"], 2, "stands alone"),
        (["--against", "fastembed"], 2, "fastembed is only for bundles of embeddings"),
        (["--engine", "cuda"], 2, "unknown engine 'cuda'; this nopad has tensorrt"),
        (["--precision", "int8"], 2, "it holds cpu fp32"),
        (["--lengths", "1,x"], 2, "not a list of numbers"),
        (["--lengths", "4096"], 2, "1024 tokens at most"),
        (["--no-measure"], 2, "--forecast"),
        (["--threads", "4096"], 2, "cores"),
        (["--data", "nothing.jsonl"], 3, "cannot read nothing.jsonl"),
        (["--data-folder", "nothing"], 2, "is not a folder"),
        (["nothing"], 3, "no bundle at nothing"),
        (["--reference", "/nothing"], 3, "no checkpoint at /nothing"),
    ],
)
def test_bad_input_is_named(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ.pop("RAYON_NUM_THREADS", None)
    assert cli.run(["bench", "--threads", "1", "--quiet", *arguments]) == code
    assert message in capsys.readouterr().err


def test_threads_in_the_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert bench("--against", "none") == 2
    assert "OMP_NUM_THREADS=2 in the environment contradicts --threads 1" in capsys.readouterr().err


def test_a_competitor_needs_a_checkpoint(bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(bundle("modernbert-single-mean"), "--against", "hf-sdpa") == 2
    assert "--against needs --reference" in capsys.readouterr().err


def test_an_unverified_bundle_is_not_measured_unasked(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    from dataclasses import replace
    from shutil import copytree

    from nopad.runtime.bundle import open_bundle, write_manifest

    copytree(bundle("modernbert-single-mean"), tmp_path / "bundle")
    opened = open_bundle(tmp_path / "bundle")
    artifacts = tuple(replace(artifact, parity={}) for artifact in opened.manifest.artifacts)
    write_manifest(opened.path, replace(opened.manifest, artifacts=artifacts))
    quick: list[Any] = ["--against", "none", "-w", "1x16", "--rounds", 1]
    assert bench(opened.path, *quick, "-o", tmp_path / "refused") == 0
    (subject,) = read_report(tmp_path / "refused").subjects
    assert subject.status == "failed" and "parity gate" in subject.note
    assert bench(opened.path, *quick, "--allow-unverified", "-o", tmp_path / "allowed") == 0
    assert [cell.status for cell in read_report(tmp_path / "allowed").cells] == ["ok"]


@pytest.mark.slow
def test_every_competitor_that_is_installed_answers_alike(
    bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """BERT in each library, too; the second run reuses the exports."""
    name = "modernbert-single-mean"
    arguments = [bundle(name), "-r", checkpoint(name), "--against", "hf-eager,optimum,openvino,openvino-default,bert",
                 "--bert", checkpoint("bert-single"), "-w", "sst2-64", "-w", "1x600", "--rounds", 2,
                 "-o", tmp_path / "out"]  # fmt: skip
    assert bench(*arguments) == 0
    report = read_report(tmp_path / "out")
    states = {subject.name: subject.status for subject in report.subjects}
    expected = "ok" if _installed("optimum-onnx") else "missing"
    for subject in ("optimum", "openvino", "openvino-default", "bert-optimum", "bert-openvino"):
        assert states.pop(subject) == expected
    assert set(states.values()) == {"ok"}
    cells = {(cell.subject, cell.workload): cell for cell in report.cells}
    for (subject, workload), cell in cells.items():
        if subject.startswith("bert-") and workload == "1x600":
            assert cell.status == "not run" and "512 tokens at most" in cell.note
        else:
            assert cell.status == "ok", cell
            if subject not in ("hf-sdpa", "bert-hf-sdpa"):
                half = subject == "openvino-default"  # which computes in bf16 where the CPU has it
                assert (half or cell.agreement == 1.0) and (cell.logit_difference or 0) < (0.1 if half else 1e-4)
    assert cells["bert-nopad", "sst2-64"].tokens == cells["bert-hf-sdpa", "sst2-64"].tokens
    changed = {path: path.stat().st_mtime_ns for path in (tmp_path / "nopad-bench-cache").rglob("*.onnx")}
    assert bench(*arguments) == 0
    assert changed == {path: path.stat().st_mtime_ns for path in (tmp_path / "nopad-bench-cache").rglob("*.onnx")}


@pytest.mark.slow
def test_a_bert_of_random_weights_is_made(
    bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "modernbert-single-mean"
    vocabulary = checkpoint("bert-single") / "vocab.txt"
    assert bench(bundle(name), "-r", checkpoint(name), "--against", "bert", "--bert-vocab", vocabulary, "-w", "1x32",
                 "--rounds", 1, "-o", tmp_path / "out") == 0  # fmt: skip
    cells = {cell.subject: cell for cell in read_report(tmp_path / "out").cells}
    assert cells["bert-nopad"].status == cells["bert-hf-sdpa"].status == "ok"
    assert (cells["bert-nopad"].logit_difference or 1) < 1e-4 and cells["bert-nopad"].accuracy is None
