"""What a study proposes, prunes and refuses, without training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.runtime.errors import UsageError
from nopad.training.recipe import Recipe
from nopad.training.search_space import Choice, Range, Space
from nopad.training.study import Pruned, Report, Sweep, fail, next_trial, open_study, prune, suggest, trial_rows

SPACE: Space = {
    "learning_rate": Range(low=1e-5, high=1e-3, log=True, whole=False),
    "batch_size": Choice((8, 16, 32)),
}
RECIPE = Recipe(learning_rate=2e-4, batch_size=16)


def sweep(space: Space = SPACE, trials: int = 6, metric: str = "f1", **inputs: Any) -> Sweep:
    return Sweep(space=space, trials=trials, metric=metric, inputs=inputs)


def evaluate(trial: Any, number: int, value: float, step: int) -> None:
    """What `Trainer` calls after an evaluation."""
    state = SimpleNamespace(global_step=step, log_history=[{"loss": 1.0}, *[{"eval_f1": value}] * number])
    Report(trial, "f1").on_evaluate(None, state, None, {"eval_f1": value})


def run_all(path: Path, opened_anew: bool) -> list[dict[str, Any]]:
    study, found = open_study(sweep(), path, RECIPE), []
    while trial := next_trial(study, sweep(), RECIPE):
        found.append(suggest(trial, SPACE))
        study.tell(trial, found[-1]["learning_rate"])
        if opened_anew:
            study = open_study(sweep(), path, RECIPE)
    return found


def test_the_first_trial_is_the_recipe_and_interruptions_change_no_proposal(tmp_path: Path) -> None:
    whole, in_parts = (run_all(tmp_path / name, name == "parts") for name in ("whole", "parts"))
    assert whole == in_parts
    assert whole[0] == {"learning_rate": 2e-4, "batch_size": 16}
    assert len({settings["learning_rate"] for settings in whole}) == 6


def test_a_trial_that_was_interrupted_is_handed_out_again_with_its_settings(tmp_path: Path) -> None:
    study = open_study(sweep(), tmp_path / "study.db", Recipe(learning_rate=1.0))  # outside the space: no first trial
    first = next_trial(study, sweep(), RECIPE)
    settings = suggest(first, SPACE)
    again = next_trial(open_study(sweep(), tmp_path / "study.db", Recipe(learning_rate=1.0)), sweep(), RECIPE)
    assert again.number == first.number == 0 and suggest(again, SPACE) == settings
    assert [row.state for row in trial_rows(study)] == ["interrupted"]


def test_trials_compare_at_the_same_evaluation_whatever_their_steps(tmp_path: Path) -> None:
    study = open_study(sweep(), tmp_path / "study.db", RECIPE)
    for n in range(4):
        trial = next_trial(study, sweep(), RECIPE)
        for number, value in ((1, 0.5), (2, 0.9)):
            evaluate(trial, number, value, step=number * 10 * (n + 1))
        study.tell(trial, 0.9)
    good, bad = study.ask(), study.ask()
    evaluate(good, 1, 0.6, step=20)  # at this step others had had their second evaluation
    with pytest.raises(Pruned):
        evaluate(bad, 1, 0.4, step=1000)


def test_nothing_is_pruned_before_there_is_something_to_compare_with_nor_where_lengths_differ(tmp_path: Path) -> None:
    lengths: Space = {"epochs": Range(low=1.0, high=4.0, log=False, whole=False)}
    for name, space, finished in (("few", SPACE, 3), ("lengths", lengths, 8)):
        study = open_study(sweep(space), tmp_path / name, RECIPE)
        for _ in range(finished):
            trial = study.ask()
            evaluate(trial, 1, 0.9, step=10)
            study.tell(trial, 0.9)
        evaluate(study.ask(), 1, 0.1, step=10)


def test_another_sweep_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    open_study(sweep(model="a", data={"rows": 3}), path, RECIPE)
    open_study(sweep(model="a", data={"rows": 3}, trials=9), path, RECIPE)  # more trials are the same sweep
    for other, recipe, name in (
        (sweep(model="b", data={"rows": 3}), RECIPE, "model"),
        (sweep(model="a", data={"rows": 4}), RECIPE, "data"),
        (sweep(model="a", data={"rows": 3}, metric="loss"), RECIPE, "metric"),
        (sweep(model="a", data={"rows": 3}), Recipe(epochs=7), "epochs"),
        (sweep({"lora": Choice((4, 8))}, model="a", data={"rows": 3}), RECIPE, "space, learning-rate, batch-size"),
    ):
        with pytest.raises(UsageError, match=rf"study\.db is a sweep with other settings \(.*{name}.*\)"):
            open_study(other, path, recipe)


def test_rows_say_how_each_trial_ended(tmp_path: Path) -> None:
    study = open_study(sweep(metric="loss"), tmp_path / "study.db", RECIPE)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    for n in range(4):
        trial = next_trial(study, sweep(), RECIPE)
        suggest(trial, SPACE)
        if n == 0:
            study.tell(trial, 0.25)
        elif n == 1:
            prune(study, trial)
        elif n == 2:
            fail(study, trial, "it diverged")
    rows = trial_rows(study)
    assert [row.state for row in rows] == ["finished", "pruned", "failed", "interrupted"]
    assert [row.value for row in rows] == [0.25, None, None, None] and rows[2].reason == "it diverged"
    assert [row.trial for row in rows] == [1, 2, 3, 4] and rows[0].settings["batch-size"] == 16
