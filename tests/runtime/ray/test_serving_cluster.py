"""`nopad serve --ray` on a real cluster of two nodes: more replicas for more tokens, and a node that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nopad[ray]'")
from ray_cluster import free_ports, two_nodes

from nopad.runtime.predictor import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
TEXTS = [f"film {i} " + "with a dull and long plot " * 20 for i in range(32)]
SECONDS = 600  # for what a busy machine is slow at


class Callers:
    """Threads that ask and ask again until they are answered; what they got."""

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self.answered: list[list[Any]] = []
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(6)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                answer = httpx.post(self._url + "/predict", json={"inputs": [[text] for text in TEXTS]}, timeout=120)
                answer.raise_for_status()
                self.answered.append(answer.json())
            except httpx.HTTPError as error:
                self.failed.append(repr(error))
                time.sleep(0.2)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def running_replicas() -> int:
    from ray import serve

    (deployment,) = serve.status().applications["nopad"].deployments.values()
    return deployment.replica_states.get("RUNNING", 0)


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def test_replicas_are_added_and_replaced_and_every_text_is_answered() -> None:
    import ray

    with load(threads=1) as model:
        wanted = [each.score for each in model.predict(TEXTS)]
    with two_nodes() as nodes:
        command = [sys.executable, "-m", "nopad.runtime.cli", "serve", "--json", "--threads", "1"]
        command += [
            "--ray",
            nodes.address,
            "--replicas",
            "1:2",
            "--replica-tokens",
            "300",
            "--port",
            str(free_ports(1)[0]),
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert server.stdout is not None and server.stderr is not None
        line = server.stdout.readline()
        assert line, server.stderr.read()
        said = json.loads(line)
        assert said["models"] == {"default": "text-classification"}
        ray.init(address=nodes.address, log_to_driver=False)
        callers = Callers(said["url"])
        try:
            until(lambda: running_replicas() == 2, "tokens that wait add a replica")
            nodes.kill_second()
            until(lambda: running_replicas() == 1, "the node is seen to be gone")
            before = len(callers.answered)
            until(lambda: len(callers.answered) > before + 10, "the other replica answers")
        finally:
            callers.stop()
            ray.shutdown()
        for answer in callers.answered:
            assert [rows[0]["score"] for rows in answer] == pytest.approx(wanted, abs=1e-5)
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0, server.stderr.read()
