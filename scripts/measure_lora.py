"""What a training step of LoRA takes beside one of the whole model: parameters, memory by what holds it, and time.

    python scripts/measure_lora.py --model FOLDER --train imdb/train.jsonl [--ranks 16] [--max-length 256]

Memory is counted, not sampled: bytes of the weights, of their gradients, of AdamW's two means, and of the tensors that
the forward pass saves for the backward (each storage once, without weights). Time is CPU time of forward, backward and
optimizer, the median of rounds in which the variants take turns. Prints a Markdown table.
"""

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from over_seeds import machine, table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nopad.charts import units
from nopad.model.encoder import PackedEncoder
from nopad.model.products import fast_products
from nopad.runtime.data.table import DataSource
from nopad.training.data import load_data
from nopad.training.initial_model import open_model
from nopad.training.lora import add_lora
from nopad.training.recipe import Recipe
from nopad.training.recompute import recompute_layers
from nopad.training.tasks.base import STREAM


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub name")
    parser.add_argument("--train", required=True, help="a file that `nopad train` reads, with texts and classes")
    parser.add_argument("--ranks", default="16")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def variants(encoder: PackedEncoder, ranks: list[int]) -> dict[str, PackedEncoder]:
    """Copies of the encoder, each prepared in its own way."""
    made = {"all weights": copy.deepcopy(encoder)}
    for rank in ranks:
        name = f"LoRA, rank {rank}"
        made[name] = copy.deepcopy(encoder)
        add_lora(made[name], Recipe(lora=rank))
        made[f"{name}, recomputed"] = copy.deepcopy(made[name])
        recompute_layers(made[f"{name}, recomputed"])
    return made


def saved_bytes(encoder: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Of the tensors that a forward pass keeps for the backward."""
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    held: dict[int, Tensor] = {}  # tensors, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            held[address] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), fast_products():
        loss()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    data = load_data([DataSource(path=arguments.train)])
    recipe = Recipe(max_length=arguments.max_length)
    checkpoint, tokenizer = open_model(arguments.model, data, from_scratch=None, tokenizer=None, recipe=recipe)
    rows = data.train.shuffle(seed=0)[: arguments.batch_size]
    encoded = data.task.encode(rows, tokenizer, recipe.max_length)
    texts = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    batch = data.task.collate(texts, multiple=checkpoint.config.block)
    made = variants(checkpoint.encoder.train(), [int(rank) for rank in arguments.ranks.split(",")])
    trained = {name: [p for p in encoder.parameters() if p.requires_grad] for name, encoder in made.items()}
    optimizers = {name: torch.optim.AdamW(parameters, lr=1e-5) for name, parameters in trained.items()}

    def loss(name: str) -> Tensor:
        logits = made[name](**{key: batch[key] for key in STREAM})
        return data.task.loss(logits, batch, label_smoothing=0.0)

    seconds: dict[str, list[float]] = {name: [] for name in made}
    for name in [name for _ in range(arguments.rounds + 1) for name in made]:
        begin = time.process_time()
        with fast_products():
            loss(name).backward()
        optimizers[name].step()
        optimizers[name].zero_grad()
        seconds[name].append(time.process_time() - begin)
    lines: list[list[str]] = []
    for name, encoder in made.items():
        count, of_all = (sum(p.numel() for p in some) for some in (trained[name], encoder.parameters()))
        parts = [4 * of_all, 4 * count, 8 * count, saved_bytes(encoder, lambda name=name: loss(name))]  # type: ignore[misc]
        sizes = [units.size(part) for part in (*parts, sum(parts))]
        lines.append([name, f"{count:,}", *sizes, units.seconds(float(np.median(seconds[name][1:])))])
    tokens = sum(len(text["input_ids"]) for text in texts)
    print(f"{len(texts)} texts, {tokens:,} tokens; {machine()}\n")
    print(
        table(("", "trained", "weights", "gradients", "AdamW", "kept for backward", "sum", "CPU time of a step"), lines)
    )


if __name__ == "__main__":
    main()
