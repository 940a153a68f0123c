"""A sweep: trials with other settings, each an ordinary run, on Optuna; the best one's checkpoint becomes the output.

`OUTPUT.sweep` holds the study, the best checkpoint so far (`best`) and the run of the trial at hand. An interrupted
sweep goes on, in the middle of a trial, too. In the end the study is in the output: more trials can be added to it.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from nopad.model.errors import NopadError
from nopad.model.packages import importable, install_hint
from nopad.runtime.atomic import check_output, locked, replace_folder
from nopad.runtime.errors import EnvironmentProblem, OutputError, UsageError
from nopad.training.errors import DivergedError, SweepError, TeacherError
from nopad.training.output import add_sweep
from nopad.training.processes import processes
from nopad.training.recipe import Recipe
from nopad.training.run_folder import ANSWERS, KEPT, MARKER, STUDY, SWEEP_PAGE, replaceable, saved_epochs
from nopad.training.study import (
    Pruned,
    Report,
    Row,
    Sweep,
    fail,
    next_trial,
    open_study,
    prune,
    short,
    suggest,
    trial_rows,
)
from nopad.training.sweep_page import sweep_page
from nopad.training.trainer import TrainingResult

_BEST = "best"
_TRIAL = re.compile(r"trial-(\d+)(\.training|\.runs)?")
_OURS = re.compile(rf"{re.escape(STUDY)}(-journal)?|{ANSWERS}|{_BEST}|{_TRIAL.pattern}|\.(trial-\d+|{_BEST})\..*")
_ATTEMPTS = 2  # to go on from the same saved state, after the process was killed

Train = Callable[..., TrainingResult]  # nopad.training.trainer.train of the same data


def check_sweep(output: Path, resume: bool) -> None:
    """Refuse what cannot be swept before data is read. Raises `EnvironmentProblem`, `UsageError`, `OutputError`."""
    if not importable("optuna"):
        raise EnvironmentProblem(f"a sweep needs Optuna: {install_hint('sweep')}")
    if processes() > 1:
        raise UsageError("a sweep runs in one process; start it without torchrun")
    check_output(output, MARKER, replaceable(output))
    work = _work(output)
    if "?" in str(work):
        raise UsageError(f"the path of a sweep's study must have no question mark: {work}; name another --output")
    if work.exists() and not work.is_dir():
        raise OutputError(f"{work}, where trials are kept, is not a folder; move it away, or name another output")
    if foreign := [path.name for path in sorted(work.glob("*")) if not _OURS.fullmatch(path.name)]:
        raise OutputError(f"{work}, where trials are kept, holds {foreign[0]}; move it away, or name another output")
    if resume and not ((work / STUDY).is_file() or (output / STUDY).is_file()):
        raise UsageError(f"nothing to resume: there is no {work / STUDY}; run without --resume")
    if not resume and any(work.glob(f"*/{MARKER}")):
        raise OutputError(
            f"{work} holds a sweep that has not ended, with its best checkpoint so far: go on with --resume, or remove "
            "that folder to begin anew"
        )


def run_sweep(
    sweep: Sweep,
    train: Train,
    output: Path,
    *,
    recipe: Recipe,
    resume: bool,
    console: Console,
    tell: Callable[[Row], None] = lambda row: None,
) -> TrainingResult:
    """Run the trials that are missing, and write the best one's checkpoint, with a page of all, to `output`.

    `tell` gets every trial at the end. Raises `UsageError` where `resume` meets another sweep, `SweepError` if no trial
    has finished; an error that is not the settings' (`TeacherError`, `EnvironmentProblem`, `CheckpointError`) ends it.
    """
    work = _work(output)
    if resume and not (work / STUDY).is_file():
        _take_up(output, work)
    with locked(work, f"sweeping to {output}"):
        if not resume:
            _remove(work)
        work.mkdir(parents=True, exist_ok=True)
        study = open_study(sweep, work / STUDY, recipe)
        try:
            while trial := _next(study, sweep, work, output, recipe):
                _run_trial(study, trial, sweep, train, work, recipe, console)
        except (KeyboardInterrupt, NopadError):
            ended = sum(row.state != "interrupted" for row in trial_rows(study))
            console.print(f"{ended} of {sweep.trials} trials have ended, and are in {work}: go on with --resume")
            raise
        rows = trial_rows(study)
        console.print(_table(rows, sweep))
        for row in rows:
            tell(row)
        if not any(row.state == "finished" for row in rows):
            raise SweepError(_no_result(rows, work))
        with replace_folder(output, marker=MARKER, known=replaceable(output)) as folder:
            shutil.copytree(work / _BEST, folder, dirs_exist_ok=True)
            shutil.copy(work / STUDY, folder / STUDY)
            add_sweep(folder, len(rows))
            page = sweep_page(study, rows, sweep.metric, output.absolute().name)
            (folder / SWEEP_PAGE).write_text(page, encoding="utf-8")
        _remove(work)
    return TrainingResult(output=output, **json.loads(study.best_trial.user_attrs["result"]))


def _work(output: Path) -> Path:
    path = Path(os.path.abspath(output))
    return path.with_name(path.name + ".sweep")


def _take_up(output: Path, work: Path) -> None:
    """Make the folder of trials from the output of a sweep that has ended."""
    with replace_folder(work, marker=STUDY) as folder:
        shutil.copytree(output, folder / _BEST)
        shutil.copy(output / STUDY, folder / STUDY)


def _remove(work: Path) -> None:
    """Remove what is ours in a folder of trials, and it, if nothing is left."""
    for path in work.glob("*"):
        if path.is_dir() and _OURS.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or not empty
        work.rmdir()


def _next(study: Any, sweep: Sweep, work: Path, output: Path, recipe: Recipe) -> Any:
    """The next trial, once only the best checkpoint is left of those before it."""
    rows = trial_rows(study)
    running = {row.trial - 1 for row in rows if row.state == "interrupted"}
    if any(row.state == "finished" for row in rows):
        best = work / f"trial-{study.best_trial.number}"
        if best.is_dir():
            shutil.rmtree(work / _BEST, ignore_errors=True)
            best.rename(work / _BEST)
    for path in work.glob("trial-*"):
        name = _TRIAL.fullmatch(path.name)
        if name is None or int(name[1]) in running:
            continue
        if name[2] == ".runs":  # TensorBoard's
            runs = output.absolute().with_name(f"{output.name}.runs")
            runs.mkdir(exist_ok=True)
            for run in path.iterdir():
                run.rename(runs / f"{run.name}-trial-{int(name[1]) + 1}")
        shutil.rmtree(path, ignore_errors=True)
    return next_trial(study, sweep, recipe)


def _run_trial(
    study: Any, trial: Any, sweep: Sweep, train: Train, work: Path, recipe: Recipe, console: Console
) -> None:
    folder, number = work / f"trial-{trial.number}", trial.number + 1
    settings = suggest(trial, sweep.space)
    shown = ", ".join(f"{name.replace('_', '-')} {short(value)}" for name, value in settings.items())
    console.print(f"trial {number} of {sweep.trials}: {shown}")
    saved = saved_epochs(folder)
    at, before = saved[-1].name if saved else "start", trial.user_attrs.get("attempts", [])
    if before.count(at) >= _ATTEMPTS:
        reason = f"the process was killed {_ATTEMPTS} times at the same place ({at}); out of memory?"
        fail(study, trial, reason)
        console.print(f"trial {number} failed: {reason}", style="yellow")
        return
    trial.set_user_attr("attempts", [*before, at])
    name = work.name.removesuffix(".sweep")
    try:
        told = [Report(trial, sweep.metric)]
        result = train(
            folder,
            recipe=replace(recipe, **settings),
            resume=bool(saved),
            callbacks=told,
            name=name,
            answers=work / KEPT,
        )
    except Pruned:
        prune(study, trial)
        console.print(f"trial {number} is behind the others: ended")
    except (KeyboardInterrupt, TeacherError):
        trial.set_user_attr("attempts", [])  # ended in an orderly way
        raise
    except (DivergedError, UsageError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
        fail(study, trial, reason)
        console.print(f"trial {number} failed: {reason}", style="yellow")
    except NopadError:
        trial.set_user_attr("attempts", [])
        raise
    else:
        trial.set_user_attr(
            "result", json.dumps({name: value for name, value in vars(result).items() if name != "output"})
        )
        study.tell(trial, result.metrics[sweep.metric])
    gc.collect()  # a trainer and its callbacks know each other, and hold the weights


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # the latter on a CPU


def _no_result(rows: list[Row], work: Path) -> str:
    reasons = [f"trial {row.trial}: {row.reason or row.state}" for row in rows]
    more = "; ..." if len(reasons) > 3 else ""
    return (
        f"no trial of {len(rows)} has finished: {'; '.join(reasons[:3])}{more}. Mend what they name, or begin anew "
        f"with other --sweep values; more of the same: --resume with a larger --trials (the study is in {work})"
    )


def _table(rows: list[Row], sweep: Sweep) -> Table:
    """The trials, the best first; those that did not finish last."""
    names = [name.replace("_", "-") for name in sweep.space]
    heads = ("trial", sweep.metric, *(name.replace("-", " ") for name in names), "")  # which wrap where it is narrow
    table = Table(*(Column(head, overflow="fold") for head in heads), box=SIMPLE)
    sign = 1 if sweep.smaller_is_better else -1
    for row in sorted(rows, key=lambda row: (row.value is None, sign * (row.value or 0.0))):
        value = "" if row.value is None else f"{row.value:.4f}"
        cells = [short(row.settings[name]) if name in row.settings else "" for name in names]
        table.add_row(str(row.trial), value, *cells, "" if row.state == "finished" else row.state)
    return table
