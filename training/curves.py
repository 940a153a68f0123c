"""Learning curves: what `Trainer` has logged, as plots in an SVG file and in an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nopad.charts import units
from nopad.charts.standalone import Panel, Table, page, standalone
from nopad.charts.svg import Axis, Point, Series, lines

History = Sequence[Mapping[str, float]]  # `Trainer`'s log: `step`, `epoch`, and loss and learning_rate, or eval_...


def curves_svg(history: History, metric_names: Sequence[str]) -> str:
    """The text of an SVG file: the loss and the learning rate by step, the metrics by epoch."""
    return standalone(_panels(history, metric_names), width=480.0)


def curves_page(
    history: History, metric_names: Sequence[str], *, title: str, lead: str, record: Mapping[str, Any]
) -> str:
    """The same as an HTML page, with the figures of every evaluation, and the record of the run."""
    names = ("loss", *metric_names)
    evaluations = [
        [f"{entry['epoch']:.4g}", f"{entry['step']:,}", *(_figure(entry.get(f"eval_{name}")) for name in names)]
        for entry in history
        if "eval_loss" in entry
    ]
    flat = [[name, value] for name, value in _flat(record)]
    tables = [
        Table("Evaluations", ("epoch", "step", *names), evaluations),
        Table("The run", ("", ""), flat, words=True),
    ]
    return page(title, lead, _panels(history, metric_names), tables)


def _panels(history: History, metric_names: Sequence[str]) -> list[Panel]:
    steps = Axis(title="Step", write=units.tick, least=0.0)
    trained, held_out = (_points(history, name, "step") for name in ("loss", "eval_loss"))
    losses = [
        Series(name="training", style=0, points=trained, marked=len(trained) < 12),
        Series(name="evaluation", style=1, points=held_out),
    ]
    loss = lines(losses, steps, Axis(title="", write=units.tick), label="Loss by step")
    panels = [Panel("Loss", "Lower is better.", loss)]
    metrics = [
        Series(name=name, style=2 + n, points=_points(history, f"eval_{name}", "epoch"))
        for n, name in enumerate(metric_names)
    ]
    drawn = [one for one in metrics if one.points]
    if drawn:
        epochs = Axis(title="Epoch", write=units.tick, least=0.0)
        svg = lines(drawn, epochs, _range(drawn), label="Metrics of the evaluations by epoch")
        panels.append(Panel("Evaluation", "On texts that were not trained on.", svg))
    rates = _points(history, "learning_rate", "step")
    rate = Series(name="rate", style=7, points=rates, marked=len(rates) < 12)
    svg = lines([rate], steps, Axis(title="", write=units.tick, least=0.0), label="Learning rate by step")
    return [*panels, Panel("Learning rate", "", svg)]


def _range(series: Sequence[Series]) -> Axis:
    """The axis of metrics; up to 1 where all are shares."""
    values = [point.y for one in series for point in one.points]
    if min(values) < 0 or max(values) > 1:
        return Axis(title="", write=units.tick)
    return Axis(title="", write=units.tick, least=min(*values, 0.9), most=1.0)


def _points(history: History, name: str, across: str) -> tuple[Point, ...]:
    return tuple(
        Point(x=entry[across], y=entry[name], tip=f"{across} {entry[across]:.4g}: {name} {entry[name]:.4g}")
        for entry in history
        if name in entry
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested names with dots between them."""
    rows: list[tuple[str, str]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
