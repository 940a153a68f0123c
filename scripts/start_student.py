"""A student's first weights: random, but for token embeddings that are a teacher's, projected to the student's size.

    python scripts/start_student.py CONFIG.json TOKENIZER_DIR TEACHER_DIR TEXTS.jsonl OUTPUT_DIR

The two tokenizers are different. A token's vector is the mean of the teacher's vectors of its word pieces; the
projection is the one that keeps most of these vectors, each weighted by the square root of how often its token occurs
in the texts (principal components).
"""

import argparse
import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TEXTS = 6000  # that tokens are counted in
FloatArray = npt.NDArray[np.float32]


def teacher_vectors(own: Tokenizer, theirs: Tokenizer, embeddings: FloatArray, prefix: str) -> FloatArray:
    """For each token of `own` the mean of the teacher's vectors of its pieces, [vocabulary, size].

    Zeros where none fits. `prefix`: what WordPiece puts before the pieces inside a word.
    """
    theirs.no_truncation()
    theirs.no_padding()
    vocabulary, unknown = theirs.get_vocab(), theirs.token_to_id("[UNK]")
    vectors = np.zeros((own.get_vocab_size(), embeddings.shape[1]), np.float32)
    for token, index in own.get_vocab().items():
        begins = token.startswith("\u2581")  # Metaspace's mark of a word's beginning
        if f"{prefix}{token}" in vocabulary and not begins:
            ids = [vocabulary[f"{prefix}{token}"]]
        elif token in vocabulary and token.startswith("["):
            ids = [vocabulary[token]]
        else:
            ids = theirs.encode(token.removeprefix("\u2581"), add_special_tokens=False).ids
        known = [piece for piece in ids if piece != unknown]
        if known:
            vectors[index] = embeddings[known].mean(axis=0)
    return vectors


def projected(vectors: FloatArray, counts: FloatArray, size: int) -> tuple[FloatArray, float]:
    """The vectors in their first `size` principal components, and the share of their variance that these keep."""
    _, strengths, axes = np.linalg.svd(vectors * np.sqrt(counts + 1)[:, None], full_matrices=False)
    return vectors @ axes[:size].T, float((strengths[:size] ** 2).sum() / (strengths**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "tokenizer", "teacher", "texts", "output"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    raw = json.loads(arguments.config.read_text("utf-8"))
    config: PreTrainedConfig = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    own, theirs = (Tokenizer.from_file(str(d / "tokenizer.json")) for d in (arguments.tokenizer, arguments.teacher))
    weights = load_file(arguments.teacher / "model.safetensors")
    embeddings = next(each for name, each in weights.items() if name.endswith("word_embeddings.weight")).numpy()
    vectors = teacher_vectors(own, theirs, embeddings - embeddings.mean(axis=0), "##")
    counts = np.zeros(len(vectors), np.float32)
    with arguments.texts.open(encoding="utf-8") as lines:
        for line in islice(lines, TEXTS):
            for token, count in Counter(own.encode(json.loads(line)["text"], add_special_tokens=False).ids).items():
                counts[token] += count
    values, kept = projected(vectors, counts, config.hidden_size)
    values *= config.initializer_range / values.std()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    table = model.get_input_embeddings().weight.data
    found = np.flatnonzero(np.abs(values).sum(axis=1))
    table[found] = torch.from_numpy(values[found])
    model.save_pretrained(arguments.output)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(arguments.tokenizer / name, arguments.output / name)
    print(f"{len(found):,} of {len(table):,} tokens have a vector; {kept:.0%} of the variance is kept")


if __name__ == "__main__":
    main()
