"""nopad's fastest against the fastest peers, by precision."""

from dataclasses import replace

import pytest
from reports import cell, report, subject

from nopad.bench.report.best import duel, fastest_peer, peers, precisions_of
from nopad.bench.report.derived import Table, tabulate

TIMES = {
    "nopad-fp32": (2.0, 2.0),
    "nopad-int8": (1.0, 1.0),
    "hf-sdpa": (6.0, 6.0),
    "openvino": (4.0, 4.0),
    "hf-sdpa-bf16": (3.0, 3.0),
    "bert-nopad": (0.1, 0.1),
    "bert-openvino": (0.1, 0.1),
}
PRECISIONS = {"nopad-int8": "int8", "hf-sdpa-bf16": "bf16"}


def table() -> Table:
    made = report(TIMES)
    subjects = tuple(
        replace(
            one,
            precision=PRECISIONS.get(one.name, "fp32"),
            model="bert" if one.name.startswith("bert") else "modernbert",
            family="nopad" if one.name == "bert-nopad" else one.family,
        )
        for one in made.subjects
    )
    return tabulate(replace(made, subjects=subjects))


def test_each_precision_is_held_to_its_peer_and_another_model_to_none() -> None:
    measured = table()
    assert precisions_of(measured) == ["fp32", "int8"]
    assert [peer.name for peer in peers(measured)] == ["hf-sdpa", "openvino", "hf-sdpa-bf16"]
    for precision, name, peer, times in (
        ("fp32", "nopad-fp32", "openvino", 2.0),
        ("int8", "nopad-int8", "hf-sdpa-bf16", 3.0),
    ):
        found = duel(measured, "imdb-32", precision)
        assert found is not None and found.peer is not None and found.times is not None
        assert (found.subject.name, found.peer.name) == (name, peer)
        assert found.times == pytest.approx((times, times, times))
    assert duel(measured, "imdb-32", "bf16") is None
    assert fastest_peer(measured, "elsewhere") is None


def test_two_that_shared_no_round_are_compared_by_their_medians() -> None:
    made = report({"nopad-fp32": (1.0, 1.0), "hf-sdpa": (9.0, 9.0)})
    other = cell("openvino", (4.0, 4.0), rounds=(7, 8))
    found = duel(
        tabulate(replace(made, subjects=(*made.subjects, subject("openvino")), cells=(*made.cells, other))),
        "imdb-32",
        "fp32",
    )
    assert found is not None and found.peer is not None and found.peer.name == "openvino"
    assert found.times == pytest.approx((4.0, 4.0, 4.0))


def test_without_a_reference_there_is_nobody_to_be_held_to() -> None:
    found = duel(tabulate(report({"nopad-fp32": (1.0, 1.0)})), "imdb-32", "fp32")
    assert found is not None and found.peer is None and found.times is None
