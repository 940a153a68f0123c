"""The README's benchmark table is what the committed result file gives."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from repository import ROOT, load_script
from sample_report import noisy, sample_report

from nopad.bench.report.files import write_json
from nopad.bench.schema import Report
from nopad.runtime.errors import InputFileError

README = "# a project\n\nbefore\n<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\nafter\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("readme_benchmark")


def place(report: Report, folder: Path, text: str = README) -> tuple[Path, Path]:
    write_json(report, folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder / "bench.json", folder / "README.md"


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_block_is_replaced_and_nothing_else(script: ModuleType, tmp_path: Path) -> None:
    results, readme = place(sample_report(), tmp_path)
    assert script.update(results, readme, check=True) is False
    assert readme.read_text() == README
    script.update(results, readme, check=False)
    text = readme.read_text()
    assert text.startswith("# a project\n\nbefore\n<!-- benchmark:begin -->\n")
    assert text.endswith("<!-- benchmark:end -->\nafter\n")
    assert "old" not in text
    assert script.update(results, readme, check=True) is True
    assert "**" in text
    readme.write_text(text.replace("**", "**1", 1))
    assert script.update(results, readme, check=True) is False


def test_rows_are_workloads_and_columns_are_precisions_and_the_best_peer(script: ModuleType) -> None:
    report = sample_report()
    head, _, *body = rows(script.block(report))
    assert head[1:] == ["nopad fp32", "nopad int8", "best peer"]  # no peer was measured in another precision
    assert [row[0] for row in body] == [workload.name for workload in report.workloads]
    assert all(len(row) == len(head) for row in body)
    # hf-sdpa alone reached the last one; BERT is faster, but another model.
    assert body[0][-1].endswith("<br>openvino") and body[-1][-1].endswith("<br>hf-sdpa")


def timed(report: Report, **seconds: float) -> Report:
    """The report with 3,000 tokens in each workload, answered in these seconds, or in 6."""
    return replace(
        report,
        workloads=tuple(replace(one, tokens=3000) for one in report.workloads),
        cells=tuple(
            replace(one, seconds=(seconds.get(one.subject.replace("-", "_"), 6.0),) * 14) if one.seconds else one
            for one in report.cells
        ),
    )


def test_fp32_is_held_to_the_best_fp32_peer_and_the_others_to_the_best_of_any_precision(script: ModuleType) -> None:
    report = sample_report()
    subjects = tuple(replace(one, precision="bf16") if one.name == "openvino" else one for one in report.subjects)
    report = timed(replace(report, subjects=subjects), nopad_fp32=3.0, nopad_int8=1.5, openvino=2.0, optimum=5.0)
    head, _, first, *_ = rows(script.block(report))
    assert head[1:] == ["nopad fp32", "best fp32 peer", "nopad int8", "best peer, any precision"]
    assert first[1:3] == ["**1,000**<br>1.67× (1.67 to 1.67)", "**600**<br>optimum"]
    assert first[3] == "**2,000**<br>1.33× (1.33 to 1.33)<br>99.7 % equal labels"
    assert first[4] == "**1,500**<br>openvino"


def test_of_several_engines_in_a_precision_the_fastest_stands_there_with_its_name(script: ModuleType) -> None:
    report = sample_report()
    subjects = tuple(replace(one, precision="fp32") if one.name == "nopad-int8" else one for one in report.subjects)
    report = timed(replace(report, subjects=subjects), nopad_fp32=3.0, nopad_int8=1.5)
    head, _, first, *_ = rows(script.block(report))
    assert head[1:] == ["nopad fp32", "best peer"] and "<br>nopad-int8<br>" in first[1]


def test_what_nopad_could_not_run_says_why(script: ModuleType) -> None:
    report = sample_report()
    cells = tuple(
        replace(one, status="failed", seconds=(), rounds=())
        if (one.subject, one.workload) == ("nopad-int8", "1x8192")
        else one
        for one in report.cells
    )
    *_, last = rows(script.block(replace(report, cells=cells)))
    assert last[2] == "failed"


def test_what_was_measured_where_is_said_below(script: ModuleType) -> None:
    report = sample_report()
    text = script.block(report)
    assert "Some Processor 8375C @ 2.90 GHz" in text and "2 threads, 2026-11-25." in text
    assert "Not measured: hf-fa2 (missing)." in text
    assert f"```\n{report.command}\n```\n" in text
    assert "oo noisy" not in text and "interrupted" not in text


def test_a_noisy_or_interrupted_run_says_so_above_the_table(script: ModuleType) -> None:
    text = script.block(noisy(sample_report()))
    assert text.index("interrupted") < text.index("|")
    assert text.index("**Too noisy to conclude: a fixed matrix product varied by 31.0%.**") < text.index("|")


def test_texts_cannot_break_the_table(script: ModuleType) -> None:
    report = sample_report()
    name = "a|b`c\n<script>"
    report = replace(
        report,
        command="nopad bench\n``` x",
        workloads=(replace(report.workloads[0], name=name), *report.workloads[1:]),
        cells=tuple(replace(one, workload=name) if one.workload == "sst2-64" else one for one in report.cells),
    )
    text = script.block(report)
    assert r"| a\|b\`c &lt;script&gt; |" in text
    assert text.count("```") == 2


@pytest.mark.parametrize("text", ["", "<!-- benchmark:begin -->", README + README, README[::-1]])
def test_a_readme_without_one_place_for_it_is_refused(script: ModuleType, tmp_path: Path, text: str) -> None:
    results, readme = place(sample_report(), tmp_path, text)
    with pytest.raises(InputFileError, match="benchmark:begin"):
        script.update(results, readme, check=False)
    assert readme.read_text() == text


def test_the_command_checks_and_writes(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, readme = place(sample_report(), tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["readme_benchmark", str(results), str(readme), *arguments])
        try:
            script.main()
        except SystemExit as stopped:
            return int(str(stopped.code)), capsys.readouterr().err
        return 0, capsys.readouterr().err

    code, told = run("--check")
    assert code == 1 and "run without --check" in told
    assert run() == (0, "")
    assert run("--check") == (0, "")
    results.write_text("{")
    code, told = run("--check")
    assert code == 3 and "damaged" in told


def test_the_readme_says_what_the_committed_file_gives(script: ModuleType) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if script.BEGIN not in text:
        assert script.END not in text
        return
    # The README links the file that its table is from, just below or above the block.
    found = set(re.findall(r"docs/benchmarks/[\w.-]+\.json", text))
    assert len(found) == 1, "the README names the one result file that its table is from"
    assert script.update(ROOT / found.pop(), readme, check=True), "run scripts/readme_benchmark.py again"
