"""The study of a sweep: Optuna's record of its trials, in a SQLite file. Knows neither folders nor training.

Trials that are behind the median of the others are pruned. What is proposed depends on the seed and the trials before,
not on interruptions.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from nopad.runtime.errors import UsageError
from nopad.training.recipe import Recipe
from nopad.training.search_space import Choice, Space, contains
from nopad.training.tasks.base import SMALLER_IS_BETTER

_NAME = "sweep"
_LEAST_FINISHED = 4  # trials, before one is pruned

State = Literal["finished", "pruned", "failed", "interrupted"]
_STATES: Mapping[str, State] = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "interrupted",
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep is to do."""

    space: Space
    trials: int
    metric: str  # of the task's, or loss
    inputs: Mapping[str, Any]  # what must be the same where a sweep goes on: model and data, as JSON

    @property
    def smaller_is_better(self) -> bool:
        """Whether the best trial has the smallest value."""
        return self.metric in SMALLER_IS_BETTER


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial, as tables show it."""

    trial: int  # from 1
    state: State
    value: float | None  # of the sweep's metric, where it has finished
    settings: Mapping[str, Any]  # as options are named
    reason: str = ""  # of a failure


class Pruned(BaseException):
    """The trial is behind the others. No `Exception`, so that nothing on the way takes it for a failure."""


class Report(TrainerCallback):
    """Tells the study every evaluation, and raises `Pruned` in a trial that is behind."""

    def __init__(self, trial: Any, metric: str) -> None:
        self._trial, self._name = trial, f"eval_{metric}"

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any) -> None:
        """After each evaluation. Trials compare by its number: a step is other work with another batch size."""
        number = sum(self._name in entry for entry in state.log_history)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an evaluation that was told before the interruption
            self._trial.report(metrics[self._name], number)
        if self._trial.should_prune():
            raise Pruned


def open_study(sweep: Sweep, path: Path, recipe: Recipe) -> Any:
    """The study in that file, a new one where there is none. Raises `UsageError` if it is one of something else."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Of runs of other lengths, the longer one is behind at the same evaluation, as its learning rate is still high.
    prune = "epochs" not in sweep.space
    study = optuna.create_study(
        study_name=_NAME,
        storage=f"sqlite:///{path}",
        direction="minimize" if sweep.smaller_is_better else "maximize",
        pruner=optuna.pruners.MedianPruner(_LEAST_FINISHED) if prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    asked = {
        "metric": sweep.metric,
        "space": {name: str(values) for name, values in sweep.space.items()},
        **sweep.inputs,
        **{name: value for name, value in dataclasses.asdict(recipe).items() if name not in sweep.space},
    }
    before = study.user_attrs.get("asked", asked)
    if other := [name for name in {**before, **asked} if before.get(name) != asked.get(name)]:
        names = ", ".join(name.replace("_", "-") for name in other)
        raise UsageError(
            f"{path} is a sweep with other settings ({names}): resume it with those, or name another --output"
        )
    study.set_user_attr("asked", asked)
    return study


def next_trial(study: Any, sweep: Sweep, recipe: Recipe) -> Any:
    """A trial that was interrupted, else a new one; None where all have been run. The first has the recipe's values."""
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    # With one seed for all, a sweep that goes on would propose its first trials again.
    study.sampler = TPESampler(seed=(recipe.seed + len(trials)) % 2**32)
    if running := [trial for trial in trials if trial.state == TrialState.RUNNING]:
        return Trial(study, running[0]._trial_id)
    if len(trials) >= sweep.trials:
        return None
    given = {name: getattr(recipe, name) for name in sweep.space}
    if not study.get_trials(deepcopy=False) and all(contains(sweep.space[name], given[name]) for name in given):
        study.enqueue_trial(given)
    return study.ask()


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The settings of a trial, by the fields of `Recipe`; the same ones if it is asked again."""
    settings = {}
    for name, values in space.items():
        if isinstance(values, Choice):
            settings[name] = trial.suggest_categorical(name, values.values)
        else:
            draw = trial.suggest_int if values.whole else trial.suggest_float
            settings[name] = draw(name, values.low, values.high, log=values.log)
    return settings


def fail(study: Any, trial: Any, reason: str) -> None:
    """The trial has failed."""
    from optuna.trial import TrialState

    trial.set_user_attr("reason", reason)
    study.tell(trial, state=TrialState.FAIL)


def prune(study: Any, trial: Any) -> None:
    """The trial was behind the others."""
    from optuna.trial import TrialState

    study.tell(trial, state=TrialState.PRUNED)


def trial_rows(study: Any) -> list[Row]:
    """The trials, in the order in which they were begun."""
    return [
        Row(
            trial=trial.number + 1,
            state=_STATES[trial.state.name],
            value=trial.value if trial.state.name == "COMPLETE" else None,
            settings={name.replace("_", "-"): value for name, value in trial.params.items()},
            reason=trial.user_attrs.get("reason", ""),
        )
        for trial in study.trials
        if trial.state.name in _STATES
    ]


def short(value: Any) -> str:
    """A setting as tables show it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
