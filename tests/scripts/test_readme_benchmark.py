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
    readme.write_text(text.replace("5.06×", "5.60×"))
    assert script.update(results, readme, check=True) is False


def test_rows_are_workloads_and_columns_the_subjects_of_one_model(script: ModuleType) -> None:
    report = sample_report()
    head, _, *body = rows(script.block(report))
    # hf-fa2 was not measured at all, and BERT is another model.
    assert head[1:] == ["nopad-fp32", "nopad-int8", "hf-sdpa (reference)", "hf-eager", "optimum", "openvino"]
    assert [row[0] for row in body] == [workload.name for workload in report.workloads]
    assert all(len(row) == len(head) for row in body)
    assert body[-1][-1] == "failed" and body[-1][-2] == "out of memory"


def test_a_cell_has_throughput_ratio_and_unequal_labels(script: ModuleType) -> None:
    report = sample_report()
    report = replace(
        report,
        workloads=tuple(replace(one, tokens=3000) for one in report.workloads),
        cells=tuple(
            replace(one, seconds=(1.5,) * 14 if one.subject == "nopad-int8" else (6.0,) * 14) if one.seconds else one
            for one in report.cells
        ),
    )
    _, _, first, *_ = rows(script.block(report))
    assert first[1] == "**500**<br>1.00× (1.00 to 1.00)"
    assert first[2] == "**2,000**<br>4.00× (4.00 to 4.00)<br>99.7 % equal labels"
    assert first[3] == "**500**"


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
