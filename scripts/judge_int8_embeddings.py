"""What int8 on CPUs costs an embedding model (docs/int8.md): the share of equal search results, and the cosines.

    python scripts/judge_int8_embeddings.py BUNDLE --queries queries.jsonl --corpus corpus.jsonl

BUNDLE holds fp32 and int8 (`nopad export --precision fp32,int8 --calibrate FILE`). Each query's ten nearest texts of
the corpus, by cosine, in either precision: queries and corpus in int8, and queries alone, over a corpus that was
embedded in fp32. Prints a Markdown table. Exit code 1 if fewer than --least of the results are equal.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np

from nopad.export.int8.ranking import cosines, search_overlap
from nopad.runtime import load
from nopad.runtime.data.records import read_rows
from nopad.runtime.types import FloatArray, Text


def texts_of(path: Path, limit: int) -> list[Text]:
    """The texts of a file, each once."""
    return list(dict.fromkeys(row.text for row in islice(read_rows(str(path)), limit) if row.error is None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.94)
    arguments = parser.parse_args()
    queries, corpus = (texts_of(path, arguments.limit) for path in (arguments.queries, arguments.corpus))
    found: dict[str, tuple[FloatArray, FloatArray]] = {}
    for precision in ("fp32", "int8"):
        with load(arguments.bundle, precision=precision, threads=arguments.threads) as model:
            found[precision] = model.embed(queries), model.embed(corpus)
    exact, int8 = found["fp32"], found["int8"]
    both, alone = search_overlap(int8, exact), search_overlap((int8[0], exact[1]), exact)
    first, near = (
        search_overlap(int8, exact, top=1),
        np.concatenate([cosines(a, b) for a, b in zip(int8, exact, strict=True)]),
    )
    print("| queries, texts | equal of the first ten | queries alone in int8 | equal first | mean cosine | least |")
    print("|---|---:|---:|---:|---:|---:|")
    print(
        f"| {len(queries):,}, {len(corpus):,} | {both:.1%} | {alone:.1%} | {first:.1%} "
        f"| {near.mean():.5f} | {near.min():.4f} |"
    )
    sys.exit(0 if both >= arguments.least else 1)


if __name__ == "__main__":
    main()
