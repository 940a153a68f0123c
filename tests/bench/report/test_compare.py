"""Two reports: regressions are told from noise, and what cannot be compared is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import cell, changed, noisy, report, subject, workload

from nopad.bench.report.compare import compare, machine_drift, verdict_of
from nopad.bench.report.files import write_json
from nopad.bench.schema import Report
from nopad.runtime import cli
from nopad.runtime.errors import UsageError


def judged(old: Report, new: Report, **options: Any) -> dict[str, str]:
    return {comparison.subject: comparison.verdict for comparison in compare(old, new, threshold=0.05, **options)}


def test_a_seeded_slowdown_is_a_regression_and_its_reverse_an_improvement() -> None:
    old = report({"hf-sdpa": noisy(2.0, 0.01, 1), "nopad-fp32": noisy(1.0, 0.01, 2)})
    new = report({"hf-sdpa": noisy(2.0, 0.01, 3), "nopad-fp32": noisy(1.12, 0.01, 4)})
    assert judged(old, new) == {"hf-sdpa": "no change", "nopad-fp32": "regression"}
    assert judged(new, old) == {"hf-sdpa": "no change", "nopad-fp32": "improvement"}


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.005, 0.3))
def test_noise_is_hardly_ever_called_a_regression(seed: int, share: float) -> None:
    """Twenty cells of equal work. An interval of 95 % is wrong this way once in forty times: 5 of 20 are too many."""
    names = [f"nopad-{number}" for number in range(20)]
    old = report({name: noisy(1.0, share, 2 * seed + 7 * number) for number, name in enumerate(names)})
    new = report({name: noisy(1.0, share, 2 * seed + 7 * number + 1) for number, name in enumerate(names)})
    verdicts = judged(old, new)
    assert sum(verdict == "regression" for verdict in verdicts.values()) <= 4
    if share > 0.25:
        assert "no change" not in verdicts.values()


def test_wide_intervals_are_too_noisy_not_equal() -> None:
    old, new = report({"nopad-fp32": (1.0, 1.4, 0.7, 1.2)}), report({"nopad-fp32": (1.1, 0.6, 1.5, 1.0)})
    assert judged(old, new) == {"nopad-fp32": "too noisy"}


def test_a_slower_machine_is_no_regression() -> None:
    old = report({"nopad-fp32": noisy(1.0, 0.005, 1)}, probe=(0.010,) * 8)
    new = report({"nopad-fp32": noisy(1.2, 0.005, 2)}, probe=(0.012,) * 8)
    assert machine_drift(old, new) == pytest.approx(1.2)
    (comparison,) = compare(old, new, threshold=0.05)
    assert comparison.verdict == "too noisy" and "1.200x" in comparison.note


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.02, 1.08, 1.12), "regression"),
        ((0.97, 1.08, 1.20), "too noisy"),
        ((0.88, 0.92, 0.99), "improvement"),
        ((0.97, 1.00, 1.03), "no change"),
        ((1.01, 1.02, 1.04), "no change"),
        ((1.01, 1.04, 1.07), "too noisy"),
        ((0.0, 1.5, float("inf")), "too noisy"),
    ],
)
def test_verdicts(interval: tuple[float, float, float], verdict: str) -> None:
    assert verdict_of(interval, 0.05) == verdict


def test_what_can_no_longer_be_measured_is_a_regression() -> None:
    old = report({"nopad-fp32": (1.0, 1.0, 1.0)})
    gone = changed(old, cells=(cell("nopad-fp32", (), status="out of memory", computed_tokens=None),))
    assert judged(old, gone) == {"nopad-fp32": "regression"}
    assert judged(gone, old) == {"nopad-fp32": "not compared"}
    never = changed(old, cells=(cell("nopad-fp32", (), status="not run", computed_tokens=None),))
    assert judged(old, never) == {"nopad-fp32": "not compared"}


def test_reports_that_are_not_of_the_same_work_are_refused() -> None:
    old = report({"nopad-fp32": (1.0, 1.0)})
    with pytest.raises(UsageError, match="1 and 2 threads"):
        judged(old, changed(old, threads=2))
    with pytest.raises(UsageError, match="cpu: a cpu and another"):
        judged(old, changed(old, machine={**old.machine, "cpu": "another"}))
    assert judged(old, changed(old, machine={}), allow_different_machine=True)["nopad-fp32"] == "no change"
    for other in (workload(sha256="11"), workload(tokens=151)):
        with pytest.raises(UsageError, match="imdb-32 has other texts"):
            judged(old, changed(old, workloads=(other,)))
    with pytest.raises(UsageError, match="share no workload"):
        judged(old, changed(old, workloads=(workload("1x512"),), cells=()))
    with pytest.raises(UsageError, match="threshold"):
        compare(old, old, threshold=1.5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {}
    for name, mean in (("old", 1.0), ("new", 1.3)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        original = report({"hf-sdpa": noisy(2.0, 0.01, 1), "nopad-fp32": noisy(mean, 0.01, 2)})
        write_json(replace(original, subjects=(*original.subjects, subject("hf-fa2", status="missing"))), folders[name])
    old, new = map(str, folders.values())
    assert cli.run(["bench", "compare", old, old]) == 0
    assert "2 no change" in capsys.readouterr().out
    assert cli.run(["bench", "compare", old, f"{new}/bench.json", "--quiet", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["subject"], row["verdict"]) for row in rows] == [
        ("hf-sdpa", "no change"),
        ("nopad-fp32", "regression"),
    ]
    low, middle, high = rows[1]["ratio"]
    assert low < 1.3 < high * 1.02 and middle == pytest.approx(1.3, rel=0.02)
    assert cli.run(["bench", "compare", old, new, "--threshold", "0.5"]) == 0
    assert cli.run(["bench", "compare", old, str(tmp_path / "nothing")]) == 3
    assert "cannot read" in capsys.readouterr().err


def test_help_names_both_halves() -> None:
    for arguments, text in ((["bench", "--help"], "--reference"), (["bench", "compare", "--help"], "--threshold")):
        result = CliRunner().invoke(cli.cli, arguments)
        assert result.exit_code == 0 and text in result.output
    assert "nopad bench compare" in CliRunner().invoke(cli.cli, ["bench", "--help"]).output
