"""How good are explanations? Deletion and insertion against random, agreement, completeness, stability, speed.

    python scripts/judge_explanations.py imdb/test.jsonl --work /tmp/judged   # docs/explanations.json, docs/explain.md

Each line of the file is {"text": ...}. The embedded checkpoint is exported into the work folder; it answers on ONNX
Runtime and, for gradients, on the torch engine. Every explanation that was judged is a line of a file there, by the
digest of the checkpoint: a run that was ended goes on where it was, and with another model it begins anew.
`--seconds 0` judges nothing more, and writes the page from what is there.

Deletion (V. Petsiuk et al., "RISE", BMVC 2018, arXiv 1806.07421): words are removed, those that speak most for a label
first, and its score should fall fast: the smaller the area below that curve the better. Insertion begins with
nothing and puts words back in the same order: the larger the better. Both are judged with removed words dropped, and
with masks in their place, so that no method is judged only by the way of removing that it was made with.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from explanations_table import summary, write_page
from imdb_models import ROOT, nopad
from scipy.stats import spearmanr

from nopad.model.cpus import cpu_at_hand
from nopad.runtime import Model, load
from nopad.runtime.answering import Asking
from nopad.runtime.atomic import sha256_of, write_file
from nopad.runtime.bundle import DEFAULT_CHECKPOINT
from nopad.runtime.explain.explaining import Asked, Explainer
from nopad.runtime.explain.perturbed import perturb
from nopad.runtime.explain.units import units_of
from nopad.runtime.types import Explanation

STEPS = 10  # points of a curve beside its beginning
# name -> options of `Model.explain`, in the order in which they are judged: first those that cost least.
METHODS: dict[str, dict[str, Any]] = {
    "random": {},
    "occlusion, drop": {"method": "occlusion"},
    "integrated-gradients": {"method": "integrated-gradients"},
    "gradient-x-input": {"method": "gradient-x-input"},
    "shapley, drop": {"method": "shapley"},
    "occlusion, mask": {"method": "occlusion", "removal": "mask"},
    "shapley, mask": {"method": "shapley", "removal": "mask"},
}
SOME = ("occlusion, mask", "shapley, mask")  # of the first texts alone: they only judge the way of removing
RESPACED = ("occlusion, drop", "integrated-gradients")  # asked again with other blanks, of the first texts
ENGINES = ("onnx-cpu", "torch")
Array = npt.NDArray[np.float64]


@cache
def opened(bundle: Path, engine: str) -> Model:
    """The bundle with this engine, once in each process."""
    return load(bundle, engine=engine, threads=1, precision=None)


def curves(model: Model, text: str, scores: Array, label: int) -> dict[str, float]:
    """The areas below the deletion and the insertion curves, 0..1, with words dropped and masked."""
    (tokens,) = model.encode([text])
    assert not isinstance(tokens, Exception)
    units = units_of(tokens, "word")
    order = np.argsort(-scores, kind="stable")
    counts = np.unique(np.round(np.linspace(0, len(units), STEPS + 1)).astype(int))
    first = np.zeros((len(counts), len(units)), dtype=bool)
    for row, count in enumerate(counts):
        first[row, order[:count]] = True
    mask = model._inference.mask_id
    assert mask is not None
    kept, head = np.concatenate((~first, first)), model.manifest.head
    areas = {}
    for removal in ("drop", "mask"):
        made = perturb(tokens, units, kept, mask=mask if removal == "mask" else None, stand_in=mask)
        rows = [logits for logits, _ in model._answering.run(made.texts, Asking())]
        halves = np.split(head.probabilities(made.logits(rows, head, None))[:, label], 2)
        for curve, half in zip(("deletion", "insertion"), halves, strict=True):
            areas[f"{curve}, {removal}"] = float(np.trapezoid(half, counts / len(units)))
    return areas


def scores_of(explanation: Explanation) -> Array:
    """The score of each word."""
    return np.array([each.score for each in explanation.attributions])


def spaced(text: str) -> str:
    """The same words with other blanks between them."""
    return re.sub(r" ", "  ", re.sub(r"(?<=[.!?]) ", "\n", text)) + "\n"


def judged(bundle: Path, name: str, text: str, again: bool) -> dict[str, Any]:
    """A method's explanation of a text and what it is worth; `again`: asked again with other blanks, too."""
    started = time.process_time()
    model = opened(bundle, "torch" if "gradient" in name else "onnx-cpu")
    row: dict[str, Any] = {"method": name, "text": key_of(text)}
    if name == "random":
        (found,) = model.explain([text], by="sentence")  # the label alone is used
        (tokens,) = model.encode([text])
        assert isinstance(found, Explanation) and not isinstance(tokens, Exception)
        words = len(units_of(tokens, "word"))
        scores = np.random.default_rng(int(row["text"], 16)).random(words)
        row |= {"tokens": tokens.used, "words": words}
    else:
        (found,) = model.explain([text], **METHODS[name])
        assert isinstance(found, Explanation)
        scores = scores_of(found)
        row |= {"runs": found.runs, "scores": scores.tolist()}
    if name == "integrated-gradients":
        row["residual"] = abs(found.residual / (found.value - found.base_value))
    if again:
        (other,) = model.explain([spaced(text)], **METHODS[name])
        assert isinstance(other, Explanation)
        row["respaced"] = float(spearmanr(scores, scores_of(other)).statistic)
    row["areas"] = curves(opened(bundle, "onnx-cpu"), text, scores, model.labels.index(found.label))
    return row | {"seconds": time.process_time() - started}


def key_of(text: str) -> str:
    """Names a text in the work folder."""
    return sha256(text.encode()).hexdigest()[:16]


def short_texts(model: Model, rows: Sequence[str], longest: int, texts: int) -> list[str]:
    """The first so many of `rows` with at most `longest` tokens."""
    likely = [row for row in rows if len(row) <= 8 * longest]  # no text of 8 characters a token is left out
    found = [
        text
        for text, tokens in zip(likely, model.encode(likely), strict=True)
        if not isinstance(tokens, Exception) and tokens.used <= longest
    ]
    return list(dict.fromkeys(found))[:texts]  # some reviews stand in the file twice


def remaining(texts: Sequence[str], some: int, done: set[tuple[str, str]]) -> Iterator[tuple[str, str, bool]]:
    """What is still to be judged: method, text, whether to ask again."""
    for name in METHODS:
        for number, text in enumerate(texts[:some] if name in SOME else texts):
            if (name, key_of(text)) not in done:
                yield name, text, name in RESPACED and number < some


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What was judged before; a line that a run was ended in is left out."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(whole), "utf-8")
    return [json.loads(line) for line in whole]


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
        (encoded,) = model.encode([text])
        assert not isinstance(encoded, Exception)
        all_runs = explainer.take(encoded, units_of(encoded, "word")).perturbed.texts
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
    """Judge, and write figures and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of the bundle and of what was judged")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--some", type=int, default=100, help="texts of what compares ways of removing, and of blanks")
    parser.add_argument("--longest", type=int, default=80, help="tokens of a text")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no further text is begun")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--speed-texts", type=int, default=4, help="reviews of any length for the speed")
    parser.add_argument("--variants", type=int, default=100, help="of each of them")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "explanations.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "explain.md")
    options = parser.parse_args()
    work = options.work / sha256_of(DEFAULT_CHECKPOINT / "model.safetensors")[:12]
    bundle, path, speed_path = work / "bundle", work / "rows.jsonl", work / "speed.json"
    if not bundle.exists():
        nopad("export", DEFAULT_CHECKPOINT, "--target", "torch", "--precision", "fp32", "--output", bundle)
    with options.file.open(encoding="utf-8") as file:
        reviews = [json.loads(line)["text"] for line in file]
    random.Random(0).shuffle(reviews)
    if not speed_path.exists():
        found = speed(opened(bundle, "onnx-cpu"), reviews[: options.speed_texts], options.variants)
        write_file(speed_path, json.dumps(found).encode())
    texts = short_texts(opened(bundle, "onnx-cpu"), reviews, options.longest, options.texts)
    judge_all(bundle, path, texts, options)
    known = {key_of(text) for text in texts}
    figures = {
        "cpu": str(cpu_at_hand()),
        "longest": options.longest,
        "speed": json.loads(speed_path.read_text()),
        **summary([row for row in read_rows(path) if row["text"] in known], tuple(METHODS)),
    }
    write_file(options.output, (json.dumps(figures, indent=1) + "\n").encode())
    write_page(figures, options.page)


def judge_all(bundle: Path, path: Path, texts: Sequence[str], options: argparse.Namespace) -> None:
    """Append what is not yet in the file at `path`, until the time is over."""
    done = {(row["method"], row["text"]) for row in read_rows(path)}
    todo, started = list(remaining(texts, options.some, done)), time.monotonic()
    with (
        path.open("a", encoding="utf-8") as file,
        ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        for start in range(0, len(todo), 4 * options.processes):
            if time.monotonic() - started > options.seconds:
                break
            part = todo[start : start + 4 * options.processes]
            for row in pool.map(judged, *zip(*((bundle, *each) for each in part), strict=True)):
                file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{start + len(part)} of {len(todo)}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
