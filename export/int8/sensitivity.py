"""A quantized graph's answers against those of its original, and which layers must keep their precision.

Knows neither operators nor engines nor targets: a trial is a graph with a switch for every layer and, where scales are
calibrated, an input for each of them. Batches come packed; ONNX Runtime answers on the CPU.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from nopad.export.errors import ExportError
from nopad.export.int8.linear_layers import LinearLayer, weight_type
from nopad.export.int8.ranking import cosines, overlap
from nopad.export.int8.scales import CLIPPINGS, INFINITY, MAGNITUDES, Counts, Scale, count
from nopad.export.int8.sessions import Logits, feeds, is_per_token, run, session_of, spread, thin
from nopad.export.progress import Progress
from nopad.model.packing import PackedBatch

# With fewer real tokens, calibrated scales are chance.
MIN_TOKENS = 1024
_CLIPPING_BATCHES = 8  # that the clippings are compared on

Labels = npt.NDArray[Any]
Judge = Literal["labels", "logits", "ranking", "cosine"]
LabelsOf = Callable[[Logits], Labels]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How near the int8 graph must stay to its original on the texts at hand."""

    agreement: float = 0.995  # share of equal labels, 0..1
    logit_error: float = 0.05  # as in `QuantizedGraph`; decides where labels cannot
    overlap: float = 0.95  # of embeddings, as in `QuantizedGraph`
    cosine: float = 0.99  # the same; decides where texts are too few to rank
    seconds: float = 900.0  # the search for layers to keep stops then, with its result so far


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """The written graph, and how it compares with its original on the texts at hand."""

    file: Path
    int8: tuple[str, ...]  # modules whose product runs in int8
    kept: tuple[str, ...]  # linear layers of the encoder that stay in the precision they had
    clipping: str  # of `scales.CLIPPINGS`; "none" for scales of each token
    tokens: int  # real tokens of those texts
    logit_error: float  # root mean square of the difference, relative to that of the logits
    agreement: float | None  # as `Goal` has it; None for tasks without labels
    accuracy_loss: None = None  # these texts have no true labels (the gate's have); manifests keep the key
    passed: bool | None  # whether the goal is met; None where none is set
    sensitivity: Mapping[str, float]  # module -> logit error if it alone is int8; empty where nothing had to be kept
    scales: str = "calibrated"  # of activations; or "per token"
    weight_bits: int = 8
    judged_by: Judge = "labels"
    overlap: float | None = None  # of embeddings: share of equal texts among each text's ten nearest others
    cosine: float | None = None  # of embeddings: the least cosine of a text to its original

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it."""
        return {**dataclasses.asdict(self), "file": self.file.name}


class Trial:
    """A graph with a switch `int8:MODULE` for every module and its scales as inputs, and texts to try it on."""

    def __init__(self, switched: onnx.ModelProto, modules: Sequence[str], batches: Sequence[PackedBatch]) -> None:
        self.modules = modules
        self.batches = batches
        self.scales: Mapping[str, Scale] = {}
        self._session = session_of(switched)
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
    """The original graph's answers, and how far other answers are from them."""

    reference: Sequence[Logits]
    labels_of: LabelsOf | None
    judge: Judge = "labels"  # what decides, of `Goal`

    def part(self, batches: Sequence[int]) -> Comparison:
        """The same for some of the batches."""
        return dataclasses.replace(self, reference=[self.reference[i] for i in batches])

    def error(self, answers: Sequence[Logits]) -> float:
        """Root mean square of the difference, relative to that of the reference."""
        ours, theirs = np.concatenate(answers), np.concatenate(self.reference)
        return float(np.sqrt(np.mean((ours - theirs) ** 2) / max(float(np.mean(theirs**2)), 1e-12)))

    def agreement(self, answers: Sequence[Logits]) -> float | None:
        """Share of rows with the reference's label (all of its labels); None for tasks without labels."""
        if self.labels_of is None:
            return None
        pairs = zip(map(self.labels_of, answers), map(self.labels_of, self.reference), strict=True)
        rows = [(ours == theirs).reshape(len(ours), -1).all(axis=1) for ours, theirs in pairs]
        return float(np.concatenate(rows).mean())

    def overlap(self, answers: Sequence[Logits]) -> float:
        """Of embeddings, as `QuantizedGraph` has it."""
        return overlap(np.concatenate(answers), np.concatenate(self.reference))

    def cosine(self, answers: Sequence[Logits]) -> float:
        """Of embeddings, as `QuantizedGraph` has it."""
        return float(cosines(np.concatenate(answers), np.concatenate(self.reference)).min())

    def meets(self, goal: Goal, answers: Sequence[Logits]) -> bool:
        """Whether `answers` meet `goal`."""
        if self.judge == "logits":
            return self.error(answers) <= goal.logit_error
        if self.judge == "ranking":
            return self.overlap(answers) >= goal.overlap
        if self.judge == "cosine":
            return self.cosine(answers) >= goal.cosine
        return (self.agreement(answers) or 0.0) >= goal.agreement


def calibrate(
    model: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    batches: Sequence[PackedBatch],
    progress: Progress,
) -> tuple[dict[str, Counts], list[Logits]]:
    """The distribution of every tensor that `layers` read, without filler tokens, and the logits of each batch.

    fp16 has few enough numbers to count each; fp32 is rounded to it to be counted. Raises `ExportError` where the graph
    is fp16 and a tensor overflows it, and where logits are not finite.
    """
    counts = {layer.activation: np.zeros(len(MAGNITUDES), dtype=np.int64) for layer in layers}
    own = len(model.graph.output)
    kind = weight_type(model, layers[0]) if layers else 0
    model.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in counts)
    session = session_of(model)
    del model.graph.output[own:]
    logits: list[Logits] = []
    for done, batch in enumerate(batches):
        progress("int8: calibrating", done, len(batches))
        answer, *tensors = session.run(["logits", *counts], feeds(session, batch))
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
    indices = spread(len(trial.batches), _CLIPPING_BATCHES)
    part, batches = comparison.part(indices), [trial.batches[i] for i in indices]
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


def search(
    trial: Trial, comparison: Comparison, goal: Goal, progress: Progress, *, keep_as: str
) -> tuple[Collection[str], dict[str, float]]:
    """The modules to keep in `keep_as` so that the goal is met (half of them where it is not), and the error of each.

    Keeping more modules is assumed to lower the error, so their number is found by doubling, then halving.
    """
    start = time.perf_counter()

    def fits(keep: Collection[str]) -> bool:
        progress(f"int8: trying with {len(keep)} of {len(trial.modules)} layers in {keep_as}")
        return comparison.meets(goal, trial.logits([module for module in trial.modules if module not in keep]))

    if fits(()):
        return (), {}
    per_batch = (time.perf_counter() - start) / len(trial.batches)
    indices = spread(len(trial.batches), max(1, int(goal.seconds / 2 / per_batch / len(trial.modules))))
    part, batches = comparison.part(indices), [trial.batches[i] for i in indices]
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
