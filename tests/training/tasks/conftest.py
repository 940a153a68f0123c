"""Halves of real reviews: an anchor's positive is the rest of its own text."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def halves(imdb: Path) -> dict[str, list[tuple[str, str]]]:
    parts = {}
    for name, count in (("train", 200), ("test", 60)):
        with (imdb / f"{name}.jsonl").open(encoding="utf-8") as lines:
            words = [json.loads(line)["text"].split()[:40] for line in itertools.islice(lines, count)]
        parts[name] = [(" ".join(text[:20]), " ".join(text[20:])) for text in words]
    return parts


@pytest.fixture(scope="session")
def reviews(halves: dict[str, list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and a tokenizer for them, and folders of data: `pairs`, `scored`, `passages`."""
    from training_samples import make_scratch, write_jsonl

    folder = tmp_path_factory.mktemp("reviews")
    for name, rows in halves.items():
        pairs: list[dict[str, Any]] = [{"anchor": first, "positive": second} for first, second in rows]
        scored = [
            {"sentence1": first, "sentence2": rows[(i + i % 3) % len(rows)][1], "score": 1 - i % 3 / 2}
            for i, (first, _) in enumerate(rows)
        ]
        passages = [
            {"query": first, "passage": rows[(i + step) % len(rows)][1], "label": int(step == 0)}
            for i, (first, _) in enumerate(rows)
            for step in (1, 0, 5)
        ]
        for kind, records in (("pairs", pairs), ("scored", scored), ("passages", passages)):
            write_jsonl(folder / kind / f"{name}.jsonl", records)
    texts = write_jsonl(folder / "texts.jsonl", [{"text": " ".join(pair)} for pair in halves["train"]])
    return make_scratch(folder, texts)
