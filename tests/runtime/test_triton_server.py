"""`nopad export --triton` in a real Triton: server and Python backend 2.51, of nvidia-pytriton's wheel.

That wheel has no backend but Python's, so the graph's model is ONNX Runtime in Python here; and it wants numpy 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
import triton_double

from nopad.export.triton import write_triton
from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.predictor import load

WHEELS = ROOT / "build" / "triton"
INSTALL = f"pip install --no-deps --target {WHEELS.relative_to(ROOT)} nvidia-pytriton==0.7.0 numpy==1.26.4"
SERVER = WHEELS / "pytriton" / "tritonserver"
STUB = SERVER / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STUB.is_dir(), reason=f"no Triton for this Python here: {INSTALL}"),
]
# The place of the onnxruntime backend. It tells the shapes that it gets, and the signatures of the backend's API.
GRAPH = """
import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.names = [output["name"] for output in json.loads(args["model_config"])["output"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        (file,) = Path(__file__).parent.glob("*.onnx")
        self.session = onnxruntime.InferenceSession(str(file), options)
        for name in ("InferenceRequest", "InferenceResponse", "PreferredMemory", "TritonError"):
            print("SIGNATURE", getattr(pb_utils, name).__init__.__doc__.splitlines()[0], "OF", name, flush=True)

    def execute(self, requests):
        responses = []
        for request in requests:
            feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            print("STREAM", json.dumps({name: array.shape for name, array in feeds.items()}), flush=True)
            arrays = self.session.run(self.names, feeds)
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.names, arrays)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
"""


class Running:
    def __init__(self, models: Path, log: Path) -> None:
        self.log = log
        backends = models.parent / "backends"
        shutil.copytree(SERVER / "backends", backends)
        for file in (STUB / "triton_python_backend_stub", SERVER / "bin" / "tritonserver"):
            file.chmod(0o755)  # pip takes their rights
        (backends / "python" / "triton_python_backend_stub").symlink_to(STUB / "triton_python_backend_stub")
        self.url = f"http://127.0.0.1:{_free_port()}"
        options = {
            "model-repository": models,
            "backend-directory": backends,
            "http-address": "127.0.0.1",
            "http-port": self.url.rpartition(":")[2],
            "allow-grpc": "false",
            "allow-metrics": "false",
        }
        command = [str(SERVER / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def wait(self, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5)
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail(f"Triton did not get ready: {self.log.read_text('utf-8', 'replace')[-2000:]}")

    def ask(self, texts: list[str]) -> tuple[int, dict[str, Any]]:
        body = {"inputs": [{"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}]}
        request = urllib.request.Request(f"{self.url}/v2/models/bundle/infer", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                outputs = json.load(response)["outputs"]
                return response.status, {output["name"]: output["data"] for output in outputs}
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def streams(self) -> list[dict[str, list[int]]]:
        return [json.loads(line) for line in re.findall(r"^STREAM (.*)$", self.log.read_text("utf-8"), re.M)]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("triton")
    written = write_triton(DEFAULT_BUNDLE, root / "models")
    graph = root / "models" / written.graph
    (graph / "1" / "model.py").write_text(GRAPH)
    config = (graph / "config.pbtxt").read_text("utf-8")
    config = re.sub(r"^default_model_filename.*\n", "", config.replace('"onnxruntime"', '"python"'), flags=re.M)
    (graph / "config.pbtxt").write_text(config)
    packages = [str(WHEELS), *(path for path in sys.path if path and Path(path).is_dir())]
    for code in (root / "models").glob("*/1/model.py"):  # the stub reads no PYTHONPATH
        code.write_text(f"import sys\n\nsys.path[:0] = {packages!r}\n{code.read_text('utf-8')}")
    running = Running(root / "models", root / "log")
    try:
        running.wait()
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)


def test_requests_of_many_clients_share_streams_and_are_answered_as_by_load(server: Running) -> None:
    texts = [f"{'so good ' * (i % 7)}{'a mess' if i % 2 else 'fine'}" for i in range(48)]
    server.ask(["a film"])  # the probes
    before = len(server.streams())
    with ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(lambda text: server.ask([text]), texts))
    with load(DEFAULT_BUNDLE, engine="onnx-cpu", threads=1) as model:
        want = model.predict(texts)
        rows = [[answer.scores[label] for label in model.labels] for answer in want]
    assert {status for status, _ in answers} == {200}
    assert [answer["label"] for _, answer in answers] == [[each.label] for each in want]
    for (_, answer), row in zip(answers, rows, strict=True):
        assert answer["scores"] == pytest.approx(row, abs=1e-6)
    streams = server.streams()[before:]
    assert sum(stream["pad_index"][0] for stream in streams) == len(texts)
    assert len(streams) < len(texts) and max(stream["pad_index"][0] for stream in streams) > 1


def test_a_bad_text_fails_its_request_with_what_is_wrong(server: Running) -> None:
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(server.ask, [["fine"], ["fine", " "], ["a mess"]] * 4))
    assert [status for status, _ in answers] == [200, 400, 200] * 4
    assert {answer["error"] for status, answer in answers if status == 400} == {
        "text 1: the text is empty or only spaces: there is nothing to predict from"
    }


def test_the_graph_answered_the_probes_before_anybody(server: Running) -> None:
    server.ask(["a film"])
    assert "probes answered as transformers does by triton" in server.log.read_text("utf-8")


def test_the_stand_in_has_the_backends_signatures(server: Running) -> None:
    log = server.log.read_text("utf-8")
    lines = re.findall(r"^SIGNATURE __init__\(self: [^,)]+,? ?(.*)\) -> None OF (\w+)$", log, re.M)
    found = {name: re.findall(r"(\w+): (?=[A-Za-z_])", signature) for signature, name in lines}
    assert set(found) == {"InferenceRequest", "InferenceResponse", "PreferredMemory", "TritonError"}
    for name, parameters in found.items():
        code = getattr(triton_double, name).__init__.__code__
        ours = code.co_varnames[1 : code.co_argcount]
        assert list(ours) == parameters[: len(ours)]
