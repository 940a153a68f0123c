"""The page of a sweep: every finished trial in every plot, well-formed, and nothing asked of the network."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import optuna
import pytest
from browser import browser, chromium, violations
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.training.study import fail, trial_rows
from nopad.training.sweep_page import sweep_page


def study_of(trials: int, *, failing: int | None = None) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=3))
    for n in range(trials):
        trial = study.ask()
        rate = trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)
        trial.suggest_categorical("batch_size", (8, 16))
        trial.suggest_categorical("schedule", ("linear", "cosine"))
        trial.suggest_int("lora", 2, 16)
        if n == failing:
            fail(study, trial, "loss <nan> & more")
        else:
            study.tell(trial, 1 - abs(rate - 4e-4) * 1000)
    return study


def plots(page: str) -> dict[str, ElementTree.Element]:
    """The plots of a page by their titles; parsing refuses what is not well-formed."""
    found = re.findall(r"<figcaption>(.*?) <small>.*?</figcaption>(<svg.*?</svg>)", page, re.DOTALL)
    return {title: ElementTree.fromstring(svg) for title, svg in found}


def test_every_plot_has_every_trial_that_finished_and_the_table_all() -> None:
    study = study_of(8, failing=2)
    page = sweep_page(study, trial_rows(study), "f1", "<model>")
    drawn = plots(page)
    settings = ["learning-rate", "batch-size", "schedule", "lora"]
    assert list(drawn) == ["History", "Importance", "Trials", *settings]
    for title in ("History", "Trials", *settings):
        tips = {one.text for one in drawn[title].iter("title")}
        assert {f"trial {row.trial}: {row.value:.4f}" for row in trial_rows(study) if row.value is not None} <= tips
        assert not any((tip or "").startswith("trial 3:") for tip in tips)
    best = study.best_trial.number + 1
    assert f"8 trials: 7 finished, 0 pruned, 1 failed. Trial {best} is the best" in page
    assert f"<td>{best} (best)</td>" in page and "<td>3</td><td>loss &lt;nan&gt; &amp; more</td>" in page
    assert "&lt;model&gt;: sweep" in page and not re.search(r"(src|href)=[\"']?http|url\(", page)


def test_what_few_or_equal_trials_cannot_show_is_left_out() -> None:
    assert list(plots(sweep_page(one := study_of(1), trial_rows(one), "f1", "m")))[:2] == ["History", "learning-rate"]
    equal = optuna.create_study()
    for _ in range(5):
        trial = equal.ask()
        trial.suggest_float("weight_decay", 0.0, 0.1)
        equal.tell(trial, 1.0)
    assert list(plots(sweep_page(equal, trial_rows(equal), "loss", "m"))) == ["History", "Trials", "weight-decay"]


@pytest.mark.skipif(chromium() is None, reason="no Chromium on the path")
def test_a_browser_shows_it_without_a_problem(tmp_path: Path) -> None:
    study = study_of(12, failing=4)
    path = tmp_path / "sweep.html"
    path.write_text(sweep_page(study, trial_rows(study), "f1", "model"))
    with browser() as page:
        for width, dark in ((400, True), (1280, False)):
            page.open(path, width=width, dark=dark)
            assert page.value("document.documentElement.scrollWidth") <= width
            assert violations(page) == []
        assert page.problems == []
