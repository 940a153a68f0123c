"""How good are explanations? Deletion and insertion against random, agreement, completeness, stability, and speed.

    nopad export runtime/default/checkpoint --target torch --precision fp32 --output bundle/
    python scripts/judge_explanations.py imdb/test.jsonl bundle/ --texts 60 --output docs/explanations.json

Each line of the file is {"text": ...}. `bundle/` answers on ONNX Runtime and, for gradients, on the torch engine.
Deletion (V. Petsiuk et al., "RISE", BMVC 2018, arXiv 1806.07421): words are removed, those that speak most for a label
first, and its score should fall fast: the smaller the area below that curve the better. Insertion begins with
nothing and puts words back in the same order: the larger the better. Both are judged with removed words dropped, and
with masks in their place, so that no method is judged only by the way of removing that it was made with.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from nopad.model.cpus import cpu_at_hand
from nopad.runtime import Model, load
from nopad.runtime.answering import Asking
from nopad.runtime.atomic import write_file
from nopad.runtime.bundle import DEFAULT_CHECKPOINT
from nopad.runtime.explain.explaining import Asked, Explainer
from nopad.runtime.explain.perturbed import perturb
from nopad.runtime.explain.units import units_of
from nopad.runtime.types import Explanation

STEPS = 10  # points of a curve beside its beginning
# name -> options of `Model.explain`; "some" are made of the first texts alone, since they cost most.
METHODS: dict[str, dict[str, Any]] = {
    "occlusion, drop": {"method": "occlusion"},
    "occlusion, mask": {"method": "occlusion", "removal": "mask"},
    "shapley, drop": {"method": "shapley"},
    "shapley, mask": {"method": "shapley", "removal": "mask"},
    "integrated-gradients": {"method": "integrated-gradients"},
    "gradient-x-input": {"method": "gradient-x-input"},
}
SOME = ("shapley, mask",)
RESPACED = ("occlusion, drop", "integrated-gradients")  # those that are asked again with other blanks
Array = npt.NDArray[np.float64]


def curves(model: Model, text: str, scores: Array, label: int, *, mask: bool) -> tuple[float, float]:
    """The areas below the deletion and the insertion curve, 0..1."""
    (tokens,) = model.encode([text])
    assert not isinstance(tokens, Exception)
    units = units_of(tokens, "word")
    order = np.argsort(-scores, kind="stable")
    counts = np.unique(np.round(np.linspace(0, len(units), STEPS + 1)).astype(int))
    first = np.zeros((len(counts), len(units)), dtype=bool)
    for row, count in enumerate(counts):
        first[row, order[:count]] = True
    mask_id = model._inference.mask_id
    assert mask_id is not None
    kept = np.concatenate((~first, first))
    made = perturb(tokens, units, kept, mask=mask_id if mask else None, stand_in=mask_id)
    rows = [logits for logits, _ in model._answering.run(made.texts, Asking())]
    share = counts / len(units)
    found = model.manifest.head.probabilities(made.logits(rows, model.manifest.head, None))[:, label]
    areas = [float(np.trapezoid(half, share)) for half in np.split(found, 2)]
    return areas[0], areas[1]


def scores_of(explanation: Explanation) -> Array:
    """The score of each word."""
    return np.array([each.score for each in explanation.attributions])


def spaced(text: str) -> str:
    """The same words with other blanks between them."""
    return re.sub(r" ", "  ", re.sub(r"(?<=[.!?]) ", "\n", text)) + "\n"


def correlation(first: Array, second: Array) -> float:
    """Spearman's, of the scores of the same words."""
    return float(spearmanr(first, second).statistic) if len(first) == len(second) else float("nan")


def judge(models: dict[str, Model], texts: Sequence[str], some: int, seconds: float) -> dict[str, Any]:
    """All figures of quality, of as many texts as can be begun within so many seconds."""
    areas: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    agreement: dict[str, list[float]] = defaultdict(list)
    stability: dict[str, list[float]] = defaultdict(list)
    runs: dict[str, list[int]] = defaultdict(list)
    residuals, started, generator = [], time.monotonic(), np.random.default_rng(0)
    for number, text in enumerate(texts):
        if time.monotonic() - started > seconds:
            break
        made: dict[str, Array] = {}
        for name, options in METHODS.items():
            if name in SOME and number >= some:
                continue
            model = models["torch" if "gradient" in name else "onnx-cpu"]
            (found,) = model.explain([text], **options)
            assert isinstance(found, Explanation)
            made[name], label = scores_of(found), model.labels.index(found.label)
            runs[name].append(found.runs)
            if name == "integrated-gradients":
                residuals.append(abs(found.residual / (found.value - found.base_value)))
            if name in RESPACED:
                (again,) = model.explain([spaced(text)], **options)
                assert isinstance(again, Explanation)
                stability[name].append(correlation(made[name], scores_of(again)))
        for first, second in combinations(made, 2):
            agreement[f"{first} / {second}"].append(correlation(made[first], made[second]))
        for name, scores in {**made, "random": generator.random(len(made["occlusion, drop"]))}.items():
            for mask in (False, True):
                deletion, insertion = curves(models["onnx-cpu"], text, scores, label, mask=mask)
                areas[name][f"deletion, {'mask' if mask else 'drop'}"].append(deletion)
                areas[name][f"insertion, {'mask' if mask else 'drop'}"].append(insertion)
        print(f"{number + 1} of {len(texts)} after {time.monotonic() - started:.0f} s", flush=True)
    within = np.array(residuals)
    return {
        "texts": len(residuals),
        "areas": {name: {key: _mean(values) for key, values in each.items()} for name, each in areas.items()},
        "areas_of_the_first": {
            name: {key: _mean(values[:some]) for key, values in each.items()} for name, each in areas.items()
        },
        "agreement": {name: _mean(values) for name, values in agreement.items()},
        "stability": {name: _mean(values) for name, values in stability.items()},
        "runs": {name: _mean(values) for name, values in runs.items()},
        "completeness": {
            "largest": float(within.max()),
            "median": float(np.median(within)),
            "within_1_percent": float((within <= 0.01).mean()),
        },
    }


def _mean(values: Sequence[float]) -> dict[str, float]:
    """The mean and its standard error."""
    found = np.array(values, dtype=np.float64)
    return {"mean": float(np.nanmean(found)), "error": float(np.nanstd(found) / len(found) ** 0.5), "texts": len(found)}


def speed(model: Model, texts: Sequence[str], variants: int, batch: int = 32) -> dict[str, float]:
    """CPU seconds for variants of Shapley values: packed; one at a time; and by transformers in padded batches."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    reference = AutoModelForSequenceClassification.from_pretrained(DEFAULT_CHECKPOINT, dtype=torch.float32).eval()
    seconds: dict[str, float] = defaultdict(float)
    largest = tokens = padded = 0.0
    for text in texts:
        explainer = Explainer(model._answering, Asked(method="shapley"), Asking())
        all_runs = explainer.take(text).perturbed.texts
        runs = [all_runs[i] for i in np.random.default_rng(0).permutation(len(all_runs))[:variants]]
        ids = [run.input_ids for run in runs]
        started = time.process_time()
        packed = np.stack([row for row, _ in model._answering.run(runs, Asking(priority="batch"))])
        seconds["packed"] += time.process_time() - started
        started = time.process_time()
        for one in ids:
            model.run_ids([one])
        seconds["one at a time"] += time.process_time() - started
        started, rows = time.process_time(), []
        with torch.inference_mode():
            for start in range(0, len(ids), batch):
                part = [torch.tensor(one) for one in ids[start : start + batch]]
                filled = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=0)
                there = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in part], batch_first=True)
                padded += filled.numel()
                rows.append(reference(input_ids=filled, attention_mask=there).logits.numpy())
        seconds["transformers, padded"] += time.process_time() - started
        largest = max(largest, float(np.abs(np.concatenate(rows) - packed).max()))
        tokens += sum(map(len, ids))
    return {
        **seconds,
        "variants of a text": variants,
        "texts": len(texts),
        "tokens": tokens,
        "padded": padded,
        "largest difference": largest,
    }


def main() -> None:
    """Judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--some", type=int, default=24, help="texts of the methods that cost most")
    parser.add_argument("--longest", type=int, default=128, help="tokens of a text")
    parser.add_argument("--seconds", type=float, default=3600, help="after which no further text is begun")
    parser.add_argument("--speed-texts", type=int, default=3, help="reviews of any length for the speed")
    parser.add_argument("--variants", type=int, default=200, help="of each of them")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    with options.file.open(encoding="utf-8") as file:
        rows = [json.loads(line)["text"] for line in file]
    random.Random(0).shuffle(rows)
    names = ("onnx-cpu", "torch")
    models = {name: load(options.bundle, engine=name, threads=1, precision=None) for name in names}
    encoded = zip(rows[:5000], models["onnx-cpu"].encode(rows[:5000]), strict=True)
    short = [text for text, tokens in encoded if getattr(tokens, "tokens", 9999) <= options.longest][: options.texts]
    figures: dict[str, Any] = {"cpu": str(cpu_at_hand()), "longest": options.longest}
    figures["speed"] = speed(models["onnx-cpu"], rows[: options.speed_texts], options.variants)
    print(json.dumps(figures), flush=True)
    figures |= judge(models, short, options.some, options.seconds)
    write_file(options.output, (json.dumps(figures, indent=1) + "\n").encode())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
