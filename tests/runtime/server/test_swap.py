"""Changing models while clients ask: nobody notices, and whatever fails leaves the old model as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from running_server import held
from swapping_server import TEXTS, Swapping, write_models

from nopad.model.packing import PackedBatch
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.errors import EngineError
from nopad.runtime.predictor import load
from nopad.runtime.server import swap
from nopad.runtime.server.memory import resident
from nopad.runtime.types import FloatArray


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("swap"))


@pytest.fixture(scope="module")
def shared(models: Path) -> Iterator[Swapping]:
    server = Swapping(models)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fresh(models: Path) -> Iterator[Callable[..., Swapping]]:
    started: list[Swapping] = []

    def start(**settings: Any) -> Swapping:
        server = Swapping(models, **settings)
        server.start()
        started.append(server)
        return server

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Every self-check sets the first event, then waits for the second."""
    reached, go = threading.Event(), threading.Event()
    real = swap.self_check

    def waiting(model: Any) -> Any:
        reached.set()
        assert go.wait(60)
        return real(model)

    monkeypatch.setattr(swap, "self_check", waiting)
    return reached, go


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(call()))
    thread.start()
    return thread, got


class Clients:
    """Threads that ask all the time, each over a connection of its own."""

    def __init__(self, url: str, count: int = 4) -> None:
        self.answers: list[tuple[int, int, str, float]] = []  # status, text, version, score of "positive"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url, number)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, url: str, number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                number += 1
                which = number % len(TEXTS)
                answer = client.post(url + "/v1/classify", json={"input": [TEXTS[which]], "model": "m"})
                rows = answer.json().get("data", [{"scores": []}])[0]["scores"]
                score = next((row["score"] for row in rows if row["label"] == "positive"), -1.0)
                version = answer.headers.get("x-nopad-version", "")
                self.answers.append((answer.status_code, which, version, score))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def swap_under_load(server: Swapping, models: Path, swaps: int) -> list[int]:
    """Swap so many times while clients ask; check every answer. The memory after each swap."""
    offline = {}
    for name in ("plain", "soft"):
        with load(models / name, threads=1) as model:
            offline[name] = [answer.scores["positive"] for answer in model.predict(TEXTS)]
    clients, memory, served = Clients(server.url), [], {"1": "plain"}
    try:
        for number in range(swaps):
            name = ("soft", "plain")[number % 2]
            changed = server.change(bundle=name)
            assert changed.status_code == 200, changed.text
            assert changed.json()["drained"] and changed.json()["probes"] >= 5
            served[str(changed.json()["version"])] = name
            memory.append(resident() or 0)
            seen = len(clients.answers)
            until(lambda seen=seen: len(clients.answers) > seen + 8)
    finally:
        clients.stop()
    assert {status for status, *_ in clients.answers} == {200}
    for _, which, version, score in clients.answers:
        assert score == pytest.approx(offline[served[version]][which], abs=1e-5)
    assert {version for _, _, version, _ in clients.answers} == set(served)
    assert abs(offline["plain"][0] - offline["soft"][0]) > 0.01  # or nothing would have been shown
    return memory


def schedulers() -> int:
    return sum(thread.name == "nopad-scheduler" for thread in threading.enumerate())


def test_two_swaps_under_load_fail_no_request(fresh: Callable[..., Swapping], models: Path) -> None:
    before = schedulers()
    server = fresh()
    swap_under_load(server, models, 2)
    assert server.version() == 3 and schedulers() == before + 1
    metrics = httpx.get(server.url + "/metrics").text
    assert 'nopad_swaps_total{result="done"} 2.0' in metrics


@pytest.mark.slow
def test_ten_swaps_under_load_fail_no_request_and_keep_no_memory(fresh: Callable[..., Swapping], models: Path) -> None:
    before = schedulers()
    server = fresh()
    memory = swap_under_load(server, models, 10)
    assert schedulers() == before + 1
    assert memory[-1] - memory[2] < 16e6, memory  # a loaded model takes three times as much


@pytest.mark.parametrize(
    ("bundle", "status", "words"),
    [
        ("no-manifest", 422, "has no manifest.json"),
        ("cut-manifest", 422, "is damaged"),
        ("damaged", 422, "SHA-256"),
        ("missing", 422, "no bundle 'missing'"),
        ("a\0b", 403, "not allowed"),
        ("tampered", 424, "self-check: the answer of onnx-cpu"),
        ("other-labels", 409, "labels ['negative', 'positive'], now ['bad', 'good']"),
        ("../outside", 403, "in no folder of --model-dir"),
        ("/etc", 403, "in no folder of --model-dir"),
        ("link-out", 403, "in no folder of --model-dir"),
    ],
)
def test_a_bundle_that_will_not_do_changes_nothing(shared: Swapping, bundle: str, status: int, words: str) -> None:
    before, answered, threads = shared.version(), shared.ask(), schedulers()
    refused = shared.change(bundle=bundle)
    assert refused.status_code == status and words in refused.json()["error"], refused.text
    assert f"version {before} goes on answering" in refused.json()["error"]
    row = shared.shown()["m"]
    assert (row["state"], row["version"], row["change"]["state"]) == ("serving", before, "failed")
    assert words in row["change"]["why"]
    again = shared.ask()
    assert again.json()["data"] == answered.json()["data"] and again.headers["x-nopad-version"] == str(before)
    assert schedulers() == threads


def test_an_engine_that_fails_while_it_is_warmed(shared: Swapping, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxCpuEngine.run

    def failing(self: OnnxCpuEngine, batch: PackedBatch) -> FloatArray:
        if batch.num_tokens > 300:
            raise EngineError("no memory for 300 tokens")
        return real(self, batch)

    monkeypatch.setattr(OnnxCpuEngine, "run", failing)
    refused, before = shared.change(bundle="soft"), shared.version()
    assert refused.status_code == 424 and "warming failed: no memory for 300 tokens" in refused.json()["error"]
    assert shared.ask().headers["x-nopad-version"] == str(before)


def test_no_room_for_a_second_model(shared: Swapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.serving.swaps, "_max_memory", 1_000_000)
    refused = shared.change(bundle="soft")
    assert refused.status_code == 507 and "and 0 MB are free" in refused.json()["error"]
    assert refused.json()["error_type"] == "Memory" and shared.ask().status_code == 200


def test_links_inside_and_full_paths_are_followed_and_other_labels_may_be_meant(shared: Swapping) -> None:
    before = shared.version()
    assert shared.change(bundle="link-in").json()["bundle"] == str(shared.folder / "soft")
    changed = shared.change(bundle=str(shared.folder / "other-labels"), allow_change=True)
    assert (changed.status_code, changed.json()["replaced"], changed.json()["version"]) == (200, before + 1, before + 2)
    assert {row["label"] for row in shared.ask().json()["data"][0]["scores"]} == {"bad", "good"}
    assert shared.change(bundle="plain", allow_change=True, engine="onnx-cpu", token_budget=99).status_code == 200
    assert shared.shown()["m"]["token_budget"] == 99 and shared.shown()["m"]["change"] is None


def test_one_change_at_a_time_and_it_goes_on_without_its_client(
    shared: Swapping, gate: tuple[threading.Event, threading.Event]
) -> None:
    reached, go = gate
    before = shared.version()
    with pytest.raises(httpx.ReadTimeout):
        shared.change(bundle="soft", timeout=0.5)
    assert reached.wait(60)
    assert shared.shown()["m"]["change"]["state"] == "checking"
    refused = shared.change(bundle="plain")
    assert refused.status_code == 409 and "'m' is being changed" in refused.json()["error"]
    assert shared.change("another", bundle="plain").status_code == 409
    assert shared.ask().headers["x-nopad-version"] == str(before)
    go.set()
    until(lambda: shared.version() == before + 1 and shared.shown()["m"]["change"] is None)
    assert shared.ask().headers["x-nopad-version"] == str(before + 1)


def test_the_old_model_answers_what_it_has(fresh: Callable[..., Swapping], monkeypatch: pytest.MonkeyPatch) -> None:
    server, finish = fresh(), threading.Event()
    held(next(iter(server.models)).model, finish, monkeypatch)
    asking, answers = in_thread(server.ask)
    until(lambda: server.serving.running)
    changing, changes = in_thread(lambda: server.change(bundle="soft"))
    until(lambda: server.version() == 2)
    assert server.ask().headers["x-nopad-version"] == "2"
    assert server.shown()["m"]["change"]["state"] == "draining"
    assert server.change(bundle="plain").status_code == 409
    finish.set()
    asking.join(60)
    changing.join(60)
    assert answers[0].status_code == 200 and answers[0].headers["x-nopad-version"] == "1"
    assert changes[0].json()["drained"] is True and server.shown()["m"]["change"] is None


def test_a_request_that_outlasts_the_drain_is_cut_off(
    fresh: Callable[..., Swapping], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, finish = fresh(drain_seconds=0.2), threading.Event()
    held(next(iter(server.models)).model, finish, monkeypatch)
    monkeypatch.setattr("nopad.runtime.scheduler.scheduler.CLOSE_SECONDS", 0.1)
    asking, answers = in_thread(server.ask)
    until(lambda: server.serving.running)
    changing, changes = in_thread(lambda: server.change(bundle="soft"))
    until(lambda: server.version() == 2)
    time.sleep(0.3)
    finish.set()
    changing.join(60)
    asking.join(60)
    assert changes[0].json()["drained"] is False and changes[0].json()["version"] == 2
    assert answers[0].status_code in (200, 503)  # what ran may still come back


def test_the_end_of_the_server_gives_a_change_up(
    fresh: Callable[..., Swapping], gate: tuple[threading.Event, threading.Event]
) -> None:
    reached, go = gate
    server = fresh()
    changing, changes = in_thread(lambda: server.change(bundle="soft"))
    assert reached.wait(60)
    server.server.drain()
    assert server.change(bundle="plain").status_code == 503
    go.set()
    changing.join(60)
    assert changes[0].status_code == 503 and "shutting down" in changes[0].json()["error"]
    server.thread.join(60)
    assert not server.thread.is_alive() and next(iter(server.models)).version == 1


def test_the_end_of_the_server_ends_the_first_warm_up(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, runs, go = Swapping(models), [], threading.Event()
    monkeypatch.setattr("nopad.runtime.model.Model.run_ids", lambda self, batch: runs.append(len(batch)) or go.wait(60))
    server.thread.start()
    until(lambda: runs)
    assert httpx.get(server.url + "/health").status_code == 503
    assert server.change(bundle="soft").status_code == 503
    server.server.drain()
    go.set()
    server.thread.join(60)
    assert not server.thread.is_alive() and len(runs) == 1
    server.stop()


def test_of_several_worker_processes_none_is_changed(fresh: Callable[..., Swapping]) -> None:
    server = fresh(workers=2)
    refused = server.change(bundle="soft")
    assert refused.status_code == 409 and "restart the workers in turn" in refused.json()["error"]
    assert server.remove("m").status_code == 409 and server.version() == 1


def test_without_a_model_dir_only_what_was_started_with_is_loaded_again(fresh: Callable[..., Swapping]) -> None:
    server = fresh(model_dirs=())
    refused = server.change(bundle="soft")
    assert refused.status_code == 403 and "without --model-dir" in refused.json()["error"]
    assert server.change("soft").status_code == 403
    for body in ({}, {"bundle": str(server.folder / "plain")}):
        assert server.change(**body).status_code == 200
    assert server.version() == 3
