"""A packed graph and texts -> the graph's int8 form, by a `Scheme`.

`nopad.export.int8.qdq` has the scheme for TensorRT, `nopad.export.int8.cpu` that for ONNX Runtime. Outliers decide
how well a model bears int8, so how activations are clipped and which layers keep their precision is measured
(`nopad.export.int8.sensitivity`), by the graph's own answers to the texts.

Knows neither checkpoints, tokenizers nor manifests: batches come packed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from nopad.export.errors import ExportError
from nopad.export.int8.linear_layers import LinearLayer, linear_layers, modules_of, weight_type
from nopad.export.int8.rounding import Rounded
from nopad.export.int8.scales import Scales
from nopad.export.int8.sensitivity import (
    MIN_TOKENS,
    Comparison,
    Goal,
    Judge,
    LabelsOf,
    QuantizedGraph,
    Trial,
    calibrate,
    choose_clipping,
    search,
)
from nopad.export.int8.sessions import is_per_token, open_session, read_model, run, write_model
from nopad.export.progress import Progress, silent
from nopad.model.head import Head
from nopad.model.packing import PackedBatch


def label_reader(head: Head) -> LabelsOf | None:
    """The function that reads labels off a head's logits; None where the head decides on none."""
    if not head.has_labels:
        return None
    return head.decide if head.multi_label else head.best


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to make linear layers int8."""

    precision: str  # of the graph it starts from, and of the layers that are kept
    # Rewrites the graph in place into one of the same answers that bears int8 better on texts, and rounds its weights.
    prepare: Callable[[onnx.ModelProto, Sequence[PackedBatch], Progress], dict[str, Rounded]] | None = None
    # Rewrites layers in place; with scales None into a trial, as `nopad.export.int8.sensitivity.Trial` wants it.
    rewrite: Callable[[onnx.ModelProto, Sequence[LinearLayer], Scales | None, Mapping[str, Rounded]], None]
    calibrated: bool = True  # scales are calibrated on the texts; else each token has its own scale
    enough_rows: int | None = None  # with fewer, or without labels, logits decide; None: labels alone, if there are any
    goal: Goal = Goal()


def quantize(
    scheme: Scheme,
    graph: Path,
    output: Path,
    batches: Iterable[PackedBatch],
    *,
    labels_of: LabelsOf | None = None,
    embeddings: bool = False,
    progress: Progress = silent,
) -> QuantizedGraph:
    """Write the int8 form of the packed graph at `graph` to `output`; `batches` of texts decide what may be int8.

    `labels_of` (from `label_reader`) reads labels off logits, where the task has any; `embeddings`: the logits are
    embeddings, so their ranking decides. The most sensitive layers are kept in the scheme's precision, at most half of
    them, until its goal is met (`_judge` says which). Where there is nothing to judge by, every layer goes to int8.

    Raises `ExportError`: texts missing or, for calibration, too few; no graph of ours in the scheme's precision;
    activations beyond fp16.
    """
    texts = _enough_texts(batches, MIN_TOKENS if scheme.calibrated else 1)
    model = read_model(graph)
    layers = linear_layers(model)
    _check_layers(model, layers, graph, scheme.precision)
    rounded: dict[str, Rounded] = {}
    if scheme.prepare is not None:
        rounded = scheme.prepare(model, texts, progress)
        layers = linear_layers(model)
    counts, reference = calibrate(model, layers if scheme.calibrated else (), texts, progress)
    judge = _judge(scheme, sum(len(rows) for rows in reference), labels_of is not None, embeddings)
    comparison = Comparison(reference, labels_of, judge=judge or "labels")
    switched = onnx.ModelProto()
    switched.CopyFrom(model)
    scheme.rewrite(switched, layers, None, rounded)
    trial = Trial(switched, modules_of(layers), texts)
    clipping = choose_clipping(trial, comparison, counts, progress) if scheme.calibrated else "none"
    kept: Collection[str] = ()
    sensitivity: dict[str, float] = {}
    if judge is not None:
        kept, sensitivity = search(trial, comparison, scheme.goal, progress, keep_as=scheme.precision)
    scales = trial.scales
    del trial, switched  # two copies of the weights
    chosen = [layer for layer in layers if layer.module not in kept]
    scheme.rewrite(model, chosen, scales, rounded)
    write_model(model, output)
    onnx.checker.check_model(str(output))
    progress("int8: asking the written graph")
    answers = run(open_session(output), texts, is_per_token(model))
    return QuantizedGraph(
        file=output,
        int8=modules_of(chosen),
        kept=tuple(module for module in modules_of(layers) if module in kept),
        clipping=clipping,
        tokens=sum(batch.num_tokens for batch in texts),
        logit_error=comparison.error(answers),
        agreement=comparison.agreement(answers),
        passed=comparison.meets(scheme.goal, answers) if judge is not None else None,
        sensitivity=sensitivity,
        scales="calibrated" if scheme.calibrated else "per token",
        judged_by=comparison.judge,
        overlap=comparison.overlap(answers) if judge == "ranking" else None,
        cosine=comparison.cosine(answers) if embeddings else None,
    )


def _judge(scheme: Scheme, rows: int, labels: bool, embeddings: bool) -> Judge | None:
    """What decides: the ranking of embeddings, else labels; with too few rows for either, their values."""
    few = scheme.enough_rows is not None and rows < scheme.enough_rows
    if embeddings and scheme.enough_rows is not None:
        return "cosine" if few else "ranking"
    if few or (scheme.enough_rows is not None and not labels):
        return "logits"
    return "labels" if labels else None


def _enough_texts(batches: Iterable[PackedBatch], tokens: int) -> Sequence[PackedBatch]:
    """The batches. Raises `ExportError` unless they have at least `tokens` real tokens."""
    texts = list(batches)
    total = sum(batch.num_tokens for batch in texts)
    if total < tokens:
        raise ExportError(
            f"int8 is calibrated on texts, and {total} tokens of them are too few: give at least {tokens} tokens; "
            "some hundred texts like those to be served are better"
        )
    return texts


def _check_layers(model: onnx.ModelProto, layers: Sequence[LinearLayer], graph: Path, precision: str) -> None:
    """Raises `ExportError` unless there are layers, and their weights are in `precision`."""
    if not layers:
        raise ExportError(
            f"{graph} has no linear layers as nopad names them: int8 is made from the packed {precision} graph; export "
            "the checkpoint with --exporter nopad"
        )
    expected = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}[precision]
    for layer in layers:
        if (kind := weight_type(model, layer)) != expected:
            dtype = TensorProto.DataType.Name(kind).lower()
            raise ExportError(
                f"{graph}: {layer.module} is {dtype}; int8 is made from the graph of --precision {precision}"
            )
