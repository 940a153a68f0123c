"""The shapes of checkpoints that people use (support/matrix.py) through export, both CPU graphs, gate and predict."""

import importlib.util
import json
from pathlib import Path

import pytest
from matrix import SHAPES, TOLERANCE, check
from reference_models import TRANSFORMERS_4
from repository import ROOT


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if shape.fast else pytest.mark.slow) for name, shape in SHAPES.items()]
)
def test_a_checkpoint_people_have(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    if TRANSFORMERS_4 and shape.since > 4:
        pytest.skip(f"transformers 4.57 does not have what {name} needs")
    worst = check(shape, tmp_path / "checkpoint", tmp_path)
    print({graph: f"{gap:.1e}" for graph, gap in worst.items()})
    assert max(worst.values()) <= TOLERANCE, worst


def test_the_document_has_every_shape() -> None:
    """docs/checkpoints.md is what scripts/checkpoint_table.py makes of its last runs, and nothing else."""
    spec = importlib.util.spec_from_file_location("checkpoint_table", ROOT / "scripts" / "checkpoint_table.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    figures = json.loads((ROOT / "docs" / "checkpoints.json").read_text("utf-8"))
    page = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")
    assert page == script.table(figures)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == list(SHAPES)
    assert all(row[-2] == "verified" for row in rows)
    assert all(SHAPES[name].since <= int(version[0]) for version, runs in figures.items() for name in runs)
