"""deploy/: the image's recipe and the unit, as far as they can be judged without a container or systemd running."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
UNIT = ROOT / "deploy" / "nopad.service"


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text("utf-8"), re.M):
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_no_remark() -> None:
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_small_and_runs_as_nobody_in_exec_form() -> None:
    steps = list(instructions())
    stages = [rest.rpartition(" AS ") for name, rest in steps if name == "FROM"]
    assert [name for _, _, name in stages][-2:] == ["cuda", "cpu"]  # the last is the default
    final = [step for step in steps[max(i for i, (name, rest) in enumerate(steps) if rest.endswith("AS runtime")) :]]
    assert not [step for step in final if step[0] in ("RUN", "ADD")]
    assert [rest for name, rest in final if name == "COPY"] == [
        f"--from=build-{target} /opt/nopad /opt/nopad" for target in ("cuda", "cpu")
    ]
    (user,) = [rest for name, rest in final if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # a number, so that Kubernetes sees that it is not root
    assert json.loads(dict(final)["ENTRYPOINT"]) == ["nopad", "serve"] and dict(final)["STOPSIGNAL"] == "SIGTERM"
    assert all("--no-cache-dir" in rest for name, rest in steps if name == "RUN" and "install" in rest)
    assert not re.search(r"(?i)password|secret|token|api.?key", DOCKERFILE.read_text("utf-8"))


def test_what_the_image_is_built_from_is_there_and_nothing_else_is_sent() -> None:
    copied = {word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()}
    copied -= {"./"}
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.M)
    assert (ROOT / ".dockerignore").read_text("utf-8").splitlines()[1] == "*"
    assert set(sent) == copied and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert folders | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == copied
    extras = re.findall(r'"\.\[([\w,-]+)\]"', DOCKERFILE.read_text("utf-8"))
    assert len(extras) == 2
    for extra in ",".join(extras).split(","):
        assert extra in project["project"]["optional-dependencies"]


@pytest.mark.slow
def test_the_health_check_asks_a_server() -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    (check,) = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    _, program, code = json.loads(check.partition(" CMD ")[2])
    assert program == "-c"
    serve = [sys.executable, "-m", "nopad.runtime.cli", "serve", "--port", "0", "--threads", "1", "--json"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["url"].rpartition(":")[2]
        asked = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "NOPAD_SERVE_PORT": port}, capture_output=True, timeout=60
        )
        process.terminate()
        assert asked.returncode == 0 and process.wait(60) == 0
    asked = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NOPAD_SERVE_PORT": port}, capture_output=True, timeout=60
    )
    assert asked.returncode == 1


def test_the_unit_waits_longer_than_a_drain_and_lets_the_supervisor_end_its_workers() -> None:
    from nopad.runtime.server.settings import Settings
    from nopad.runtime.server.worker import CLOSE_SECONDS

    found = unit()
    assert int(found["TimeoutStopSec"][0]) > Settings().drain_seconds + CLOSE_SECONDS
    assert int(found["LimitNOFILE"][0]) > Settings().max_connections
    assert found["KillMode"] == ["mixed"] and found["KillSignal"] == ["SIGTERM"] and found["OOMPolicy"] == ["continue"]
    assert found["DynamicUser"] == ["yes"] and found["ProtectSystem"] == ["strict"] and "MemoryMax" in found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit_and_finds_it_little_exposed(tmp_path: Path) -> None:
    copy = tmp_path / "nopad.service"
    copy.write_text(UNIT.read_text("utf-8").replace("/opt/nopad/bin/nopad", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    options = ["--offline=yes", "--no-pager", "--threshold=15"]  # in tenths
    done = subprocess.run(
        ["systemd-analyze", "security", *options, str(copy)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1]
