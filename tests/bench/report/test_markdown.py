"""The Markdown report: a row for every subject, and what it cannot tell."""

import dataclasses

from reports import full_report, report

from nopad.bench.report.markdown import to_markdown
from nopad.bench.schema import Noise


def test_markdown_has_a_line_for_everyone() -> None:
    text = to_markdown(full_report())
    (row,) = [line for line in text.splitlines() if line.startswith("| nopad-fp32 | 1.00 s")]
    cells = [part.strip() for part in row.split("|")[1:-1]]
    assert cells[5:8] == ["25.0 %", "2.00× (2.00× to 2.10×)", "50.0 %"]
    assert "| hf-sdpa |" in text and "| reference |" in text
    assert "| hf-eager | **out of memory** |" in text and "9.00 GB" in text
    assert "- hf-fa2: missing. no | GPU" in text
    assert "- hf-eager on imdb-32: out of memory. needs 9 GB" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4  # the best, the workload, the subjects, the forecast
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_markdown_says_what_it_cannot_tell() -> None:
    doubtful = dataclasses.replace(full_report(), complete=False, noise=Noise(verdict="too noisy to conclude: a"))
    text = to_markdown(doubtful)
    assert "Interrupted: what is here is all there is" in text and "too noisy to conclude: a" in text
    assert "No reference was measured" in to_markdown(report({"nopad-fp32": (1.0, 1.0)}))
    markdown = to_markdown(report({"nopad-fp32": (1.0,), "hf-sdpa": (3.0,)}))
    assert "3.00× (one round)" in markdown
    wide = to_markdown(report({"nopad-fp32": (1.0, 2.0, 3.0), "hf-sdpa": (3.0, 3.0, 3.0)}))
    assert " * |" in wide
