"""int8 for TensorRT: a packed fp16 graph, calibrated on texts, becomes one with explicit Q/DQ (`nopad.export.qdq`).

Outliers decide how well a model bears int8, so what can be measured is (`nopad.export.sensitivity`): how each
activation is clipped, and which layers stay in fp16. The measure is the graph's own answer to the calibration texts,
through ONNX Runtime on the CPU, with dequantized products in floating point: sums are exact there as on a GPU, where
x86 int8 kernels may saturate.

Knows neither checkpoints, tokenizers nor manifests: batches come packed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from nopad.export.errors import ExportError
from nopad.export.parity import Progress, silent
from nopad.export.qdq import LinearLayer, insert, linear_layers, weight_type
from nopad.export.sensitivity import (
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
from nopad.model.packing import PackedBatch


def label_reader(task: str, problem_type: str | None) -> LabelsOf | None:
    """How labels are read off the logits of a task; None where there are none to compare."""
    if task in ("embeddings", "rerank") or problem_type == "regression":
        return None
    if problem_type == "multi_label_classification":
        return lambda logits: logits > 0
    return lambda logits: logits.argmax(-1)


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
    """Write the int8 form of the packed fp16 graph at `graph` to `output`, calibrated on `batches`.

    `keep_fp`: module names or patterns (`*.mlp.Wo`) of layers that stay fp16 whatever they cost.
    `labels_of` (`label_reader` has it): with it, the most sensitive layers are kept in fp16, at most half of them,
    until `goal` (default: `Goal()`) is met; `passed` says whether it is. Without it every layer goes to int8.
    `targets`: true labels of the rows of each batch, comparable with `labels_of(logits)`: [B, ...], or [tokens, ...]
    for tasks per token.

    Raises `ExportError`: texts missing or too few, no fp16 graph of ours, activations beyond fp16.
    """
    texts = enough_texts(batches, MIN_TOKENS, targets)
    model = read_model(graph)
    layers = linear_layers(model)
    chosen = choose_layers(model, layers, keep_fp, graph, "fp16")
    counts, reference = calibrate(model, chosen, texts, threads=threads, progress=progress)
    comparison = Comparison(reference, targets, labels_of)
    switched = onnx.ModelProto()
    switched.CopyFrom(model)
    insert(switched, chosen, None)
    trial = Trial(switched, modules_of(chosen), texts, threads)
    clipping = choose_clipping(trial, comparison, counts, progress)
    kept: Collection[str] = ()
    sensitivity: dict[str, float] = {}
    wanted = goal or Goal()
    if labels_of is not None:
        kept, sensitivity = search(trial, comparison, wanted, progress, keep_as="fp16")
    scales = trial.scales
    del trial, switched  # two copies of the weights
    chosen = [layer for layer in chosen if layer.module not in kept]
    insert(model, chosen, scales)
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
        passed=comparison.meets(wanted, answers) if labels_of is not None else None,
        sensitivity=sensitivity,
    )


def enough_texts(
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


def choose_layers(
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
