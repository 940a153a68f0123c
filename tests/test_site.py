"""The documentation builds as a site: every link leads somewhere, and what is generated says what its sources say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from nopad.runtime.cli import COMMANDS

pytest.importorskip("mkdocs", reason="the documentation's site needs nopad[docs]")


def build(project: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    """`mkdocs build --strict` as `make docs` calls it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", project / "mkdocs.yml"]
    return subprocess.run([*map(str, command), "--site-dir", str(site)], capture_output=True, text=True, cwd=project)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_readme_is_the_first_page_and_its_links_lead_into_the_site(site: Path) -> None:
    page = (site / "index.html").read_text("utf-8")
    assert 'href="parity.html#seeded-faults"' in page
    assert 'href="recipes/imdb.yaml"' in page and (site / "recipes" / "imdb.yaml").is_file()


def test_every_command_has_its_help_on_the_page_of_commands(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text("utf-8")
    for name in COMMANDS:
        assert f'id="nopad-{name}"' in page
        assert f"Usage: nopad {name}" in page


def test_the_reference_is_made_from_docstrings(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text("utf-8")
    for name in ("predictor.load", "predictor.Model.predict", "types.Explanation", "errors.BundleError"):
        assert f'id="nopad.runtime.{name}"' in page


def test_reports_of_benchmarks_are_made_from_their_results(site: Path) -> None:
    results = sorted((ROOT / "docs" / "benchmarks").glob("modernbert-*.json"))
    index = (site / "benchmarks" / "index.html").read_text("utf-8")
    for path in results:
        raw = json.loads(path.read_text("utf-8"))
        report = (site / "benchmarks" / f"{path.stem}-report.html").read_text("utf-8")
        assert all(workload["name"] in report for workload in raw["workloads"])
        assert f"{path.stem}-speed.svg" in index and (site / "benchmarks" / f"{path.stem}-speed.svg").is_file()


def test_no_page_asks_another_host_for_a_font_or_a_script(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert "fonts.googleapis" not in text and '<script src="http' not in text, page


def test_links_that_lead_nowhere_fail_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for path in ROOT.iterdir():  # a project with its own docs/, and all else as it is
        if path.name not in ("docs", "build"):
            (tmp_path / path.name).symlink_to(path)
    page = tmp_path / "docs" / "data.md"
    page.write_text(page.read_text("utf-8") + "\n[a](missing.md) [b](parity.md#no-such-heading)\n", "utf-8")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    warnings = [line for line in built.stderr.splitlines() if line.startswith("WARNING") and "Doc file" in line]
    assert len(warnings) == 2 and "missing.md" in built.stderr and "no-such-heading" in built.stderr, built.stderr
