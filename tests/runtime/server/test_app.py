"""The transcripts in docs/http.md and the session in the README against a server; the description of the routes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from repository import ROOT

pytest.importorskip("fastapi", reason="the extra serve is not installed")

Serve = Callable[..., Any]
CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def transcripts(name: str, begin: str = "") -> list[tuple[str, str]]:
    """The commands in a document's console blocks that begin so, and what each prints."""
    text = (ROOT / name).read_text("utf-8")
    return [
        (command, answer)
        for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
        for command, answer in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, flags=re.MULTILINE)
        if command.startswith(begin)
    ]


def near(value: Any) -> Any:
    """Equal but for the last digits, in which CPUs differ."""
    if isinstance(value, dict):
        return {key: near(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [near(inner) for inner in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def said(command: str, url: str) -> str:
    line = command.replace("http://localhost:8000", url)
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True).stdout


def check(printed: str, answer: str) -> None:
    """Line for line; lines of JSON by value."""
    lines, wanted = printed.replace("\r", "").splitlines(), answer.splitlines()
    assert len(lines) == len(wanted), printed
    for line, want in zip(lines, wanted, strict=True):
        assert parsed(line) == near(parsed(want)), line


def parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


@CURL
@pytest.mark.parametrize(("command", "answer"), transcripts("docs/http.md", "curl "))
def test_a_transcript_is_what_the_server_answers(serve: Serve, command: str, answer: str) -> None:
    check(said(command, serve("default").url), answer)


@CURL
def test_the_readmes_session_is_what_happens() -> None:
    (begin, greeting), *rest = transcripts("README.md")
    assert begin == "nopad serve --port 8000" and len(rest) >= 6
    arguments = [sys.executable, "-m", "nopad.runtime.cli", *begin.replace("8000", "0").split()[1:]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            hello = server.stderr.readline()
            url = hello.split()[0]
            assert hello == greeting.replace("http://127.0.0.1:8000", url)
            for command, answer in rest:
                check(said(command, url), answer)
        finally:
            server.terminate()
            assert server.wait(60) == 0


def test_every_route_is_described_in_the_docs(serve: Serve) -> None:
    text = (ROOT / "docs" / "http.md").read_text("utf-8")
    paths = httpx.get(serve("default").url + "/openapi.json").json()["paths"]
    assert len(paths) > 15 and httpx.get(serve("default").url + "/api-doc/openapi.json").json()["paths"] == paths
    for path in paths:
        assert re.sub(r"\{\w+\}", "NAME", path) in text, path
