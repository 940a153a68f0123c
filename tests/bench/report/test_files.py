"""`bench.json`, written and read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from reports import cell, full_report, report, subject
from sample_report import sample_report

from nopad.bench.report.files import JSON, check_folder, read_report, to_json, write_json
from nopad.runtime.errors import InputFileError, NewerVersionError, OutputError


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    write_json(full_report(), tmp_path)
    assert read_report(tmp_path) == full_report()
    assert read_report(tmp_path / JSON) == full_report()
    write_json(read_report(tmp_path), tmp_path)
    assert read_report(tmp_path) == full_report()


def test_the_sample_of_the_page_survives_too(tmp_path: Path) -> None:
    write_json(sample_report(), tmp_path)
    assert read_report(tmp_path) == sample_report()


def test_derived_values_need_nothing_of_ours() -> None:
    cells = {cell["subject"]: cell for cell in to_json(full_report())["cells"]}
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
    raw = to_json(full_report())
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
        lambda raw: raw["workloads"][0].update(limits=[300.0]),
        lambda raw: raw["workloads"][0].update(limits={"fp32": "fast"}),
        lambda raw: raw.update(peaks=[{"precision": "fp32"}]),
        lambda raw: raw.update(subjects=3),
        lambda raw: raw.update(noise=[]),
        lambda raw: raw.update(schema_version=0),
    ],
)
def test_damage_is_said_to_be_damage(change: Any, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"bench\.json (is damaged|is not a report|has schema_version)"):
        read_report(write(tmp_path, change))


def test_other_files_are_no_reports(tmp_path: Path) -> None:
    for text in ("", "{", "[1]", "{}", '{"a": ' * 10_000, "\xff"):
        (tmp_path / JSON).write_text(text, "latin-1")
        with pytest.raises(InputFileError):
            read_report(tmp_path)


def test_a_report_from_before_limits_for_each_precision_keeps_its_own(tmp_path: Path) -> None:
    def older(raw: Any) -> None:
        del raw["peaks"], raw["workloads"][0]["limits"]
        raw["workloads"][0]["limit_tokens_per_second"] = 200.0

    old = read_report(write(tmp_path, older))
    assert old.peaks == () and old.workloads[0].limits == {"fp32": 200.0}
    derived = next(cell["derived"] for cell in to_json(old)["cells"] if cell["subject"] == "nopad-fp32")
    assert derived["limit_share"] == pytest.approx(0.75)


def test_a_share_is_of_the_limit_of_the_subjects_own_precision() -> None:
    original = full_report()
    subjects = tuple(
        dataclasses.replace(one, precision="bf16") if one.name == "nopad-fp32" else one for one in original.subjects
    )
    cells = {cell["subject"]: cell for cell in to_json(dataclasses.replace(original, subjects=subjects))["cells"]}
    assert cells["nopad-fp32"]["derived"]["limit_share"] == pytest.approx(150 / 900)


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


def test_bert_counts_its_own_tokens() -> None:
    original = report({"hf-sdpa": (1.0, 1.0)})
    bert = cell("bert-hf-sdpa", (1.0, 1.0), tokens=300)
    both = dataclasses.replace(
        original, subjects=(*original.subjects, subject("bert-hf-sdpa", model="bert")), cells=(*original.cells, bert)
    )
    speeds = {cell["subject"]: cell["derived"]["tokens_per_second"][1] for cell in to_json(both)["cells"]}
    assert speeds == {"hf-sdpa": 150.0, "bert-hf-sdpa": 300.0}
