"""What it saves that the head of masked-language modelling computes the hidden tokens only.

    python scripts/measure_masked_head.py [--rounds 5] [--threads 1]

A step (forward and backward) with ModernBERT's vocabulary, 16 texts of 256 tokens and 4 layers of 256; both ways take
turns, on random weights and tokens.
"""

import argparse
import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch

from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.read_config import read_config
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.training.tasks.base import CHOSEN, STREAM
from nopad.training.tasks.masked_lm import MaskedLM

VOCABULARY = 50368
CONFIG = {"model_type": "modernbert", "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 384,
          "num_hidden_layers": 4, "num_attention_heads": 4, "global_attn_every_n_layers": 2}  # fmt: skip


def seconds(encoder: PackedEncoder, task: MaskedLM, batch: Mapping[str, torch.Tensor], *, every_token: bool) -> float:
    began = time.perf_counter()
    stream = {name: batch[name] for name in STREAM}
    logits = encoder(**stream)[batch[CHOSEN]] if every_token else encoder(**stream, chosen=batch[CHOSEN])
    task.loss(logits, batch, label_smoothing=0.0).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    encoder = build_encoder(read_config(CONFIG, task="fill-mask")).train()
    initialize(encoder)
    task = MaskedLM(mask_probability=0.3, whole_word=False, mask_id=4, vocabulary=VOCABULARY)
    ids = np.random.default_rng(0).integers(5, VOCABULARY, size=(16, 256)).tolist()
    batch = task.collate([{"input_ids": row, "unit": list(range(256))} for row in ids], multiple=64)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(arguments.rounds + 1):
        for every_token, found in times.items():
            found.append(seconds(encoder, task, batch, every_token=every_token))
    every, chosen = (statistics.median(times[which][1:]) for which in (True, False))  # the first warms up
    print(f"every token {every:.2f} s, hidden tokens {chosen:.2f} s a step: {every / chosen:.2f} times as fast")


if __name__ == "__main__":
    main()
