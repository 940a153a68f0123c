"""The parity gate: is what the bundle answers what transformers answers with the trained checkpoint?

The reference is transformers itself (fp32, SDPA, one text at a time, so without padding). The bundle is opened from
disk and asked through the runtime, as its users will ask it. Checks:

- lengths around every window and block edge, alone and all in one batch: logits
- batch invariance: each text alone = the same text among others
- real sentences through both tokenizers: token ids, logits, label, probabilities
- no NaN, no all-zero answer
- on labelled data: accuracy and weighted F1 of both, label agreement
- the largest batches, full length, repeated and concurrent calls: `nopad.export.parity.stress`
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nopad.export.parity.accuracy import Evaluation, evaluate
from nopad.export.parity.bounds import BOUNDS, Bounds, Row, difference, scaled
from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.export.parity.stress import stress
from nopad.export.parity.texts import compare_texts
from nopad.export.parity.token_ids import compare, differing, explain, marked_sentences
from nopad.export.progress import Progress, silent
from nopad.export.reference.transformers import Reference
from nopad.model.config import attention_block
from nopad.runtime.data.labelled import LabelledTexts
from nopad.runtime.errors import EngineError, TextError
from nopad.runtime.predictor import Model
from nopad.runtime.types import FloatArray, Text

# Longest length of the default grid: the reference is quadratic in it. `lengths=` asks for more.
DEFAULT_LONGEST = 512
_MIXED_LONGEST = 1024


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The gate's verdict and everything it rests on."""

    passed: bool
    precision: str
    bounds: Bounds
    rows: tuple[Row, ...]
    versions: dict[str, str]
    evaluation: Evaluation | None = None

    def worst(self, count: int = 5) -> list[Row]:
        """The rows nearest to (or furthest over) their bound: failures first."""
        return sorted(self.rows, key=lambda row: (row.passed, -_excess(row)))[:count]

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it; a value that is not finite (shapes differ, NaN) is null, for JSON has no other."""
        report = dataclasses.asdict(self)
        for row in report["rows"]:
            row["value"] = row["value"] if np.isfinite(row["value"]) else None
        return report


def _excess(row: Row) -> float:
    return row.value / row.bound if row.bound else row.value


def length_grid(half_window: int, block: int, max_length: int, longest: int = DEFAULT_LONGEST) -> list[int]:
    """Lengths in tokens at which a wrong window, block or position shows.

    Up to `longest`, and as far beyond as the window's own edges are.
    """
    edges = {1, 2, 511, 512, 2048, 8192}
    longest = max(longest, 2 * half_window + 1)
    for step in {half_window, block, 2 * half_window, 2 * block} - {0, -2}:
        edges |= {step - 1, step, step + 1}
    edges.add(half_window + 2)  # the shortest text whose ends do not see one another
    return sorted(n for n in edges if 1 <= n <= min(max_length, longest))


def run_gate(
    model: Model,
    reference: Reference,
    *,
    data: LabelledTexts | None = None,
    longest: int = DEFAULT_LONGEST,
    half_window: int = 64,
    thorough: bool = False,
    progress: Progress = silent,
) -> ParityReport:
    """Compare `model` with `reference`, on `data` too if it is given.

    `thorough` compares a text of full length with transformers itself, whatever that takes.
    A check that cannot be computed because the engine failed counts as failed.
    """
    bounds = BOUNDS[model.artifact.precision]
    rows: list[Row] = []
    # Blocks have edges in every graph, also where the stream needs no filler.
    lengths = length_grid(half_window, attention_block(half_window), model.manifest.max_length, longest)
    lengths = [length for length in lengths if model.takes([length])]  # another engine answers the rest
    evaluation = None
    try:
        rows += _grid(model, reference, lengths, bounds, progress)
        progress("parity: sentences")
        rows += _sentences(model, reference, bounds)
        rows += _texts(model, reference, bounds)
        if data is not None:
            evaluation, more = _data(model, reference, data, bounds, progress)
            rows += more
        rows += stress(model, reference, bounds, thorough=thorough, progress=progress)
    except EngineError as error:
        rows.append(Row(check="engine", case="runs", value=1.0, bound=0.0, passed=False, note=str(error)))
    return ParityReport(
        passed=all(row.passed for row in rows),
        precision=model.artifact.precision,
        bounds=bounds,
        rows=tuple(rows),
        versions=reference.versions,
        evaluation=evaluation,
    )


def _sequences(reference: Reference, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Real sentences' token ids, cut and framed to exact lengths; each length begins elsewhere in the text."""
    stream = reference.content_ids(" ".join(SAMPLES))
    for n, length in enumerate(lengths):
        first, last = reference.frame
        content = [stream[(17 * n + i) % len(stream)] for i in range(max(0, length - 2))]
        yield [first, *content, last][:length] if length > 1 else [first]


def _mixed_batches(model: Model, lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the mixed batches: all lengths up to `_MIXED_LONGEST` in one, each longer one with a short text.

    Attention in a batch is as large as its longest text squared, for every text in it. What no profile of the engine
    takes in one batch, is cut as the runtime would.
    """
    together = [i for i, length in enumerate(lengths) if length <= _MIXED_LONGEST]
    short = together[len(together) // 2] if together else 0
    longer = [[short, i] for i, length in enumerate(lengths) if length > _MIXED_LONGEST and i != short]
    wanted = [together, *longer] if together else [[0], *longer]
    batches = []
    for members in wanted:
        sizes = [lengths[i] for i in members]
        parts = [range(len(members))] if model.takes(sizes) else model.plan(sizes)
        batches += [[members[i] for i in part] for part in parts]
    return batches


def _grid(
    model: Model, reference: Reference, lengths: Sequence[int], bounds: Bounds, progress: Progress
) -> Iterator[Row]:
    sequences = list(_sequences(reference, lengths))
    expected, alone = [], []
    for done, ids in enumerate(sequences):
        progress(f"parity: lengths 1 to {lengths[-1]}", done, len(sequences))
        expected.append(reference.logits(ids))
        alone.append(model.run_ids([ids])[0])
    mixed: dict[int, FloatArray] = {}
    for members in _mixed_batches(model, lengths):
        for i, row in zip(members, model.run_ids([sequences[i] for i in members]), strict=True):
            mixed.setdefault(i, row)
    for i, (length, want, one) in enumerate(zip(lengths, expected, alone, strict=True)):
        bound = scaled(bounds.logits, want)
        for case, got in ((f"{length} tokens, alone", one), (f"{length} tokens, in a mixed batch", mixed[i])):
            value = difference(got, want)
            yield Row(check="logits", case=case, value=value, bound=bound, passed=value <= bound)
        value = difference(one, mixed[i])
        bound = scaled(bounds.invariance, want)
        yield Row(check="batch invariance", case=f"{length} tokens", value=value, bound=bound, passed=value <= bound)
    zeros = sum(not row.any() for row in [*alone, *mixed.values()])
    yield Row(check="no all-zero answer", case="all lengths", value=float(zeros), bound=0.0, passed=zeros == 0)


def _sentences(model: Model, reference: Reference, bounds: Bounds) -> Iterator[Row]:
    texts: list[Text] = list(PAIRS) if model.task == "rerank" else list(SAMPLES)
    if model.task == "text-classification":
        texts += PAIRS
        texts += marked_sentences(reference.tokenizer, model.manifest.architecture.get("vocab_size"))
    if model.task == "fill-mask":
        texts = [f"{text} {model.manifest.mask_token}" for text in SAMPLES]
    for one in compare(model, reference):
        yield Row(
            check="token ids", case=one.case, value=float(one.wrong), bound=0.0, passed=not one.wrong, note=one.note
        )
    encoded = [item for item in model.encode(texts) if not isinstance(item, TextError)]
    answers = model.logits(texts)
    names = reference.labels
    agree = decided = 0  # labels: one for each text, or for each token
    for text, tokens, got in zip(texts, encoded, answers, strict=True):
        case = repr(text if len(str(text)) < 40 else str(text)[:37] + "...")
        ids, types = reference.encode(text, model.manifest.max_length)
        same = tokens.input_ids == ids
        wrong = differing(tokens.input_ids, ids)
        note = "" if same else explain(model, reference, text, tokens.input_ids, ids)
        yield Row(check="token ids", case=case, value=float(wrong), bound=0.0, passed=same, note=note)
        if not same:
            continue
        if "token_type_ids" in model.artifact.inputs:
            wrong = sum(a != b for a, b in zip(tokens.token_type_ids, types or [0] * len(ids), strict=True))
            yield Row(check="token types", case=case, value=float(wrong), bound=0.0, passed=wrong == 0)
        want = reference.answer(text, ids, types)
        value = difference(got, want)
        bound = scaled(bounds.logits, want)
        yield Row(check="logits", case=case, value=value, bound=bound, passed=value <= bound)
        if model.labels:
            served = model.manifest.head.uncalibrated.probabilities(got)
            trained = reference.probabilities(want)
            value = difference(served, trained)
            bound = scaled(bounds.probabilities, trained)
            yield Row(check="probabilities", case=case, value=value, bound=bound, passed=value <= bound)
            best = np.asarray(served.argmax(-1)).reshape(-1)
            wanted = np.asarray(trained.argmax(-1)).reshape(-1)
            agree += sum(model.labels[i] == names[j] for i, j in zip(best, wanted, strict=True))
            decided += len(wanted)
    if model.labels:
        share = agree / max(1, decided)
        passed = decided > 0 and share >= bounds.agreement
        yield Row(check="labels", case=f"{len(texts)} sentences", value=share, bound=bounds.agreement, passed=passed)
        passed = tuple(model.labels) == tuple(names)
        note = "" if passed else f"bundle {model.labels}, checkpoint {names}"
        yield Row(check="label names", case="all", value=float(passed), bound=1.0, passed=passed, note=note)


def _texts(model: Model, reference: Reference, bounds: Bounds) -> Iterator[Row]:
    for one in compare_texts(model, reference):
        bound = bounds.logits * max(1.0, one.scale) if one.scale else 0.0
        passed = one.value <= bound
        note = "" if passed else one.note
        yield Row(check=one.check, case=one.case, value=one.value, bound=bound, passed=passed, note=note)


def _data(
    model: Model, reference: Reference, data: LabelledTexts, bounds: Bounds, progress: Progress
) -> tuple[Evaluation | None, list[Row]]:
    count = len(data.texts)
    start = time.perf_counter()
    rows_served = []
    for done, logits in enumerate(model.iter_logits(data.texts)):
        rows_served.append(logits)
        progress("parity: the data through the bundle", done, count)
    middle = time.perf_counter()
    trained = reference.batch_logits(
        data.texts,
        model.manifest.max_length,
        progress=lambda done: progress("parity: the data through transformers", done, count),
    )
    end = time.perf_counter()
    served = np.stack(rows_served)
    case = f"{count} texts"
    value, bound = difference(served, trained), scaled(bounds.logits, trained)
    rows = [Row(check="logits", case=case, value=value, bound=bound, passed=value <= bound)]
    if served.shape != trained.shape or model.task == "embeddings":
        return None, rows
    evaluation = evaluate(served, trained, model.manifest.head, data.targets, (middle - start, end - middle))
    if evaluation.agreement is not None:
        value, bound = evaluation.agreement, bounds.agreement
        rows.append(Row(check="labels", case=case, value=value, bound=bound, passed=value >= bound))
    if evaluation.accuracy is not None and evaluation.reference_accuracy is not None:
        value, bound = evaluation.reference_accuracy - evaluation.accuracy, bounds.accuracy_loss
        rows.append(Row(check="accuracy loss", case=case, value=value, bound=bound, passed=value <= bound))
    return evaluation, rows
