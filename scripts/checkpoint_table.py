"""Runs the matrix of checkpoints (tests/support/matrix.py) and writes docs/checkpoints.json and .md from it.

    python scripts/checkpoint_table.py [NAME ...]

Figures are kept by version of transformers, so the table has those of every environment in which it was run; with
names, only those shapes are run again. The exit code is 1 if a shape fails.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
FIGURES, TABLE = ROOT / "docs" / "checkpoints.json", ROOT / "docs" / "checkpoints.md"
_HEAD = """# Checkpoints people use

Each row is the shape of a checkpoint that people use, built small with random weights: its head size, thetas, layers,
activations, keys of config.json, declared length, kind of tokenizer, special ids, dtype and files, but few layers and a
small vocabulary. It is exported for both graphs (`--target cpu` and `--target onnx`; padded bundles have one), passes
the parity gate, and its answers to {texts} are compared
with those that transformers or, for a folder of its own, sentence-transformers gives for the same folder.
`tests/support/matrix.py` has the shapes, `tests/export/test_bundle_matrix.py` runs them,
`scripts/checkpoint_table.py` wrote this.

Figures are the worst differences of logits or vectors: absolute, divided by the largest of the reference where that is
over 1. A shape is verified at 1e-5 and below. *packed*: `nopad export` packs it; *padded*: it takes the padded
exporter, and says so.
"""


def run(names: list[str]) -> int:
    """Run the shapes, all of them without `names`, and write both files."""
    import transformers
    from matrix import SHAPES, TOLERANCE, check

    warnings.simplefilter("ignore")
    figures: dict[str, Any] = json.loads(FIGURES.read_text("utf-8")) if FIGURES.is_file() else {}
    version = transformers.__version__
    mine = figures.setdefault(version, {})
    for name in [name for name in mine if name not in SHAPES]:
        del mine[name]
    failed = 0
    for name in names or SHAPES:
        shape = SHAPES[name]
        if shape.since > int(version.split(".")[0]):
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            try:
                worst = check(shape, Path(scratch) / "checkpoint", Path(scratch))
                mine[name] = {graph: float(f"{gap:.1e}") for graph, gap in worst.items()}
                good = max(worst.values()) <= TOLERANCE
            except Exception as error:
                good, worst = False, {}
                mine[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        failed += not good
        outcome = mine[name].get("failed") or ", ".join(f"{graph} {gap:.1e}" for graph, gap in worst.items())
        print(f"{'ok  ' if good else 'FAIL'} {name}: {outcome} ({time.perf_counter() - start:.1f} s)", flush=True)
        FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", "utf-8")
        TABLE.write_text(table(figures), "utf-8")
    return 1 if failed else 0


def table(figures: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The page. `figures`: version of transformers -> shape -> graph -> worst difference."""
    from matrix import SHAPES, TOLERANCE

    from nopad.export.parity.samples import PAIRS, SAMPLES

    texts = f"{len(SAMPLES)} sentences in several scripts, {len(PAIRS)} pairs and one text of a thousand tokens"
    lines = [
        _HEAD.format(texts=texts),
        "| shape | exercises | task | tokenizer | exporter | cpu graph | plain ONNX | verdict | transformers |",
        "|---|---|---|---|---|---:|---:|---|---|",
    ]
    for shape in SHAPES.values():
        runs = {version: rows[shape.name] for version, rows in sorted(figures.items()) if shape.name in rows}
        gaps = {
            graph: max((row[graph] for row in runs.values() if graph in row), default=None) for graph in ("cpu", "onnx")
        }
        good = bool(runs) and all("failed" not in row and max(row.values()) <= TOLERANCE for row in runs.values())
        cells = [
            shape.name, shape.exercises, shape.task, shape.tokenizer, "padded" if shape.padded else "packed",
            *("-" if gap is None else f"{gap:.1e}" for gap in gaps.values()),
            "verified" if good else "fails", ", ".join(runs),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
