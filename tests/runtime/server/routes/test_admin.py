"""Who may change models, and adding and removing them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from swapping_server import ADMIN, Swapping, write_models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapping]:
    running = Swapping(write_models(tmp_path_factory.mktemp("admin")), keys=("user",))
    running.start()
    yield running
    running.stop()


def test_the_admin_key_opens_these_routes_and_no_others(server: Swapping) -> None:
    user = {"authorization": "Bearer user"}
    for method, path in (
        ("GET", "/admin/models"),
        ("POST", "/admin/models/m"),
        ("POST", "/admin/models/m%0A"),  # a line break, at which a pattern may end
        ("POST", "/v2/repository/models/m%0A/load"),
        ("DELETE", "/admin/models/m"),
        ("POST", "/v2/repository/models/m/load"),
        ("POST", "/v2/repository/models/m/unload"),
    ):
        for headers in ({}, user, {"authorization": "Bearer wrong"}):
            refused = httpx.request(method, server.url + path, headers=headers)
            assert refused.status_code == 401 and "admin key" in refused.json()["error"]
    assert httpx.get(server.url + "/info", headers=ADMIN).status_code == 401
    assert httpx.get(server.url + "/admin/models", headers=ADMIN).status_code == 200
    assert httpx.get(server.url + "/info", headers=user).json()["model_id"]


def test_without_an_admin_key_nobody_changes_anything(server: Swapping) -> None:
    plain = Swapping(server.folder, admin_keys=())
    plain.start()
    try:
        refused = plain.change(bundle="soft")
        assert refused.status_code == 403 and "--admin-key-file" in refused.json()["error"]
        assert httpx.get(plain.url + "/admin/models").status_code == 403
        assert plain.ask().status_code == 200
    finally:
        plain.stop()


@pytest.mark.slow
def test_a_model_is_added_by_the_name_of_its_folder_and_removed(server: Swapping) -> None:
    def status(name: str) -> int:
        headers = {"authorization": "Bearer user"}
        return httpx.post(
            server.url + "/v1/classify", json={"input": "a", "model": name}, headers=headers, timeout=60
        ).status_code

    assert status("anything") == 200  # there is only one
    added = server.change("soft")
    assert (added.status_code, added.json()["version"], added.json()["replaced"]) == (200, 1, None)
    assert added.json()["bundle"] == str(server.folder / "soft")
    assert status("soft") == 200 and status("anything") == 404
    removed = server.remove("soft")
    assert removed.status_code == 200 and removed.json()["version"] is None and removed.json()["drained"]
    assert status("soft") == 404 and status("anything") == 200
    assert server.remove("soft").status_code == 404
    assert server.change("soft").json()["version"] == 2
    for name in ("soft", "m"):
        assert server.remove(name).status_code == 200
    assert status("m") == 503 and server.shown() == {}
    assert httpx.get(server.url + "/health").json()["error"] == "no model is loaded"
    assert server.change("m").json()["version"] == 2 and status("m") == 200


@pytest.mark.parametrize("body", [{"bundle": 3}, {"token_budget": 0}, {"folder": "soft"}])
def test_a_wrong_body_is_422(server: Swapping, body: dict[str, object]) -> None:
    assert server.change(**body).status_code == 422


def test_an_unknown_engine_is_named(server: Swapping) -> None:
    refused = server.change("m", engine="quantum")
    assert refused.status_code == 422 and "unknown engine 'quantum'" in refused.json()["error"]
    assert Path(server.shown()["m"]["bundle"]) == server.folder / "plain"
