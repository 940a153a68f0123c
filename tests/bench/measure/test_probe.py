"""Whether a run allows conclusions."""

from nopad.bench.measure.probe import judge


def test_a_loud_machine_is_said_to_be_one() -> None:
    quiet = judge([0.01] * 8, 1e11, [])
    assert not quiet.conclusive and "nothing was measured" in quiet.verdict
    loud = judge([0.01, 0.02, 0.01, 0.02, 0.03], 1e11, [])
    assert loud.spread is not None and loud.spread > 0.05 and not loud.conclusive
