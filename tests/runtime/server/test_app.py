"""The transcripts in docs/http.md and the README, run against a server; and the description of the routes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from repository import ROOT

pytest.importorskip("fastapi", reason="the extra serve is not installed")

Serve = Callable[..., Any]
TRANSCRIPTS = [
    (name, command, answer)
    for name in ("README.md", "docs/http.md")
    for block in re.findall(r"```console\n(.*?)```", (ROOT / name).read_text("utf-8"), flags=re.DOTALL)
    for command, answer in re.findall(r"^\$ (curl .*)\n((?:[^$].*\n)*)", block, flags=re.MULTILINE)
]


def near(value: Any) -> Any:
    """Equal but for the last digits, in which CPUs differ."""
    if isinstance(value, dict):
        return {key: near(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [near(inner) for inner in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("name", "command", "answer"), TRANSCRIPTS)
def test_a_transcript_is_what_the_server_answers(serve: Serve, name: str, command: str, answer: str) -> None:
    arguments = shlex.split(command.replace("http://localhost:8000", serve("default").url))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    try:
        wanted = json.loads(answer)
    except ValueError:
        assert done.stdout.replace("\r", "").strip() == answer.strip()
    else:
        assert json.loads(done.stdout) == near(wanted)


def test_both_documents_have_transcripts() -> None:
    assert {name for name, _, _ in TRANSCRIPTS} == {"README.md", "docs/http.md"}


def test_every_route_is_described_in_the_docs(serve: Serve) -> None:
    text = (ROOT / "docs" / "http.md").read_text("utf-8")
    paths = httpx.get(serve("default").url + "/openapi.json").json()["paths"]
    assert len(paths) > 15
    for path in paths:
        assert re.sub(r"\{\w+\}", "NAME", path) in text, path
