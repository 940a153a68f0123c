"""`nopad tune`: what it prints and records, what it refuses, and what is left after Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from several_files import AMD, clock, on_cpu, stand_in, with_files

from nopad.runtime.cli import run

KINDS = (("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle on an AMD with bf16, where bf16 is four times as fast as fp32."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    on_cpu(monkeypatch, AMD)
    monkeypatch.setattr("nopad.runtime.engines.gpus.gpus", lambda: ())
    clock(monkeypatch)
    stand_in(monkeypatch, lambda name, artifact, *_: {"fp32": 8e-4, "bf16": 2e-4}[artifact.precision])
    return with_files(tmp_path / "bundle", *KINDS).path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"a film {'again ' * i}"}) + "\n" for i in range(60)) + '{"text": ""}\n'
    )
    return path


def tuned(capsys: Capture, *arguments: Any) -> tuple[int, list[dict[str, Any]], str]:
    code = run(["tune", *map(str, arguments), "--seconds", "1", "--threads", "1", "--json"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_the_winner_is_printed_recorded_and_shown_by_inspect(
    folder: Path, texts: Path, wide: None, capsys: Capture
) -> None:
    code, rows, err = tuned(capsys, folder, "--data", texts)
    *measured, last = rows
    assert code == 0 and last["path"] == str(folder / "tuning.json") and last["precision"] == "fp32"
    (chosen,) = (row for row in measured if row["chosen"])
    assert {row["precision"] for row in measured} == {"fp32"} and chosen["turns"] >= 3 and last["texts"] == 60
    assert "load takes" in err and "measuring engines" in err
    code, rows, _ = tuned(capsys, folder, "--data", texts, "--precision", "auto", "--quiet")
    assert code == 0 and rows[-1]["precision"] == "bf16" and rows[-1]["engine"] == "openvino"
    assert run(["inspect", str(folder)]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tuned"))
    assert "openvino bf16 (model.openvino.bf16.onnx), micro-batches of" in shown and "1 thread:" in shown
    assert run(["inspect", str(folder), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["tuning"]
    assert (entry["engine"], entry["asked"]) == ("openvino", "auto")
    assert run(["predict", str(folder), "a film", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "openvino"


def test_the_table_marks_the_winner(folder: Path, texts: Path, wide: None, capsys: Capture) -> None:
    assert run(["tune", str(folder), "--data", str(texts), "--seconds", "1", "--precision", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (winner,) = (line for line in lines if line.startswith("*"))
    assert "openvino" in winner and "bf16" in winner and "tokens a turn" in lines[0]


def test_what_cannot_be_tuned_is_refused(folder: Path, texts: Path, tmp_path: Path, capsys: Capture) -> None:
    code, _, err = tuned(capsys, folder, "--data", texts, "--precision", "int8")
    assert code == 2 and "--precision int8:" in err and "holds fp32, bf16" in err
    (tmp_path / "empty.txt").write_text("\n \n")
    code, _, err = tuned(capsys, folder, "--data", tmp_path / "empty.txt")
    assert code == 3 and "empty.txt" in err
    assert tuned(capsys, folder)[0] == 2
    assert tuned(capsys, tmp_path / "none", "--data", texts)[0] == 3
    assert not (folder / "tuning.json").exists()


def test_nothing_is_recorded_after_ctrl_c(
    folder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(*_: Any) -> float:
        raise KeyboardInterrupt

    stand_in(monkeypatch, interrupt)
    assert tuned(capsys, folder, "--data", texts)[0] == 130
    assert not (folder / "tuning.json").exists()
