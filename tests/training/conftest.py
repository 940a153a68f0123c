"""Small data sets, a tokenizer trained on them, and a configuration to train from scratch."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

datasets = pytest.importorskip("datasets", reason="training needs: pip install 'nopad[train]'")
pytest.importorskip("sklearn", reason="training needs: pip install 'nopad[train]'")
pytest.importorskip("accelerate", reason="training needs: pip install 'nopad[train]'")

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the film was long and its story told of people in town who went away to find old friends again".split()
CONFIG: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "local_attention": 32,
    "global_attn_every_n_layers": 3,
    "classifier_pooling": "mean",
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Neither the user's cache nor another test's: rows must come from the files of this test.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of common words around one telling word; label 1 for 'good', 0 for 'bad'."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = draw.choices(WORDS, k=draw.randint(3, 30))
        words.insert(draw.randrange(len(words)), ("bad", "good")[i % 2])
        rows.append({"text": " ".join(words), "label": i % 2})
    draw.shuffle(rows)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.json and a tokenizer, made by the project's own script."""
    folder = tmp_path_factory.mktemp("scratch")
    texts = write_jsonl(folder / "texts.jsonl", sentences(300, seed=99))
    script = ROOT / "scripts" / "make_tokenizer.py"
    command = [sys.executable, str(script), str(texts), str(folder), "--vocab-size", "400"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def imdb() -> Path:
    """The real reviews: $NOPAD_DATA/imdb, or shared/data/imdb beside the repository."""
    base = Path(os.environ.get("NOPAD_DATA") or ROOT.parent / "shared" / "data")
    folder = base / "imdb"
    if not (folder / "train.jsonl").is_file():
        pytest.skip(f"no {folder}/train.jsonl; set NOPAD_DATA to the folder with the test data")
    return folder
