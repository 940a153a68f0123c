"""Real sentences through both tokenizers and both models: token ids, logits, probabilities, labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nopad.export.parity.bounds import Row, answer_rows, difference, scaled
from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.export.parity.token_ids import compare, differing, explain, marked_sentences
from nopad.export.parity.trial import Trial
from nopad.model.head import BARE
from nopad.runtime.errors import TextError
from nopad.runtime.types import FloatArray, Text


def sentences(trial: Trial) -> Iterator[Row]:
    """Every sentence alone, then the share of equal labels over all of them."""
    model, reference, bounds = trial.model, trial.reference, trial.bounds
    trial.progress("parity: sentences")
    for comparison in compare(model, reference):
        yield Row.at_most("token ids", comparison.case, float(comparison.wrong), 0.0, comparison.note)
    texts = _texts(trial)
    encoded = [item for item in model.encode(texts) if not isinstance(item, TextError)]
    names = reference.labels
    agree = decided = 0  # labels: one for each text, or for each token
    for text, tokens, got in zip(texts, encoded, model.logits(texts), strict=True):
        case = repr(text if len(str(text)) < 40 else str(text)[:37] + "...")
        ids, types = reference.encode(text, model.manifest.max_length)
        same = tokens.input_ids == ids
        note = "" if same else explain(model, reference, text, tokens.input_ids, ids)
        yield Row.at_most("token ids", case, float(differing(tokens.input_ids, ids)), 0.0, note)
        if not same:
            continue
        if "token_type_ids" in model.artifact.inputs:
            wrong = sum(a != b for a, b in zip(tokens.token_type_ids, types or [0] * len(ids), strict=True))
            yield Row.at_most("token types", case, float(wrong), 0.0)
        want = reference.answer(text, ids, types)
        yield from answer_rows(case, got, want, bounds, embedding=model.task in BARE)
        if model.labels:
            ours, theirs = model.manifest.head.uncalibrated.probabilities(got), reference.probabilities(want)
            bound = scaled(bounds.probabilities, theirs)
            yield Row.at_most("probabilities", case, difference(ours, theirs), bound)
            pairs = list(zip(_best(ours), _best(theirs), strict=True))
            agree += sum(model.labels[i] == names[j] for i, j in pairs)
            decided += len(pairs)
    if model.labels:
        share = agree / decided if decided else 0.0
        yield Row.at_least("labels", f"{len(texts)} sentences", share, bounds.agreement)
        same = tuple(model.labels) == tuple(names)
        note = "" if same else f"bundle {model.labels}, checkpoint {names}"
        yield Row.at_least("label names", "all", float(same), 1.0, note)


def _texts(trial: Trial) -> list[Text]:
    """The sentences that suit the bundle's task."""
    manifest = trial.model.manifest
    if manifest.task == "fill-mask":
        return [f"{text} {manifest.mask_token}" for text in SAMPLES]
    if manifest.task == "rerank":
        return list(PAIRS)
    if manifest.task == "text-classification":
        marked = marked_sentences(trial.reference.tokenizer, manifest.architecture.get("vocab_size"))
        return [*SAMPLES, *PAIRS, *marked]
    return list(SAMPLES)


def _best(scores: FloatArray) -> list[int]:
    """The index of the highest score: of the text, or of each token."""
    return [int(index) for index in np.asarray(scores.argmax(-1)).reshape(-1)]
