"""`bench.json` and its way back; the Markdown beside it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from reports import cell, report, subject, workload
from sample_report import sample_report

from nopad.bench.report.files import JSON, check_folder, read_report, to_json, write_json
from nopad.bench.report.markdown import to_markdown
from nopad.bench.schema import Cell, Noise, Report
from nopad.runtime.errors import InputFileError, NewerVersionError, OutputError


def full() -> Report:
    made = report({"hf-sdpa": (2.0, 2.2, 2.1), "nopad-fp32": (1.0, 1.1, 1.0)})
    lost = Cell(subject="hf-eager", workload="imdb-32", status="out of memory", note="needs 9 GB", peak_bytes=9 * 10**9)
    fields: dict[str, Any] = {
        "subjects": (*made.subjects, subject("hf-eager"), subject("hf-fa2", status="missing", note="no | GPU")),
        "cells": (*made.cells, lost),
        "workloads": (workload(limit_tokens_per_second=300.0),),
        "extra": {"of_a_newer_nopad": [1, {"a": None}]},
        "forecasts": ({"gpu": "t4", "forecast": True},),
    }
    return dataclasses.replace(made, **fields)


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    write_json(full(), tmp_path)
    assert read_report(tmp_path) == full()
    assert read_report(tmp_path / JSON) == full()
    write_json(read_report(tmp_path), tmp_path)
    assert read_report(tmp_path) == full()


def test_the_sample_of_the_page_survives_too(tmp_path: Path) -> None:
    write_json(sample_report(), tmp_path)
    assert read_report(tmp_path) == sample_report()


def test_derived_values_need_nothing_of_ours() -> None:
    cells = {one["subject"]: one for one in to_json(full())["cells"]}
    derived = cells["nopad-fp32"]["derived"]
    assert derived["p50"] == 1.0 and derived["waste"] == pytest.approx(0.25)
    assert derived["tokens_per_second"][1] == pytest.approx(150.0)
    assert derived["limit_share"] == pytest.approx(0.5)
    assert derived["ratio"][1] == pytest.approx(2.0) and derived["ratio"][0] < 2.1
    assert cells["hf-sdpa"]["derived"]["ratio"] is None and cells["hf-eager"]["derived"] is None


def test_one_round_is_written_without_infinity() -> None:
    raw = to_json(report({"nopad-fp32": (1.0,)}))
    assert raw["cells"][0]["derived"]["seconds"] == [0.0, 1.0, None]
    json.dumps(raw, allow_nan=False)


def write(folder: Path, change: Any) -> Path:
    raw = to_json(full())
    change(raw)
    (folder / JSON).write_text(json.dumps(raw))
    return folder / JSON


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("schema_version"),
        lambda raw: raw.pop("cells"),
        lambda raw: raw.update(threads="two"),
        lambda raw: raw["cells"][0].update(seconds=[1.0, "x", 2.0]),
        lambda raw: raw["cells"][0].update(seconds=[1.0]),
        lambda raw: raw["cells"][0].update(seconds=[-1.0, 1.0, 1.0]),
        lambda raw: raw["cells"][0].update(status="fine"),
        lambda raw: raw["cells"][0].update(subject="nobody"),
        lambda raw: raw["cells"][0].pop("workload"),
        lambda raw: raw["workloads"][0].update(tokens=None),
        lambda raw: raw.update(subjects=3),
        lambda raw: raw.update(noise=[]),
        lambda raw: raw.update(schema_version=0),
    ],
)
def test_damage_is_said_to_be_damage(change: Any, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"bench\.json (is damaged|is no report|has schema_version)"):
        read_report(write(tmp_path, change))


def test_other_files_are_no_reports(tmp_path: Path) -> None:
    for text in ("", "{", "[1]", "{}", '{"a": ' * 10_000, "\xff"):
        (tmp_path / JSON).write_text(text, "latin-1")
        with pytest.raises(InputFileError):
            read_report(tmp_path)


def test_a_later_schema_is_refused_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(NewerVersionError, match="schema_version 99"):
        read_report(write(tmp_path, lambda raw: raw.update(schema_version=99)))


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / JSON).write_text("{}")
    with pytest.raises(OutputError, match="left alone"):
        check_folder(tmp_path)
    assert (tmp_path / JSON).read_text() == "{}"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "file")
    check_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()


def test_markdown_has_a_line_for_everyone() -> None:
    text = to_markdown(full())
    (row,) = [line for line in text.splitlines() if line.startswith("| nopad-fp32 | 1.00 s")]
    cells = [part.strip() for part in row.split("|")[1:-1]]
    assert cells[5:8] == ["25.0 %", "2.00× (2.00× to 2.10×)", "50.0 %"]
    assert "| hf-sdpa |" in text and "| reference |" in text
    assert "| hf-eager | **out of memory** |" in text and "9.00 GB" in text
    assert "- hf-fa2: missing. no | GPU" in text
    assert "- hf-eager on imdb-32: out of memory. needs 9 GB" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3  # the workload, the subjects, the forecast
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_markdown_says_what_it_cannot_tell() -> None:
    doubtful = dataclasses.replace(full(), complete=False, noise=Noise(verdict="too noisy to conclude: a"))
    text = to_markdown(doubtful)
    assert "Interrupted: what is here is all there is" in text and "too noisy to conclude: a" in text
    assert "No reference was measured" in to_markdown(report({"nopad-fp32": (1.0, 1.0)}))
    one = to_markdown(report({"nopad-fp32": (1.0,), "hf-sdpa": (3.0,)}))
    assert "3.00× (one round)" in one
    wide = to_markdown(report({"nopad-fp32": (1.0, 2.0, 3.0), "hf-sdpa": (3.0, 3.0, 3.0)}))
    assert " * |" in wide


def test_bert_counts_its_own_tokens() -> None:
    made = report({"hf-sdpa": (1.0, 1.0)})
    bert = cell("bert-hf-sdpa", (1.0, 1.0), tokens=300)
    both = dataclasses.replace(
        made, subjects=(*made.subjects, subject("bert-hf-sdpa", model="bert")), cells=(*made.cells, bert)
    )
    found = {one["subject"]: one["derived"]["tokens_per_second"][1] for one in to_json(both)["cells"]}
    assert found == {"hf-sdpa": 150.0, "bert-hf-sdpa": 300.0}
