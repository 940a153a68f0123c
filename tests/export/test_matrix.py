"""The shapes of checkpoints that people use (tests/matrix.py) through export, both CPU graphs, gate and predict."""

from pathlib import Path

import pytest
from matrix import SHAPES, TOLERANCE, check
from reference_models import TRANSFORMERS_4

ROOT = Path(__file__).resolve().parents[2]


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
