"""The page of a sweep: how it went, which settings mattered, what each value came to, and a table of all trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nopad.charts import units
from nopad.charts.standalone import Panel, Table, page
from nopad.charts.svg import Axis, Bar, Point, Series, bars, lines, parallel, scatter
from nopad.training.study import Row, short


def sweep_page(study: Any, rows: Sequence[Row], metric: str, name: str) -> str:
    """The text of an HTML file about an `optuna.Study` in which a trial has finished; `rows` are its trials."""
    done = [row for row in rows if row.value is not None]
    best = study.best_trial.number + 1
    ended = {state: sum(row.state == state for row in rows) for state in ("pruned", "failed")}
    lead = (
        f"{len(rows)} trials: {len(done)} finished, {ended['pruned']} pruned, {ended['failed']} failed. Trial {best} "
        f"is the best: {metric} {study.best_value:.4f} on the rows that chose it; expect worse on new texts."
    )
    # The distribution of each setting, by its option.
    space = {
        setting.replace("_", "-"): values for trial in study.trials for setting, values in trial.distributions.items()
    }
    upward = study.direction.name == "MAXIMIZE"
    panels = [_history(done, metric, max if upward else min), *_importances(study, done, metric)]
    panels += _parallel(done, space, metric, upward, best)
    panels += [_slice(done, setting, space[setting], metric, best) for setting in space]
    cells = [
        [
            f"{row.trial}{' (best)' if row.trial == best else ''}",
            row.state if row.value is None else f"{row.value:.4f}",
            *(short(row.settings[setting]) if setting in row.settings else "" for setting in space),
        ]
        for row in rows
    ]
    tables = [Table("Trials", ("trial", metric, *space), cells)]
    if reasons := [[str(row.trial), row.reason] for row in rows if row.reason]:
        tables.append(Table("Why trials failed", ("trial", "reason"), reasons, words=True))
    return page(f"{name}: sweep", lead, panels, tables)


def _history(done: Sequence[Row], metric: str, choose: Callable[[list[float]], float]) -> Panel:
    best = []
    for place, row in enumerate(done):
        value = choose([_value(one) for one in done[: place + 1]])
        best.append(Point(x=row.trial, y=value, tip=f"best so far: {value:.4f}"))
    series = [
        Series(name="trial", style=0, points=tuple(_point(row, row.trial) for row in done)),
        Series(name="best so far", style=1, points=tuple(best), strong=True),
    ]
    number = Axis(title="Trial", write=units.tick, ticks=_some([row.trial for row in done]))
    svg = lines(series, number, Axis(title="", write=units.tick), label=f"{metric} by trial")
    return Panel("History", f"{metric} of the trials that finished.", svg)


def _some(numbers: Sequence[int]) -> tuple[float, ...]:
    """Whole numbers for an axis, not too many."""
    low, high = min(numbers), max(numbers)
    return tuple(float(number) for number in range(low, high + 1, max(1, -(-(high - low) // 8))))


def _importances(study: Any, done: Sequence[Row], metric: str) -> list[Panel]:
    """How much of the differences each setting explains; nothing where too few trials, or all equal, say nothing."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if len(done) < 4 or len({row.value for row in done}) < 2:
        return []
    # Not PED-ANOVA: it judges by the best tenth of the trials, which is one or two of them here.
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    rows = [
        Bar(name=name.replace("_", "-"), style=0, value=float(value), text=units.share(float(value)))
        for name, value in found.items()
    ]
    svg = bars(rows, Axis(title="", write=units.share, least=0.0), label="Importance of each setting")
    return [Panel("Importance", f"Share of the differences of {metric} that each setting explains (fANOVA).", svg)]


def _parallel(done: Sequence[Row], space: dict[str, Any], metric: str, upward: bool, best: int) -> list[Panel]:
    """Every trial as a line over all its settings, the worst first."""
    shown = [row for row in done if space.keys() <= row.settings.keys()]
    if len(shown) < 2:
        return []
    axes = [*(_axis(setting, values) for setting, values in space.items()), Axis(title=metric, write=units.tick)]
    series = []
    for row in sorted(shown, key=lambda row: (row.trial == best, _value(row) * (1 if upward else -1))):
        values = [*(_place(row.settings[setting], values) for setting, values in space.items()), _value(row)]
        points = tuple(
            Point(x=n, y=value, tip=f"trial {row.trial}: {_value(row):.4f}") for n, value in enumerate(values)
        )
        series.append(Series(name="", style=1 if row.trial == best else 0, points=points, strong=row.trial == best))
    svg = parallel(series, axes, label=f"Settings of each trial, and its {metric}")
    return [Panel("Trials", "A line for each; the better, the darker. The best is the thick one.", svg)]


def _slice(done: Sequence[Row], setting: str, values: Any, metric: str, best: int) -> Panel:
    rows = [row for row in done if setting in row.settings]
    series = [
        Series(
            name="best" if strong else "",
            style=1 if strong else 0,
            strong=strong,
            points=tuple(
                _point(row, _place(row.settings[setting], values)) for row in rows if (row.trial == best) is strong
            ),
        )
        for strong in (False, True)
    ]
    across = _axis(setting, values)
    svg = scatter(series, across, Axis(title="", write=units.tick), label=f"{metric} by {setting}")
    return Panel(setting, f"{metric} of the trials that finished.", svg)


def _axis(setting: str, values: Any) -> Axis:
    """The axis of a setting: its whole range, or a tick for each of its values."""
    choices = getattr(values, "choices", None)
    if choices is None:
        log = bool(values.log)
        return Axis(title=setting, write=_tick, log=log, least=float(values.low), most=float(values.high))
    ticks = tuple(float(place) for place in range(len(choices)))
    return Axis(title=setting, write=lambda place: short(choices[round(place)]), ticks=ticks, least=0.0, most=ticks[-1])


def _tick(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else units.tick(value)


def _place(value: Any, values: Any) -> float:
    choices = getattr(values, "choices", None)
    return float(value if choices is None else choices.index(value))


def _value(row: Row) -> float:
    assert row.value is not None, "of a trial that has finished"
    return row.value


def _point(row: Row, x: float) -> Point:
    return Point(x=x, y=_value(row), tip=f"trial {row.trial}: {_value(row):.4f}")
