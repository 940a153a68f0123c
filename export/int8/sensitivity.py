"""What a quantized graph answers, held against the graph it was made from, and which layers must stay as they were.

Knows neither operators nor engines nor targets: a trial is a graph with a switch for every layer and, where scales are
calibrated, an input for each of them. Batches come packed; ONNX Runtime answers on the CPU.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx.external_data_helper import load_external_data_for_model

from nopad.export.errors import ExportError
from nopad.export.graph.onnx import EXTERNAL_SUFFIX, INLINE_BYTES
from nopad.export.int8.qdq import CLIPPINGS, INFINITY, MAGNITUDES, Counts, LinearLayer, Scale, count, weight_type
from nopad.export.progress import Progress, silent
from nopad.model.packing import PackedBatch
from nopad.runtime.engines.onnx_session import session_options

# Real tokens below which calibrated scales are chance.
MIN_TOKENS = 1024
_CLIPPING_BATCHES = 8  # that the clippings are compared on
_KEPT_VALUES = 1 << 20  # logits of a batch that are looked at: fill-mask has a vocabulary of them for every token

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]
LabelsOf = Callable[[Logits], Labels]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the int8 graph must keep on the texts at hand, compared with the graph it was made from."""

    agreement: float = 0.995  # share of equal labels, 0..1
    accuracy_loss: float = 0.003  # 0..1, where true labels are given
    logit_error: float = 0.05  # as in `QuantizedGraph`; decides where labels cannot: `Comparison.by_logits`
    seconds: float = 900.0  # the search for layers to keep stops there, with what it has


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """What was written, and how it compares with the graph it was made from on the texts at hand."""

    file: Path
    int8: tuple[str, ...]  # modules whose product runs in int8
    kept: tuple[str, ...]  # linear layers of the encoder that stay in the precision they had
    clipping: str  # of `qdq.CLIPPINGS`; "none" for scales of each token
    tokens: int  # real tokens of those texts
    logit_error: float  # root mean square of the difference, relative to that of the logits
    agreement: float | None  # as `Goal` has them; None for tasks without labels
    accuracy_loss: float | None  # None without true labels
    passed: bool | None  # whether the goal is met; None where none is set
    sensitivity: Mapping[str, float]  # module -> logit error if it alone is int8; empty where nothing had to be kept
    scales: str = "calibrated"  # of activations; or "per token"
    weight_bits: int = 8
    judged_by: str = "labels"  # or "logits", as in `Goal`

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it."""
        return {**dataclasses.asdict(self), "file": self.file.name}


class Trial:
    """A graph with a switch `int8:MODULE` for every module and its scales as inputs, and texts to try it on."""

    def __init__(
        self, switched: onnx.ModelProto, modules: Sequence[str], batches: Sequence[PackedBatch], threads: int | None
    ) -> None:
        self.modules = modules
        self.batches = batches
        self.scales: Mapping[str, Scale] = {}
        self._session = session_of(switched, threads)
        self._per_token = is_per_token(switched)
        kinds = [v.type.tensor_type.elem_type for v in switched.graph.input if v.name.startswith("scale:")]
        self._scale_type = helper.tensor_dtype_to_np_dtype(kinds[0]) if kinds else np.dtype(np.float32)

    def logits(self, int8: Collection[str], batches: Sequence[PackedBatch] | None = None) -> list[Logits]:
        """Logits of each batch with the modules of `int8` quantized."""
        inputs: dict[str, Any] = {f"int8:{module}": np.array(module in int8) for module in self.modules}
        inputs |= {f"scale:{name}": scale.astype(self._scale_type) for name, scale in self.scales.items()}
        return run(self._session, batches or self.batches, self._per_token, inputs)


@dataclass(frozen=True)
class Comparison:
    """The first graph's answers, to hold others against."""

    reference: Sequence[Logits]
    targets: Sequence[Labels] | None
    labels_of: LabelsOf | None
    by_logits: bool = False  # the goal is `Goal.logit_error`: there are no labels, or too few to count

    def part(self, batches: Sequence[int]) -> Comparison:
        """The same for some of the batches, without true labels."""
        return Comparison([self.reference[i] for i in batches], None, self.labels_of)

    def error(self, answers: Sequence[Logits]) -> float:
        """Root mean square of the difference, relative to that of the reference."""
        ours, theirs = np.concatenate(answers), np.concatenate(self.reference)
        return float(np.sqrt(np.mean((ours - theirs) ** 2) / max(float(np.mean(theirs**2)), 1e-12)))

    def agreement(self, answers: Sequence[Logits]) -> float | None:
        """Share of rows with the reference's label; None for tasks without labels."""
        if self.labels_of is None:
            return None
        return _equal(self.labels_of, answers, [self.labels_of(rows) for rows in self.reference])

    def accuracy_loss(self, answers: Sequence[Logits]) -> float | None:
        """Accuracy of the reference less that of `answers`; None without true labels."""
        if self.labels_of is None or self.targets is None:
            return None
        labels = [thin(rows, logits.shape[-1]) for rows, logits in zip(self.targets, self.reference, strict=True)]
        return _equal(self.labels_of, self.reference, labels) - _equal(self.labels_of, answers, labels)

    def meets(self, goal: Goal, answers: Sequence[Logits]) -> bool:
        """Whether `answers` keep what `goal` asks for."""
        if self.by_logits:
            return self.error(answers) <= goal.logit_error
        agreement, lost = self.agreement(answers) or 0.0, self.accuracy_loss(answers) or 0.0
        return agreement >= goal.agreement and lost <= goal.accuracy_loss


def _equal(labels_of: LabelsOf, answers: Sequence[Logits], labels: Sequence[Labels]) -> float:
    """Share of rows whose labels are all the same."""
    pairs = zip(answers, labels, strict=True)
    rows = [(labels_of(logits) == wanted).reshape(len(logits), -1).all(axis=1) for logits, wanted in pairs]
    return float(np.concatenate(rows).mean())


def calibrate(
    model: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    batches: Sequence[PackedBatch],
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Counts], list[Logits]]:
    """The distribution of every tensor that `layers` read, without filler tokens, and the logits of each batch.

    fp16 has few enough numbers to count each; fp32 is rounded to it to be counted. Raises `ExportError` where the graph
    is fp16 and a tensor overflows it, and where logits are not finite.
    """
    counts = {layer.activation: np.zeros(len(MAGNITUDES), dtype=np.int64) for layer in layers}
    own = len(model.graph.output)
    kind = weight_type(model, layers[0]) if layers else 0
    model.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in counts)
    session = session_of(model, threads)
    del model.graph.output[own:]
    logits: list[Logits] = []
    for done, batch in enumerate(batches):
        progress("int8: calibrating", done, len(batches))
        answer, *tensors = session.run(["logits", *counts], _feeds(session, batch))
        logits.append(thin(answer[: batch.num_tokens] if is_per_token(model) else answer))
        for name, values in zip(counts, tensors, strict=True):
            counts[name] += count(values[: batch.num_tokens])
    for layer in layers:
        if counts[layer.activation][INFINITY:].any():
            raise ExportError(
                f"the input of {layer.module} overflows fp16 on the calibration texts, so this model can be served "
                "neither in fp16 nor in int8: export it in bf16 or fp32"
            )
    if not all(np.isfinite(rows).all() for rows in logits):
        raise ExportError("the graph answers NaN or infinity on the calibration texts: export it in bf16 or fp32")
    return counts, logits


def choose_clipping(trial: Trial, comparison: Comparison, counts: Mapping[str, Counts], progress: Progress) -> str:
    """The clipping with the least logit error where every layer is int8; its scales go into `trial`."""
    some = _spread(len(trial.batches), _CLIPPING_BATCHES)
    part, batches = comparison.part(some), [trial.batches[i] for i in some]
    best, least = "", np.inf
    scales: Mapping[str, Scale] = {}
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


def search(
    trial: Trial, comparison: Comparison, goal: Goal, progress: Progress, *, keep_as: str
) -> tuple[Collection[str], dict[str, float]]:
    """The modules to keep in `keep_as` so that the goal is met (half of them where it is not), and what each costs.

    Keeping more is taken to cost less, so their number is found by doubling, then halving.
    """
    start = time.perf_counter()

    def fits(keep: Collection[str]) -> bool:
        progress(f"int8: trying with {len(keep)} of {len(trial.modules)} layers in {keep_as}")
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


def read_model(graph: Path) -> onnx.ModelProto:
    """The graph with its weights. Raises `ExportError`."""
    try:
        return onnx.load(str(graph))
    except Exception as error:  # protobuf's own, and the file system's
        raise ExportError(f"cannot read {graph} ({error}); export the checkpoint again") from None


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `model`, its weights beside it where they are too large for one file; they stay in memory too."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= INLINE_BYTES:
        onnx.save_model(model, str(path))
        return
    onnx.save_model(model, str(path), save_as_external_data=True, location=path.name + EXTERNAL_SUFFIX)
    load_external_data_for_model(model, str(path.parent))  # saving has moved the weights out of memory


def session_of(model: onnx.ModelProto, threads: int | None) -> Any:
    """An ONNX Runtime session of a graph in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path)
        return open_session(path, threads)


def open_session(path: Path, threads: int | None) -> Any:
    """An ONNX Runtime session on the CPU that computes dequantized products in floating point.

    Raises `ExportError`.
    """
    import onnxruntime

    settings = session_options(onnxruntime, threads, {"session.disable_quant_qdq": "1"})  # products in floating point
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exception types are not public
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} cannot open the graph for int8: {error}") from None


def _feeds(session: Any, batch: PackedBatch) -> dict[str, Any]:
    return {value.name: getattr(batch, value.name) for value in session.get_inputs() if hasattr(batch, value.name)}


def run(
    session: Any, batches: Sequence[PackedBatch], per_token: bool, inputs: Mapping[str, Any] | None = None
) -> list[Logits]:
    """Logits of each batch, of real tokens only where they are `per_token`."""
    out: list[Logits] = []
    for batch in batches:
        answer: Logits = session.run(["logits"], {**_feeds(session, batch), **(inputs or {})})[0]
        out.append(thin(answer[: batch.num_tokens] if per_token else answer))
    return out


def thin(rows: npt.NDArray[Any], columns: int | None = None) -> npt.NDArray[Any]:
    """Every n-th of `rows`, so that not more than `_KEPT_VALUES` logits remain."""
    step = -(-len(rows) * (columns or rows.shape[-1]) // _KEPT_VALUES)
    return rows[:: max(1, step)]


def is_per_token(model: onnx.ModelProto) -> bool:
    """Whether the graph answers every token."""
    return model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "tokens"
