"""A sweep: trials with other settings, each an ordinary run, on Optuna; the best one's checkpoint becomes the output.

Trials and the study (SQLite) are in `OUTPUT.sweep`, of the trials' checkpoints only the best so far. A trial that falls
behind the median of the others is pruned. An interrupted sweep goes on: in the middle of a trial, too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from nopad.model.errors import NopadError
from nopad.model.packages import importable, install_hint
from nopad.runtime.atomic import check_output, locked, replace_folder
from nopad.runtime.errors import EnvironmentProblem, UsageError
from nopad.training.errors import SweepError
from nopad.training.recipe import Recipe
from nopad.training.run_folder import KEPT, MARKER, SWEEP_PAGE, replaceable, saved_epochs
from nopad.training.search_space import Choice, Space
from nopad.training.sweep_page import sweep_page
from nopad.training.tasks.base import SMALLER_IS_BETTER
from nopad.training.trainer import TrainingResult

_STUDY = "study.db"
_NAME = "sweep"

Train = Callable[..., TrainingResult]  # nopad.training.trainer.train of the same data


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep is to do."""

    space: Space
    trials: int
    metric: str  # of the task's, or loss

    @property
    def smaller_is_better(self) -> bool:
        """Whether the best trial has the smallest value."""
        return self.metric in SMALLER_IS_BETTER


class Pruned(Exception):
    """The trial is behind the others."""


class _Report(TrainerCallback):
    """Tells the study every evaluation, and ends a trial that is behind."""

    def __init__(self, trial: Any, metric: str) -> None:
        self._trial, self._metric = trial, metric

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any) -> None:
        """After each evaluation."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a step that was told before the interruption
            self._trial.report(metrics[f"eval_{self._metric}"], state.global_step)
        if self._trial.should_prune():
            raise Pruned


def check_sweep(output: Path, resume: bool) -> None:
    """Refuse what cannot be swept before data is read. Raises `EnvironmentProblem`, `UsageError`, `OutputError`."""
    if not importable("optuna"):
        raise EnvironmentProblem(f"a sweep needs Optuna: {install_hint('sweep')}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a sweep runs in one process; start it without torchrun")
    check_output(output, MARKER, replaceable(output))
    if resume and not (_work(output) / _STUDY).is_file():
        raise UsageError(f"nothing to resume: there is no {_work(output) / _STUDY}; run without --resume")


def run_sweep(
    sweep: Sweep, train: Train, output: Path, *, recipe: Recipe, resume: bool, console: Console
) -> TrainingResult:
    """Run the trials that are missing, and write the best one's checkpoint, with a page of all, to `output`.

    Raises `UsageError` where `resume` meets another space, `SweepError` if no trial has finished.
    """
    work = _work(output)
    with locked(work, f"sweeping to {output}"):
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        study = _open_study(sweep, work / _STUDY, recipe.seed)
        while trial := _next_trial(study, sweep):
            _run_trial(study, trial, sweep, train, work, recipe, console)
        console.print(_table(study, sweep))
        if not _finished(study):
            raise SweepError(f"no trial of {len(study.trials)} has finished: {_reasons(study)}; see {work}")
        best = study.best_trial
        with replace_folder(output, marker=MARKER, known=replaceable(output)) as folder:
            shutil.copytree(work / f"trial-{best.number}", folder, dirs_exist_ok=True)
            (folder / SWEEP_PAGE).write_text(sweep_page(study, sweep.metric, output.absolute().name), "utf-8")
        shutil.rmtree(work)
    told = json.loads(best.user_attrs["result"])
    return TrainingResult(output=output, **told)


def _work(output: Path) -> Path:
    path = Path(os.path.abspath(output))
    return path.with_name(path.name + ".sweep")


def _open_study(sweep: Sweep, path: Path, seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=_NAME,
        storage=f"sqlite:///{path}",
        direction="minimize" if sweep.smaller_is_better else "maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        load_if_exists=True,
    )
    asked = {"metric": sweep.metric, "space": {name: str(values) for name, values in sweep.space.items()}}
    if study.user_attrs.get("asked", asked) != asked:
        raise UsageError(f"{path} is a sweep of other settings or another metric; run without --resume")
    study.set_user_attr("asked", asked)
    return study


def _next_trial(study: Any, sweep: Sweep) -> Any:
    """A trial that was interrupted, else a new one; None where all have been run."""
    from optuna.trial import Trial, TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        return Trial(study, running[0]._trial_id)
    return study.ask() if len(study.trials) < sweep.trials else None


def _run_trial(
    study: Any, trial: Any, sweep: Sweep, train: Train, work: Path, recipe: Recipe, console: Console
) -> None:
    from optuna.trial import TrialState

    folder = work / f"trial-{trial.number}"
    settings = {name: _suggest(trial, name, values) for name, values in sweep.space.items()}
    shown = ", ".join(f"{name.replace('_', '-')} {_short(value)}" for name, value in settings.items())
    console.print(f"trial {trial.number + 1} of {sweep.trials}: {shown}")
    try:
        result = train(
            folder,
            recipe=dataclasses.replace(recipe, **settings),
            resume=bool(saved_epochs(folder)),
            callbacks=[_Report(trial, sweep.metric)],
            name=work.name.removesuffix(".sweep"),
            trials=sweep.trials,
            answers=work / KEPT,
        )
    except Pruned:
        study.tell(trial, state=TrialState.PRUNED)
        console.print(f"trial {trial.number + 1} is behind the others: ended")
    except (NopadError, torch.OutOfMemoryError) as error:
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
        study.tell(trial, state=TrialState.FAIL)
        console.print(f"trial {trial.number + 1} failed: {error}", style="yellow")
    else:
        told = {name: value for name, value in vars(result).items() if name != "output"}
        trial.set_user_attr("result", json.dumps(told))
        study.tell(trial, result.metrics[sweep.metric])
    kept = study.best_trial.number if _finished(study) else None
    for path in work.glob("trial-*"):
        if path.name != f"trial-{kept}":
            shutil.rmtree(path, ignore_errors=True)


def _finished(study: Any) -> bool:
    from optuna.trial import TrialState

    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _suggest(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, Choice):
        return trial.suggest_categorical(name, values.values)
    suggest = trial.suggest_int if values.whole else trial.suggest_float
    return suggest(name, values.low, values.high, log=values.log)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _reasons(study: Any) -> str:
    reasons = [f"trial {trial.number + 1}: {trial.user_attrs.get('reason', 'pruned')}" for trial in study.trials]
    return "; ".join(reasons[:3]) + ("; ..." if len(reasons) > 3 else "")


def _table(study: Any, sweep: Sweep) -> Table:
    """The trials, the best first; those that did not finish last."""
    names = [name.replace("_", "-") for name in sweep.space]
    table = Table("trial", sweep.metric, *names, "")
    sign = 1 if sweep.smaller_is_better else -1

    def rank(trial: Any) -> tuple[bool, float]:
        return trial.state.name != "COMPLETE", sign * (trial.value or 0.0)

    for trial in sorted(study.trials, key=rank):
        value = f"{trial.value:.4f}" if trial.state.name == "COMPLETE" else ""
        cells = [_short(trial.params[name]) if name in trial.params else "" for name in sweep.space]
        table.add_row(
            str(trial.number + 1), value, *cells, {"PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "")
        )
    return table
