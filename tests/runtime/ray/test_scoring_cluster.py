"""`nopad predict --ray` on a real cluster of two nodes: the same bytes as without Ray, also where a node is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from predict_command import NOPAD

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nopad[ray]'")
from ray_cluster import Nodes, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
ROWS = 8000


def rows() -> str:
    words = ["good", "bad", "dull", "splendid", "acting", "plot"]
    texts = ({"text": f"film {i} " + " ".join(words[(i * k) % 6] for k in range(i % 12)), "id": i} for i in range(ROWS))
    return "".join(json.dumps(row if row["id"] % 97 else {"x": row["id"]}) + "\n" for row in texts)


def predict(source: Path, output: Path, *more: object) -> subprocess.Popen[str]:
    line = [*NOPAD, "predict", "--threads", "1", "--keep", "id", "--input", source, "--output", output, *more]
    return subprocess.Popen([str(each) for each in line], stderr=subprocess.PIPE, text=True)


def first_answers(process: subprocess.Popen[str], output: Path) -> None:
    partial = output.with_name(output.name + ".partial")
    while not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "t.jsonl"
    path.write_text(rows())
    return path


@pytest.fixture(scope="module")
def wanted(source: Path) -> bytes:
    output = source.with_name("plain.jsonl")
    assert predict(source, output).wait() == 3
    assert output.read_bytes().count(b"\n") == ROWS
    return output.read_bytes()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as cluster:
        yield cluster


def test_an_interrupted_run_goes_on_with_or_without_ray(
    source: Path, wanted: bytes, nodes: Nodes, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    begun = predict(source, output, "--ray", nodes.address)
    first_answers(begun, output)
    begun.send_signal(signal.SIGINT)
    assert begun.wait() == 130 and begun.stderr is not None
    assert "interrupted after" in begun.stderr.read()
    partial = output.with_name(output.name + ".partial").read_bytes()
    assert wanted.startswith(partial) and len(partial) < len(wanted)
    other = tmp_path / "other"
    other.mkdir()
    for path in list(tmp_path.glob("answers*")):
        shutil.copy(path, other)
    done = predict(source, output, "--resume")
    assert done.wait() == 3 and output.read_bytes() == wanted
    done = predict(source, other / output.name, "--resume", "--ray", nodes.address)
    assert done.wait() == 3 and (other / output.name).read_bytes() == wanted


def test_a_bundle_that_is_on_this_node_alone_is_told(source: Path, nodes: Nodes, tmp_path: Path) -> None:
    from nopad.runtime.bundle import DEFAULT_BUNDLE

    os.symlink(DEFAULT_BUNDLE, tmp_path / "mine")
    command = [
        *NOPAD,
        "predict",
        "/proc/self/cwd/mine",
        "--input",
        str(source),
        "--output",
        "o",
        "--ray",
        nodes.address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4 and {path.name for path in tmp_path.iterdir()} == {"mine"}
    assert "no bundle at /proc/self/cwd/mine" in done.stderr and "nopad: node " in done.stderr
    assert "every node needs nopad and the bundle" in done.stderr and "Traceback" not in done.stderr


def test_a_file_is_answered_while_other_work_has_a_replicas_cpu(source: Path, nodes: Nodes, tmp_path: Path) -> None:
    import ray

    class Other:
        def begun(self) -> bool:
            return True

    few = tmp_path / "few.jsonl"
    few.write_text("".join(source.read_text().splitlines(keepends=True)[:600]))
    assert predict(few, tmp_path / "plain.jsonl").wait() == 3
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        other: Any = ray.remote(num_cpus=1)(Other).remote()
        assert ray.get(other.begun.remote())
        process = predict(few, tmp_path / "answers.jsonl", "--ray", nodes.address, "--replicas", "2")
        assert process.wait() == 3, process.stderr and process.stderr.read()
    finally:
        ray.shutdown()
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_a_node_that_is_killed_costs_no_row_and_doubles_none(
    source: Path, wanted: bytes, nodes: Nodes, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    process = predict(source, output, "--ray", nodes.address, "--replicas", "2")
    first_answers(process, output)
    nodes.kill_second()
    assert not output.exists()  # the node was killed in the middle
    assert process.wait() == 3, process.stderr and process.stderr.read()
    assert output.read_bytes() == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl"}
