"""`analyze` as a step: what the report shows of it, when it runs again, and how a row that cannot be used ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.cli import run

Go = Callable[..., dict[str, Any]]
ROWS = [{"text": text, "label": label} for text, label in (("a dull film", 0), ("splendid", 1), ("a masterpiece", 0))]


@pytest.fixture
def go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Go:
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))

    def call(recipe: str, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run the recipe of one step; returns its outcome."""
        (tmp_path / "r.yaml").write_text(recipe)
        assert run(["run", str(tmp_path / "r.yaml"), "--json", *arguments]) == code
        out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return next(line for line in out if "step" in line)

    return call


def recipe(*lines: str) -> str:
    return "\n  ".join(["analyze:", f"bundle: {DEFAULT_BUNDLE}", "data: rows.jsonl", "threads: 1", *lines]) + "\n"


def test_the_report_has_its_figures_and_a_link_to_its_page(go: Go, tmp_path: Path) -> None:
    assert go(recipe(), "--dry-run")["status"] == "would run"
    assert not (tmp_path / "r.run").exists()
    first = go(recipe())
    assert first["status"] == "done"
    summary = first["results"][0]["summary"]
    accuracy = f"{100 * first['results'][0]['results'][0]['classes']['accuracy']['value']:.1f} %"
    page = (tmp_path / "r.run" / "report.html").read_text()
    assert summary[0].startswith(f"Accuracy {accuracy}") and all(f"<p>{line}</p>" in page for line in summary)
    assert f'analyze: accuracy</div><div class="times">{accuracy}' in page
    assert 'href="analyze.html"' in page and (tmp_path / "r.run" / "analyze.html").is_file()
    assert go(recipe())["status"] == "cached"
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"text": "see it", "label": 1}\n')
    assert go(recipe(), "--dry-run")["why"] == "rows.jsonl has changed"


def test_two_bundles_are_compared(go: Go, tmp_path: Path) -> None:
    """The other one is named first: the order of a recipe's lines is not that of the command's arguments."""
    outcome = go(f"analyze:\n  other: {DEFAULT_BUNDLE}\n{recipe()[len('analyze:') :].lstrip(chr(10))}")
    assert [one["bundle"] for one in outcome["results"][0]["results"]] == [str(DEFAULT_BUNDLE)] * 2
    page = (tmp_path / "r.run" / "report.html").read_text()
    assert "analyze: accuracy of A<" in page and "analyze: accuracy of B<" in page
    assert "A and B are right in the same rows" in page


def test_a_row_that_cannot_be_used_fails_the_step_and_the_report_shows_the_others(go: Go, tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"text": "no label"}\n')
    outcome = go(recipe(), code=3)
    assert (outcome["status"], outcome["exit_code"]) == ("failed", 3)
    page = (tmp_path / "r.run" / "report.html").read_text()
    assert "on 3 rows" in page and 'href="analyze.html"' in page and "rows could not be used" in page
