"""What the services of one's own serve: transformers' pipeline, or sentence-transformers' encode, on lists of texts."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[list[str]], list[Any]]


def read_arguments(description: str | None) -> argparse.Namespace:
    """The same for every service."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--embed", action="store_true", help="embeddings instead of classification")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=32, help="requests answered in one go")
    parser.add_argument(
        "--rows", type=int, default=8, help="texts in one forward: the longest of them is what it costs"
    )
    parser.add_argument("--window-ms", type=float, default=5.0, help="how long a batch waits to be filled")
    return parser.parse_args()


def open_model(options: argparse.Namespace) -> Answer:
    """The model over texts in the order of their lengths, `rows` in a forward, padded to the longest of these.

    sentence-transformers sorts by itself.
    """
    import torch

    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    if options.embed:
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(options.checkpoint), device="cpu", model_kwargs={"torch_dtype": dtype})

        def embed(texts: list[str]) -> list[Any]:
            made = encoder.encode(
                texts, batch_size=options.rows, convert_to_numpy=False, convert_to_tensor=True, show_progress_bar=False
            )
            return torch.nn.functional.normalize(made.float(), dim=1).tolist()

        return embed
    from transformers import pipeline

    pipe = pipeline("text-classification", model=str(options.checkpoint), device="cpu", dtype=dtype, top_k=None)

    def classify(texts: list[str]) -> list[Any]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        with torch.inference_mode():
            made = pipe([texts[index] for index in order], batch_size=options.rows, truncation=True, padding=True)
        answers: list[Any] = [None] * len(texts)
        for index, one in zip(order, made, strict=True):
            answers[index] = one
        return answers

    return classify
