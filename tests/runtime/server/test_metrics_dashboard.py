"""The dashboard and the alerts of docs/grafana: every metric exists, and a real Prometheus answers every query."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from repository import ROOT

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import yaml
from running_server import Running

GRAFANA = ROOT / "docs/grafana"
ALERTS = GRAFANA / "alerts.yml"
NEEDS = "{name} is not installed (Debian: apt-get install prometheus)"
# What is empty on a server without faults, and what needs a calibrated bundle, or several changes of models.
MAY_BE_EMPTY = re.compile(r"nopad_drift_psi|nopad_errors_total\[|nopad_swaps_total|> 0$")


def expressions() -> dict[str, str]:
    """Panel and query, or alert -> its expression with Grafana's variables filled in."""
    dashboard = json.loads((GRAFANA / "nopad.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    found = {name: expr.replace("$__rate_interval", "1m").replace("$model", ".*") for name, expr in found.items()}
    rules = yaml.safe_load(ALERTS.read_text())["groups"]
    return found | {rule["alert"]: rule["expr"] for group in rules for rule in group["rules"]}


def test_every_panel_has_queries_a_unit_and_a_place_of_its_own() -> None:
    dashboard = json.loads((GRAFANA / "nopad.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert dashboard["uid"] == dashboard["title"] == "nopad"


def test_every_metric_that_is_asked_for_is_on_metrics(serve: Callable[..., Running]) -> None:
    server = serve("default", metrics_names="nopad")
    assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
    text = httpx.get(server.url + "/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    has = {
        name + ending
        for name, kind in kinds.items()
        for ending in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    asked = {name for expr in expressions().values() for name in re.findall(r"\b(?:nopad|process)_\w+", expr)}
    assert len(asked) > 30 and asked <= has
    documented = (ROOT / "docs/observability.md").read_text()
    ours = {name for name in kinds if name.startswith("nopad_")}
    assert not {name for name in ours if f"`{name}`" not in documented}  # each has a row in the docs


@pytest.mark.skipif(shutil.which("promtool") is None, reason=NEEDS.format(name="promtool"))
def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    for kind, file in (("rules", ALERTS), ("config", GRAFANA / "prometheus.yml")):
        done = subprocess.run(["promtool", "check", kind, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason=NEEDS.format(name="promtool"))
def test_the_page_of_metrics_is_as_prometheus_wants_it(serve: Callable[..., Running]) -> None:
    text = httpx.get(serve("default", metrics_names="nopad").url + "/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[Running, str]]:
    """A server under load and a Prometheus that scrapes it and evaluates the alerts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Running({"default": None}).start()
    config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ALERTS)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.port}"]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path}/data"]
    with subprocess.Popen([*command, f"--web.listen-address={url[7:]}"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield server, url
        finally:
            process.terminate()
            process.wait(30)
            server.stop()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason=NEEDS.format(name="prometheus"))
def test_a_real_prometheus_answers_every_query_of_the_dashboard_and_the_alerts(prometheus: tuple[Running, str]) -> None:
    server, url = prometheus

    def query(expr: str) -> list[Any]:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": expr}, timeout=30).json()
        assert answer["status"] == "success", (expr, answer)
        return list(answer["data"]["result"])

    end, asked = time.monotonic() + 90, 0
    with httpx.Client(timeout=60) as client:
        while time.monotonic() < end:
            client.post(server.url + "/predict", json={"inputs": [["a"], ["a film of some length"], ["b"]]})
            client.post(server.url + "/v1/classify", json={"input": "splendid"})
            client.post(server.url + "/predict", json={"inputs": 3})
            asked += 3
            time.sleep(0.1)
            if asked % 30 == 0:
                try:
                    if int(query("count_over_time(nopad_requests_total{status='422'}[1m])")[0]["value"][1]) >= 8:
                        break
                except (httpx.TransportError, IndexError):
                    continue
    empty = []
    for name, expr in expressions().items():
        result = query(expr)
        if not result and not (name.startswith("Nopad") or MAY_BE_EMPTY.search(expr)):
            empty.append((name, expr))
    assert not empty
    (ready,) = query("nopad_ready")
    assert ready["value"][1] == "1"
    (saved,) = query(next(expr for name, expr in expressions().items() if name.startswith("Padding saved")))
    assert 0.1 < float(saved["value"][1]) < 0.6  # of two texts of 3 tokens beside one of 7, and texts alone
    rules = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert len(rules) == len(yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])
    assert all(rule["health"] == "ok" for rule in rules), rules
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
    (target,) = httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
