"""Learning curves: what the run has logged is what is drawn, in files that a browser shows as they are."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from browser import browser, chromium, violations
from training_samples import sentences  # noqa: F401  (skips the module where training cannot run)

from nopad.training.curves import curves_page, curves_svg

SVG = "{http://www.w3.org/2000/svg}"
HISTORY = [
    {"step": 1, "epoch": 0.1, "loss": 0.9, "learning_rate": 1e-4},
    {"step": 10, "epoch": 1.0, "loss": 0.5, "learning_rate": 5e-5},
    {"step": 10, "epoch": 1.0, "eval_loss": 0.6, "eval_f1": 0.7},
    {"step": 20, "epoch": 2.0, "loss": 0.25, "learning_rate": 0.0},
    {"step": 20, "epoch": 2.0, "eval_loss": 0.4, "eval_f1": 0.8},
    {"step": 20, "epoch": 2.0, "train_loss": 0.3},
]


def test_every_figure_of_the_log_is_drawn() -> None:
    root = ElementTree.fromstring(curves_svg(HISTORY, ("accuracy", "f1")))  # accuracy was not measured
    tips = [title.text for title in root.iter(f"{SVG}title")]
    assert tips == [
        *("step 1: loss 0.9", "step 10: loss 0.5", "step 20: loss 0.25"),
        *("step 10: eval_loss 0.6", "step 20: eval_loss 0.4"),
        *("epoch 1: eval_f1 0.7", "epoch 2: eval_f1 0.8"),
        *("step 1: learning_rate 0.0001", "step 10: learning_rate 5e-05", "step 20: learning_rate 0"),
    ]
    names = {text.text for text in root.iter(f"{SVG}text")}
    assert {"training", "evaluation", "f1"} <= names and "accuracy" not in names


def test_a_long_run_has_a_line_without_markers() -> None:
    long = [{"step": n, "epoch": n / 100, "loss": 1 / n, "learning_rate": 1e-4} for n in range(1, 201)]
    root = ElementTree.fromstring(curves_svg([*long, *HISTORY[-2:]], ("f1",)))
    (line, *_) = [one.get("d", "") for one in root.iter(f"{SVG}path") if one.get("class") == "line s0"]
    assert line.count("L") == 199
    assert not [one for one in root.iter(f"{SVG}title") if (one.text or "").startswith("step 7:")]


def test_the_page_has_the_figures_of_every_evaluation_and_is_escaped() -> None:
    page = curves_page(
        HISTORY, ("f1",), title="<b>", lead="a & b", record={"data": {"summary": "<script>"}, "gpu": None}
    )
    assert "<td>2</td><td>20</td><td>0.4000</td><td>0.8000</td>" in page
    assert "<td>data.summary</td><td>&lt;script&gt;</td>" in page and "gpu" not in page
    assert "<h1>&lt;b&gt;</h1>" in page and "a &amp; b" in page


@pytest.mark.skipif(chromium() is None, reason="no Chromium on the path")
def test_a_browser_shows_both_files_without_a_problem(command_run: Any, tmp_path: Path) -> None:
    pages = [command_run.output / name for name in ("curves.html", "curves.svg")]
    with browser() as page:
        for path in pages:
            page.open(path, width=400)
            assert page.value("document.documentElement.scrollWidth") <= max(400, 480 * (path.suffix == ".svg"))
            ground = page.value("getComputedStyle(document.querySelector('body, rect')).backgroundColor")
            page.open(path, width=1100, dark=True)
            dark = page.value("getComputedStyle(document.querySelector('body, rect')).backgroundColor")
            assert path.suffix == ".svg" or violations(page) == []
            assert path.suffix == ".svg" or (ground, dark) == ("rgb(255, 255, 255)", "rgb(13, 17, 23)")
        assert page.value("document.querySelectorAll('svg path.line').length") == 7
        assert not page.problems and set(page.requests) == {path.resolve().as_uri() for path in pages}
