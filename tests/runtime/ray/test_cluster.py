"""What is refused before a cluster is asked, and what a cluster has room for. Clusters themselves: the other files."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nopad.runtime.cli import run
from nopad.runtime.errors import EnvironmentProblem, UsageError
from nopad.runtime.ray.cluster import cluster, first_line, share

NODES = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 0.0}]


@pytest.mark.parametrize(
    ("threads", "gpus", "taken", "room"),
    [(None, 0.0, 4, 2), (1, 0.0, 1, 11), (2, 0.0, 2, 5), (8, 0.0, 8, 1), (2, 0.5, 2, 2), (4, 1.0, 4, 1)],
)
def test_replicas_fill_the_nodes(threads: int | None, gpus: float, taken: int, room: int) -> None:
    wanted, count = share(NODES, threads, gpus)
    assert (wanted.threads, wanted.gpus, count) == (taken, gpus, room)
    assert share([{"CPU": 2.0, "GPU": 0.0}], None, 0.0)[0].threads == 2  # of a small node all


@pytest.mark.parametrize(("threads", "gpus"), [(9, 0.0), (4, 2.0)])
def test_a_replica_that_fits_no_node_is_refused_before_ray_waits_for_one(threads: int, gpus: float) -> None:
    with pytest.raises(UsageError, match="the largest has 8 and 1: name fewer --threads or --gpus"):
        share(NODES, threads, gpus)


def test_ray_client_is_refused_with_the_way_that_works() -> None:
    with pytest.raises(UsageError, match="run on a node of the cluster"), cluster("ray://host:10001"):
        pass


@pytest.mark.parametrize(
    "address", ["", "nonsense", "127.0.0.1", "127.0.0.1:x", "h:0", "h:65536", "http://h:8265", ":1"]
)
def test_what_is_no_address_is_refused_with_what_is_one(address: str) -> None:
    words = r"name HOST:PORT as `ray start --head` prints it, auto .* or local"
    with pytest.raises(UsageError, match=words), cluster(address):
        pass


@pytest.mark.parametrize("listening", [False, True])
def test_an_address_where_no_cluster_is_is_told_soon(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopad.runtime.ray.cluster.CONNECT_SECONDS", 1.0)
    with socket.socket() as other:  # bound: nobody else takes the port; listening: another program's
        other.bind(("127.0.0.1", 0))
        if listening:
            other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        words = rf"no Ray cluster at {address}: .*name the port of its head"
        with pytest.raises(EnvironmentProblem, match=words), cluster(address):
            pass


def test_of_rays_messages_the_line_that_says_it() -> None:
    trace = "ray::ServeReplica.init() (pid=1)\n  File x\nnopad.runtime.errors.BundleError: no bundle at /b\n\n"
    assert first_line(RuntimeError(trace)) == "BundleError: no bundle at /b"
    assert first_line(RuntimeError("\n the actor died\nmore\n")) == "the actor died"
    assert first_line(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "--ray", "local", "a film"], "--ray needs --input FILE"),
        (["predict", "--ray", "local", "--input", "-", "--output", "o"], "stdin cannot be"),
        (["predict", "--ray", "local", "--input", "t.txt"], "--ray needs --output FILE"),
        (["predict", "--replicas", "2", "--input", "t.txt"], "--replicas needs --ray"),
        (["predict", "--gpus", "1", "--input", "t.txt"], "--gpus needs --ray"),
        (["serve", "--replica-tokens", "9"], "--replica-tokens needs --ray"),
        (["serve", "--ray", "local", "--uds", "s"], "--uds"),
        (["serve", "--ray", "local", "--grpc-port", "0"], "--grpc-port"),
        (["serve", "--ray", "local", "--workers", "2"], "--workers (--replicas says how many)"),
        (["serve", "--ray", "local", "--metrics-port", "9"], "--metrics-port"),
        (["serve", "--ray", "local", "--replicas", "4:1"], "--replicas is N or LEAST:MOST"),
        (["serve", "--ray", "local", "--replicas", "x"], "--replicas is N or LEAST:MOST"),
        (["serve", "--ray", "local", "--port", "0"], "--port 0"),
    ],
)
def test_what_cannot_be_is_refused_before_a_cluster_is_started(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "serve":
        pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_where_ray_is_missing_its_extra_is_named(command: str, tmp_path: Path) -> None:
    if command == "serve":
        pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    (tmp_path / "t.txt").write_text("a film\n")
    program = (
        "import sys\n"
        "class Forbid:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ray': raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')\n"
        "sys.meta_path.insert(0, Forbid())\n"
        "from nopad.runtime.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    texts = ["--input", str(tmp_path / "t.txt"), "--output", str(tmp_path / "o")] if command == "predict" else []
    arguments = [sys.executable, "-c", program, command, "--ray", "local", *texts]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4 and "pip install 'nopad[ray]'" in done.stderr and "Traceback" not in done.stderr
