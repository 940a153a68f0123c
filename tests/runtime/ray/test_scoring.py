"""Windows of rows on their way to replicas and back, in this process; `test_scoring_cluster.py` has real nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopad.runtime.batching import WINDOW
from nopad.runtime.bundle import open_bundle
from nopad.runtime.data.records import Row
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import EnvironmentProblem, InputFileError, NopadError
from nopad.runtime.offline.answers import Reading, answers
from nopad.runtime.predictor import load
from nopad.runtime.ray import scoring
from nopad.runtime.ray.cluster import Share

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nopad[ray]'")
pytest.importorskip("pyarrow")
NAME = "modernbert-single-mean"
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())


@pytest.fixture(scope="module")
def folder(bundle: Callable[[str], Path]) -> Path:
    return bundle(NAME)


@pytest.fixture
def source(tmp_path: Path) -> Reading:
    rows = [{"text": f"film {i} " + "and more " * (i % 9), "id": i} if i % 100 else {"x": i} for i in range(1200)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"text": "\\ud800"}\n{torn\n')
    return Reading(source=DataSource(path=str(tmp_path / "t.jsonl")), keep=("id",))


def job(folder: Path, **other: Any) -> scoring.Job:
    files = scoring.digests(open_bundle(folder, verify=False).manifest)
    options = {"threads": 1, **other.pop("options", {})}
    return scoring.Job(**{"bundle": str(folder), "files": files, "options": options, "wanted": {}, **other})


@pytest.fixture(scope="module")
def replica(folder: Path) -> scoring.Replica:
    return scoring.Replica(job(folder))


Change = Callable[[list[Any]], list[Any]]


def through(
    reading: Reading, replica: scoring.Replica, monkeypatch: pytest.MonkeyPatch, *, done: int = 0, change: Change = list
) -> Iterator[dict[str, Any]]:
    """The answers as they come from Ray, were it to `change` the order or the number of the blocks."""
    monkeypatch.setattr(
        scoring,
        "_blocks",
        lambda reading, done, *rest: change([replica(block) for block in scoring._read(reading, done)]),
    )
    rows = reading.rows()
    for _ in range(done):
        next(rows)
    nothing: Any = None
    return scoring._scored(rows, done, reading=reading, job=nothing, share=Share(threads=1), replicas=1)


def test_rows_come_back_answered_as_without_ray(
    source: Reading, folder: Path, replica: scoring.Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(folder, threads=1) as model:
        wanted = list(answers(model, source.rows(), {}))
    assert [row["line"] for row in wanted] == list(range(1, 1203))
    assert sum("error" in row for row in wanted) >= 13 and "not valid JSON" in wanted[-1]["error"]
    assert list(through(source, replica, monkeypatch)) == wanted
    assert list(through(source, replica, monkeypatch, done=WINDOW)) == wanted[WINDOW:]
    assert list(through(source, replica, monkeypatch, done=1202)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda blocks: blocks[1:],
        lambda blocks: blocks[:-1],
        lambda blocks: [blocks[0], blocks[2]],
        lambda blocks: [blocks[0], *blocks],
        lambda blocks: [*blocks, blocks[-1]],
        lambda blocks: blocks[::-1],
        lambda blocks: [],
    ],
)
def test_a_window_that_is_lost_doubled_or_out_of_its_turn_ends_the_job_and_all_before_it_is_kept(
    change: Change, source: Reading, replica: scoring.Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[int] = []
    with pytest.raises(EnvironmentProblem, match="go on with --resume"):
        for answer in through(source, replica, monkeypatch, change=change):
            got.append(answer["line"])
    assert got == list(range(1, len(got) + 1))


def test_damage_in_the_middle_of_a_file_is_raised_as_without_ray(
    tmp_path: Path, folder: Path, replica: scoring.Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    whole = gzip.compress("".join(f"film {i * 7919} {i % 13}\n" for i in range(20_000)).encode())
    (tmp_path / "t.txt.gz").write_bytes(whole[: len(whole) // 2])
    reading = Reading(source=DataSource(path=str(tmp_path / "t.txt.gz")))
    counts = []
    with load(folder, threads=1) as model:
        for stream in (answers(model, reading.rows(), {}), through(reading, replica, monkeypatch)):
            got: list[Any] = []
            with pytest.raises(InputFileError, match="cannot read"):
                got.extend(stream)
            counts.append(len(got))
    assert counts[0] == counts[1] > 0 and counts[0] % WINDOW == 0


def test_what_a_replica_cannot_open_is_told_with_its_node(folder: Path, tmp_path: Path) -> None:
    import pyarrow

    block = pyarrow.table({scoring.ROWS: [scoring._packed([[1, "a film", None, {}]])]})
    for wrong, words in (
        (job(folder, bundle=str(tmp_path / "gone")), "the folder does not exist"),
        (job(folder, files={"other": "digest"}), "is not the bundle that this job began with"),
        (job(folder, options={"engine": ["openvino"]}), "has no file for these engines"),
    ):
        (answered,) = scoring.Replica(wrong)(block).to_pylist()
        assert answered[scoring.FAILED].startswith("node ") and words in answered[scoring.FAILED]


def test_an_error_of_a_replica_becomes_the_jobs(
    source: Reading, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = scoring.Replica(job(folder, bundle=str(tmp_path / "gone")))
    with pytest.raises(NopadError, match=r"node .*no bundle at .*gone.*every node needs nopad and the bundle"):
        next(through(source, broken, monkeypatch))


@given(
    st.lists(
        st.builds(
            Row,
            line=st.integers(1, 2**40),
            text=st.text() | st.tuples(st.text(), st.text()) | st.just("half a pair: \ud800"),
            error=st.none() | st.text(min_size=1),
            kept=st.dictionaries(st.text(), VALUES | st.lists(VALUES) | st.dictionaries(st.text(), VALUES)),
        )
    )
)
def test_a_window_arrives_as_it_was_sent(window: list[Row]) -> None:
    assert list(scoring._rows(scoring._packed(map(scoring._fields, window)))) == window
