"""The page of a sweep: how it went, which settings mattered, what each value came to, and a table of all trials."""

from __future__ import annotations

from typing import Any

from nopad.charts import units
from nopad.charts.standalone import Panel, Table, page
from nopad.charts.svg import Axis, Bar, Point, Series, bars, lines, scatter


def sweep_page(study: Any, metric: str, name: str) -> str:
    """The text of an HTML file about an `optuna.Study` in which a trial has finished."""
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    best = study.best_trial
    ended = {state: sum(trial.state.name == state for trial in study.trials) for state in ("PRUNED", "FAIL")}
    lead = (
        f"{len(study.trials)} trials: {len(done)} finished, {ended['PRUNED']} pruned, {ended['FAIL']} failed. Trial "
        f"{best.number + 1} is the best: {metric} {best.value:.4f} on the rows that chose it, so less on others."
    )
    names = sorted({name for trial in study.trials for name in trial.params})
    panels = [_history(study, done, metric), *_importances(study, done, metric)]
    panels += [_slice(done, setting, metric) for setting in names]
    rows = [
        [
            str(trial.number + 1),
            f"{trial.value:.4f}" if trial in done else trial.user_attrs.get("reason", trial.state.name.lower()),
            *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in map(trial.params.get, names)),
        ]
        for trial in study.trials
    ]
    heads = ("trial", metric, *(name.replace("_", "-") for name in names))
    return page(f"{name}: sweep", lead, panels, [Table("Trials", heads, rows)])


def _history(study: Any, done: list[Any], metric: str) -> Panel:
    choose = min if study.direction.name == "MINIMIZE" else max
    values = [trial.value for trial in done]
    best = [
        Point(x=trial.number + 1, y=choose(values[: place + 1]), tip=f"best so far: {choose(values[: place + 1]):.4f}")
        for place, trial in enumerate(done)
    ]
    series = [
        Series(name="trial", style=0, points=tuple(_point(trial, trial.number + 1) for trial in done)),
        Series(name="best so far", style=1, points=tuple(best), strong=True),
    ]
    number = Axis(title="Trial", write=units.tick, least=1.0)
    svg = lines(series, number, Axis(title="", write=units.tick), label=f"{metric} by trial")
    return Panel("History", f"{metric} of the trials that finished.", svg)


def _importances(study: Any, done: list[Any], metric: str) -> list[Panel]:
    """How much of the differences each setting explains; nothing where too few trials, or all equal, say nothing."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return []
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    rows = [
        Bar(name=name.replace("_", "-"), style=0, value=value, text=units.share(value)) for name, value in found.items()
    ]
    svg = bars(rows, Axis(title="", write=units.share, least=0.0), label="Importance of each setting")
    return [Panel("Importance", f"What the best trials' {metric} has to do with each setting (PED-ANOVA).", svg)]


def _slice(done: list[Any], setting: str, metric: str) -> Panel:
    trials = [trial for trial in done if setting in trial.params]
    distribution = trials[0].distributions[setting]
    choices = getattr(distribution, "choices", None)
    places = [choices.index(trial.params[setting]) if choices else trial.params[setting] for trial in trials]
    points = tuple(_point(trial, place) for trial, place in zip(trials, places, strict=True))
    across = Axis(
        title=setting.replace("_", "-"),
        write=(lambda place: str(choices[round(place)])) if choices else units.tick,
        log=bool(getattr(distribution, "log", False)),
        ticks=tuple(float(place) for place in range(len(choices))) if choices else None,
    )
    svg = scatter([Series(name="", style=0, points=points)], across, Axis(title="", write=units.tick), label=setting)
    return Panel(setting.replace("_", "-"), f"{metric} of the trials that finished.", svg)


def _point(trial: Any, x: float) -> Point:
    return Point(x=x, y=trial.value, tip=f"trial {trial.number + 1}: {trial.value:.4f}")
