"""A packed graph and texts become its int8 form. TensorRT's stands here, that for CPUs in `nopad.export.int8.cpu`.

Outliers decide how well a model bears int8, so what can be measured is (`nopad.export.int8.sensitivity`): how each
activation is clipped, and which layers keep their precision. The measure is the graph's own answer to the texts. A
`Scheme` says how products are rewritten; what leads to it is the same for all.

TensorRT's has explicit Q/DQ (`nopad.export.int8.qdq`) in an fp16 graph. It is tried in ONNX Runtime on the CPU, with
dequantized products in floating point: sums are exact there as on a GPU, where x86 int8 kernels may saturate.

Knows neither checkpoints, tokenizers nor manifests: batches come packed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from nopad.export.errors import ExportError
from nopad.export.int8.qdq import LinearLayer, Scales, insert, linear_layers, weight_type
from nopad.export.int8.sensitivity import (
    MIN_TOKENS,
    Comparison,
    Goal,
    Labels,
    LabelsOf,
    QuantizedGraph,
    Trial,
    calibrate,
    choose_clipping,
    is_per_token,
    open_session,
    read_model,
    run,
    search,
    write_model,
)
from nopad.export.progress import Progress, silent
from nopad.model.head import Head
from nopad.model.packing import PackedBatch


def label_reader(head: Head) -> LabelsOf | None:
    """How labels are read off a head's logits, to be compared; None where it decides on none."""
    if not head.has_labels:
        return None
    return head.decide if head.multi_label else head.best


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to make linear layers int8."""

    precision: str  # of the graph it starts from, and of the layers that are kept
    # Rewrites layers in place; with scales None into a trial, as `nopad.export.int8.sensitivity.Trial` wants it.
    rewrite: Callable[[onnx.ModelProto, Sequence[LinearLayer], Scales | None], None]
    calibrated: bool = True  # scales are found on the texts; else each token is scaled by itself
    weight_bits: int = 8
    enough_rows: int | None = None  # with fewer, or without labels, logits decide; None: labels alone, if there are any


def quantize(
    graph: Path,
    output: Path,
    batches: Iterable[PackedBatch],
    *,
    keep_fp: Collection[str] = (),
    labels_of: LabelsOf | None = None,
    targets: Sequence[Labels] | None = None,
    goal: Goal | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> QuantizedGraph:
    """Write the int8 form of the packed fp16 graph at `graph` to `output` for TensorRT, calibrated on `batches`.

    `labels_of` (`label_reader` has it): with it, the most sensitive layers are kept in fp16, at most half of them,
    until `goal` is met; without it every layer goes to int8. The rest is as in `quantize_by`.

    Raises `ExportError`: texts missing or too few, no fp16 graph of ours, activations beyond fp16.
    """
    return quantize_by(
        Scheme(precision="fp16", rewrite=insert),
        graph,
        output,
        batches,
        keep_fp=keep_fp,
        labels_of=labels_of,
        targets=targets,
        goal=goal or Goal(),
        threads=threads,
        progress=progress,
    )


def quantize_by(
    scheme: Scheme,
    graph: Path,
    output: Path,
    batches: Iterable[PackedBatch],
    *,
    keep_fp: Collection[str],
    labels_of: LabelsOf | None,
    targets: Sequence[Labels] | None,
    goal: Goal,
    threads: int | None,
    progress: Progress,
) -> QuantizedGraph:
    """Write the int8 form of the packed graph at `graph` to `output`; `batches` tell what may be int8.

    `keep_fp`: module names or patterns (`*.mlp.Wo`) of layers that stay as they are whatever they cost.
    `labels_of`: how labels are read off logits, where the task has any; `passed` says whether the goal is met.
    `targets`: true labels of the rows of each batch, comparable with `labels_of(logits)`: [B, ...], or [tokens, ...]
    for tasks per token.

    Raises `ExportError`: texts missing or, for calibration, too few; no graph of ours in the scheme's precision.
    """
    texts = _enough_texts(batches, MIN_TOKENS if scheme.calibrated else 1, targets)
    model = read_model(graph)
    layers = linear_layers(model)
    chosen = _choose_layers(model, layers, keep_fp, graph, scheme.precision)
    read = chosen if scheme.calibrated else ()
    counts, reference = calibrate(model, read, texts, threads=threads, progress=progress)
    few = scheme.enough_rows is not None and sum(len(rows) for rows in reference) < scheme.enough_rows
    by_logits = few or (scheme.enough_rows is not None and labels_of is None)
    judged = by_logits or labels_of is not None
    comparison = Comparison(reference, targets, labels_of, by_logits=by_logits)
    switched = onnx.ModelProto()
    switched.CopyFrom(model)
    scheme.rewrite(switched, chosen, None)
    trial = Trial(switched, modules_of(chosen), texts, threads)
    clipping = choose_clipping(trial, comparison, counts, progress) if scheme.calibrated else "none"
    kept: Collection[str] = ()
    sensitivity: dict[str, float] = {}
    if judged:
        kept, sensitivity = search(trial, comparison, goal, progress, keep_as=scheme.precision)
    scales = trial.scales
    del trial, switched  # two copies of the weights
    chosen = [layer for layer in chosen if layer.module not in kept]
    scheme.rewrite(model, chosen, scales)
    write_model(model, output)
    onnx.checker.check_model(str(output))
    progress("int8: asking the written graph")
    answers = run(open_session(output, threads), texts, is_per_token(model))
    int8 = modules_of(chosen)
    return QuantizedGraph(
        file=output,
        int8=int8,
        kept=tuple(module for module in modules_of(layers) if module not in int8),
        clipping=clipping,
        tokens=sum(batch.num_tokens for batch in texts),
        logit_error=comparison.error(answers),
        agreement=comparison.agreement(answers),
        accuracy_loss=comparison.accuracy_loss(answers),
        passed=comparison.meets(goal, answers) if judged else None,
        sensitivity=sensitivity,
        scales="calibrated" if scheme.calibrated else "per token",
        weight_bits=scheme.weight_bits,
        judged_by="logits" if by_logits else "labels",
    )


def _enough_texts(
    batches: Iterable[PackedBatch], tokens: int, targets: Sequence[Labels] | None
) -> Sequence[PackedBatch]:
    """The batches, if they have as many real tokens as that, and true labels for each. Raises `ExportError`."""
    texts = list(batches)
    found = sum(batch.num_tokens for batch in texts)
    if found < tokens:
        raise ExportError(
            f"int8 is calibrated on texts, and {found} tokens of them are too few: give at least {tokens} tokens; "
            "some hundred texts like those to be served are better"
        )
    if targets is not None and len(targets) != len(texts):
        raise ExportError(f"{len(targets)} arrays of true labels for {len(texts)} batches: give one for each batch")
    return texts


def modules_of(layers: Iterable[LinearLayer]) -> tuple[str, ...]:
    """Each module once: some have several products."""
    return tuple(dict.fromkeys(layer.module for layer in layers))


def _choose_layers(
    model: onnx.ModelProto, layers: Sequence[LinearLayer], keep_fp: Collection[str], graph: Path, precision: str
) -> list[LinearLayer]:
    """The layers that no pattern of `keep_fp` names. Raises `ExportError` unless their weights are in `precision`."""
    if not layers:
        raise ExportError(
            f"{graph} has no linear layers as nopad names them: int8 is made from the packed {precision} graph; export "
            "the checkpoint with --exporter nopad"
        )
    wanted = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}[precision]
    for layer in layers:
        if (kind := weight_type(model, layer)) != wanted:
            found = TensorProto.DataType.Name(kind).lower()
            raise ExportError(
                f"{graph}: {layer.module} is {found}; int8 is made from the graph of --precision {precision}"
            )
    modules = modules_of(layers)
    for pattern in keep_fp:
        if not any(fnmatch.fnmatchcase(module, pattern) for module in modules):
            raise ExportError(f"no linear layer is called {pattern}: they are {', '.join(modules)}")
    chosen = [x for x in layers if not any(fnmatch.fnmatchcase(x.module, pattern) for pattern in keep_fp)]
    if not chosen:
        raise ExportError(
            f"all {len(modules)} linear layers are to stay in {precision}: export with --precision {precision} instead"
        )
    return chosen
