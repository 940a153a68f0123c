"""int8 for TensorRT: a packed fp16 graph, calibrated on texts, becomes one with explicit Q/DQ (`nopad.export.qdq`).

Outliers decide how well a model bears int8, so what can be measured is: how each activation is clipped, and which
layers stay in fp16. The measure is the graph's own answer to the calibration texts, through ONNX Runtime on the CPU,
with dequantized products in floating point: sums are exact there as on a GPU, where x86 int8 kernels may saturate.

Knows neither checkpoints, tokenizers nor manifests: batches come packed.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from nopad.export.errors import ExportError
from nopad.export.onnx import EXTERNAL_SUFFIX, INLINE_BYTES
from nopad.export.parity import Progress, silent
from nopad.export.qdq import CLIPPINGS, INFINITY, Counts, Half, LinearLayer, count, insert, linear_layers
from nopad.model.packing import PackedBatch

# Real tokens below which calibrated scales are chance.
MIN_TOKENS = 1024
_CLIPPING_BATCHES = 8  # that the clippings are compared on
_KEPT_VALUES = 1 << 20  # logits of a batch that are looked at: fill-mask has a vocabulary of them for every token

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]
LabelsOf = Callable[[Logits], Labels]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the int8 graph must keep on the calibration texts, compared with the graph it was made from."""

    agreement: float = 0.995  # share of equal labels, 0..1
    accuracy_loss: float = 0.003  # 0..1, where true labels are given
    seconds: float = 900.0  # the search for layers to keep stops there, with what it has


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """What was written, and how it compares with the fp16 graph on the calibration texts."""

    file: Path
    int8: tuple[str, ...]  # modules whose product runs in int8
    kept: tuple[str, ...]  # linear layers of the encoder that stay fp16
    clipping: str  # of `qdq.CLIPPINGS`
    tokens: int  # real tokens calibrated on
    logit_error: float  # root mean square of the difference, relative to that of the logits
    agreement: float | None  # as `Goal` has them; None for tasks without labels
    accuracy_loss: float | None  # None without true labels
    passed: bool | None  # whether the goal is met; None for tasks without labels
    sensitivity: Mapping[str, float]  # module -> logit error if it alone is int8; empty where nothing had to be kept

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it."""
        return {**dataclasses.asdict(self), "file": self.file.name}


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
    texts = list(batches)
    tokens = sum(batch.num_tokens for batch in texts)
    if tokens < MIN_TOKENS:
        raise ExportError(
            f"int8 is calibrated on texts, and {tokens} tokens of them are too few: give at least {MIN_TOKENS} tokens; "
            "some hundred texts like those to be served are better"
        )
    if targets is not None and len(targets) != len(texts):
        raise ExportError(f"{len(targets)} arrays of true labels for {len(texts)} batches: give one for each batch")
    model = _load(graph)
    layers = linear_layers(model)
    chosen = _choose(model, layers, keep_fp, graph)
    counts, reference = calibrate(model, chosen, texts, threads=threads, progress=progress)
    comparison = _Comparison(reference, targets, labels_of)
    trial = _Trial(model, chosen, texts, threads)
    clipping = _choose_clipping(trial, comparison, counts, progress)
    kept: Collection[str] = ()
    sensitivity: dict[str, float] = {}
    wanted = goal or Goal()
    if labels_of is not None:
        kept, sensitivity = _search(trial, comparison, wanted, progress)
    scales = trial.scales
    del trial  # a copy of the weights, and a session
    chosen = [layer for layer in chosen if layer.module not in kept]
    insert(model, chosen, scales)
    _write(model, output)
    onnx.checker.check_model(str(output))
    progress("int8: asking the written graph")
    answers = _run(_open_session(output, threads), texts, _is_per_token(model))
    int8 = tuple(layer.module for layer in chosen)
    return QuantizedGraph(
        file=output,
        int8=int8,
        kept=tuple(layer.module for layer in layers if layer.module not in int8),
        clipping=clipping,
        tokens=tokens,
        logit_error=comparison.error(answers),
        agreement=comparison.agreement(answers),
        accuracy_loss=comparison.accuracy_loss(answers),
        passed=comparison.meets(wanted, answers) if labels_of is not None else None,
        sensitivity=sensitivity,
    )


def _load(graph: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(graph))
    except Exception as error:  # protobuf's own, and the file system's
        raise ExportError(f"cannot read {graph} ({error}); export the checkpoint again") from None


def _choose(
    model: onnx.ModelProto, layers: Sequence[LinearLayer], keep_fp: Collection[str], graph: Path
) -> list[LinearLayer]:
    if not layers:
        raise ExportError(
            f"{graph} has no linear layers as nopad names them: int8 is made from the packed fp16 graph; export the "
            "checkpoint with --exporter nopad"
        )
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for layer in layers:
        if types[layer.weight] != TensorProto.FLOAT16:
            found = TensorProto.DataType.Name(types[layer.weight]).lower()
            raise ExportError(f"{graph}: {layer.module} is {found}; int8 is made from the graph of --precision fp16")
    for pattern in keep_fp:
        if not any(fnmatch.fnmatchcase(layer.module, pattern) for layer in layers):
            raise ExportError(f"no linear layer is called {pattern}: they are {', '.join(x.module for x in layers)}")
    chosen = [x for x in layers if not any(fnmatch.fnmatchcase(x.module, pattern) for pattern in keep_fp)]
    if not chosen:
        raise ExportError(f"all {len(layers)} linear layers are to stay in fp16: export with --precision fp16 instead")
    return chosen


def calibrate(
    model: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    batches: Sequence[PackedBatch],
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Counts], list[Logits]]:
    """The exact distribution of every tensor that `layers` read, without filler tokens, and the logits of each batch.

    fp16 has few enough numbers to count each. Raises `ExportError` where a tensor overflows it.
    """
    counts = {layer.activation: np.zeros(1 << 15, dtype=np.int64) for layer in layers}
    own = len(model.graph.output)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in counts)
    session = _session_of(model, threads)
    del model.graph.output[own:]
    logits: list[Logits] = []
    for done, batch in enumerate(batches):
        progress("int8: calibrating", done, len(batches))
        answer, *tensors = session.run(["logits", *counts], _feeds(session, batch))
        logits.append(_thin(answer[: batch.num_tokens] if _is_per_token(model) else answer))
        for name, values in zip(counts, tensors, strict=True):
            counts[name] += count(values[: batch.num_tokens])
    for layer in layers:
        if counts[layer.activation][INFINITY:].any():
            raise ExportError(
                f"the input of {layer.module} overflows fp16 on the calibration texts, so this model can be served "
                "neither in fp16 nor in int8: export it in bf16 or fp32"
            )
    if not all(np.isfinite(rows).all() for rows in logits):
        raise ExportError("the fp16 graph answers NaN or infinity on the calibration texts: export it in bf16 or fp32")
    return counts, logits


class _Trial:
    """The graph with a switch for every layer and scales as inputs, and the texts that it is tried on."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[LinearLayer],
        batches: Sequence[PackedBatch],
        threads: int | None,
    ) -> None:
        switched = onnx.ModelProto()
        switched.CopyFrom(model)
        insert(switched, layers, None)
        self.modules = [layer.module for layer in layers]
        self.batches = batches
        self.scales: Mapping[str, Half] = {}
        self._session = _session_of(switched, threads)
        self._per_token = _is_per_token(model)

    def logits(self, int8: Collection[str], batches: Sequence[PackedBatch] | None = None) -> list[Logits]:
        """Logits of each batch with the modules of `int8` quantized."""
        inputs: dict[str, Any] = {f"int8:{module}": np.array(module in int8) for module in self.modules}
        inputs |= {f"scale:{name}": scale for name, scale in self.scales.items()}
        return _run(self._session, batches or self.batches, self._per_token, inputs)


@dataclass(frozen=True)
class _Comparison:
    """The fp16 graph's answers, to hold others against."""

    reference: Sequence[Logits]
    targets: Sequence[Labels] | None
    labels_of: LabelsOf | None

    def part(self, batches: Sequence[int]) -> _Comparison:
        return _Comparison([self.reference[i] for i in batches], None, self.labels_of)

    def error(self, answers: Sequence[Logits]) -> float:
        ours, theirs = np.concatenate(answers), np.concatenate(self.reference)
        return float(np.sqrt(np.mean((ours - theirs) ** 2) / max(float(np.mean(theirs**2)), 1e-12)))

    def agreement(self, answers: Sequence[Logits]) -> float | None:
        if self.labels_of is None:
            return None
        return _equal(self.labels_of, answers, [self.labels_of(rows) for rows in self.reference])

    def accuracy_loss(self, answers: Sequence[Logits]) -> float | None:
        if self.labels_of is None or self.targets is None:
            return None
        labels = [_thin(rows, logits.shape[-1]) for rows, logits in zip(self.targets, self.reference, strict=True)]
        return _equal(self.labels_of, self.reference, labels) - _equal(self.labels_of, answers, labels)

    def meets(self, goal: Goal, answers: Sequence[Logits]) -> bool:
        agreement, lost = self.agreement(answers) or 0.0, self.accuracy_loss(answers) or 0.0
        return agreement >= goal.agreement and lost <= goal.accuracy_loss


def _equal(labels_of: LabelsOf, answers: Sequence[Logits], labels: Sequence[Labels]) -> float:
    """Share of rows whose labels are all the same."""
    pairs = zip(answers, labels, strict=True)
    rows = [(labels_of(logits) == wanted).reshape(len(logits), -1).all(axis=1) for logits, wanted in pairs]
    return float(np.concatenate(rows).mean())


def _choose_clipping(trial: _Trial, comparison: _Comparison, counts: Mapping[str, Counts], progress: Progress) -> str:
    """The clipping with the least logit error where every layer is int8; its scales go into `trial`."""
    some = _spread(len(trial.batches), _CLIPPING_BATCHES)
    part, batches = comparison.part(some), [trial.batches[i] for i in some]
    best, least = "", np.inf
    scales: Mapping[str, Half] = {}
    for done, (name, clipping) in enumerate(CLIPPINGS.items()):
        progress("int8: comparing scales", done, len(CLIPPINGS))
        trial.scales = {tensor: clipping(counted) for tensor, counted in counts.items()}
        error = part.error(trial.logits(trial.modules, batches))
        if error < least:
            best, least, scales = name, error, trial.scales
    trial.scales = scales
    return best


def _spread(length: int, wanted: int) -> list[int]:
    """At most `wanted` of `length` places, evenly spread: batches are sorted by length."""
    return sorted({int(place) for place in np.linspace(0, length - 1, min(length, wanted))})


def _search(
    trial: _Trial, comparison: _Comparison, goal: Goal, progress: Progress
) -> tuple[Collection[str], dict[str, float]]:
    """The modules to keep in fp16 so that the goal is met (half of them where it is not), and what each costs alone.

    Keeping more is taken to cost less, so their number is found by doubling, then halving.
    """
    start = time.perf_counter()

    def fits(keep: Collection[str]) -> bool:
        progress(f"int8: trying with {len(keep)} of {len(trial.modules)} layers in fp16")
        return comparison.meets(goal, trial.logits([module for module in trial.modules if module not in keep]))

    if fits(()):
        return (), {}
    per_batch = (time.perf_counter() - start) / len(trial.batches)
    some = _spread(len(trial.batches), max(1, int(goal.seconds / 2 / per_batch / len(trial.modules))))
    part, batches = comparison.part(some), [trial.batches[i] for i in some]
    sensitivity: dict[str, float] = {}
    for module in trial.modules:
        progress("int8: what each layer costs", len(sensitivity), len(trial.modules))
        sensitivity[module] = part.error(trial.logits([module], batches))
    ranked = sorted(sensitivity, key=lambda module: -sensitivity[module])
    most = max(1, len(ranked) // 2)
    too_few, enough = 0, 1
    while not fits(ranked[:enough]):
        if enough == most or time.perf_counter() - start > goal.seconds:
            return ranked[:most], sensitivity
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1 and time.perf_counter() - start < goal.seconds:
        middle = (too_few + enough) // 2
        if fits(ranked[:middle]):
            enough = middle
        else:
            too_few = middle
    return ranked[:enough], sensitivity


def _write(model: onnx.ModelProto, path: Path) -> None:
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= INLINE_BYTES:
        onnx.save_model(model, str(path))
        return
    onnx.save_model(model, str(path), save_as_external_data=True, location=path.name + EXTERNAL_SUFFIX)
    load_external_data_for_model(model, str(path.parent))  # saving has moved the weights out of memory


def _session_of(model: onnx.ModelProto, threads: int | None) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _write(model, path)
        return _open_session(path, threads)


def _open_session(path: Path, threads: int | None) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.disable_quant_qdq", "1")  # products in floating point
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exception types are not public
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} cannot open the graph for int8: {error}") from None


def _feeds(session: Any, batch: PackedBatch) -> dict[str, Any]:
    return {value.name: getattr(batch, value.name) for value in session.get_inputs() if hasattr(batch, value.name)}


def _run(
    session: Any, batches: Sequence[PackedBatch], per_token: bool, inputs: Mapping[str, Any] | None = None
) -> list[Logits]:
    out: list[Logits] = []
    for batch in batches:
        answer: Logits = session.run(["logits"], {**_feeds(session, batch), **(inputs or {})})[0]
        out.append(_thin(answer[: batch.num_tokens] if per_token else answer))
    return out


def _thin(rows: npt.NDArray[Any], columns: int | None = None) -> npt.NDArray[Any]:
    """Every n-th of `rows`, so that not more than `_KEPT_VALUES` logits remain."""
    step = -(-len(rows) * (columns or rows.shape[-1]) // _KEPT_VALUES)
    return rows[:: max(1, step)]


def _is_per_token(model: onnx.ModelProto) -> bool:
    return model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "tokens"
