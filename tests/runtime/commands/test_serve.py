"""`nopad serve` as a process: the flags, the environment, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from changed_bundles import warmer

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from nopad.runtime.cli import run

COMMAND = [sys.executable, "-m", "nopad.runtime.cli", "serve", "--port", "0", "--threads", "1", "--json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_ends_in_order(number: signal.Signals, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    environment = {**os.environ, "NOPAD_SERVE_MAX_BATCH": "2", "NOPAD_SERVE_API_KEY_FILE": str(keys)}
    with subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said = json.loads(process.stdout.readline())
        assert said["models"] == {"default": "text-classification"}
        ask = {"headers": {"authorization": "Bearer two"}, "timeout": 60}
        assert httpx.post(said["url"] + "/predict", json={"inputs": "a"}).status_code == 401
        answer = httpx.post(said["url"] + "/predict", json={"inputs": [["splendid"], ["dull"]]}, **ask)
        assert [rows[0]["label"] for rows in answer.json()] == ["positive", "negative"]
        three = httpx.post(said["url"] + "/predict", json={"inputs": [["a"]] * 3}, **ask)
        assert three.json()["error"] == "batch size 3 > maximum allowed batch size 2"
        process.send_signal(number)
        assert process.wait(60) == 0
        assert "serves default (text-classification)" in process.stderr.read()


def test_a_model_is_changed_by_who_has_the_admin_key_from_a_folder_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    models = tmp_path / "models"
    warmer(models / "soft")
    options = ["--admin-key-file", str(tmp_path / "keys"), "--max-memory", "16000"]
    environment = {**os.environ, "NOPAD_SERVE_MODEL_DIR": str(models)}
    with subprocess.Popen(
        [*COMMAND, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        try:
            before = httpx.post(url + "/predict", json={"inputs": "splendid"})
            admin = {"headers": {"authorization": "Bearer secret"}, "timeout": 60}
            changed = httpx.post(url + "/admin/models/default", json={"bundle": "soft"}, **admin)
            assert (changed.status_code, changed.json()["version"]) == (200, 2), changed.text
            after = httpx.post(url + "/predict", json={"inputs": "splendid"})
            assert before.json()[0]["score"] > after.json()[0]["score"] + 0.01
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_is_wrong_with_the_flags_or_the_bundle_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "a").mkdir()
    for arguments, code, words in (
        ([str(tmp_path / "nowhere")], 3, "no bundle at"),
        (["a/b", "c/b"], 2, "two models would be named 'b'"),
        (["--api-key-file", str(tmp_path / "empty")], 2, "holds no API key"),
        (["--host", "256.0.0.1"], 2, "cannot listen on"),
        (["--port", "99999"], 2, "99999"),
    ):
        assert run(["serve", "--port", "0", *arguments]) == code
        out, err = capsys.readouterr()
        assert words in err and "Traceback" not in err and out == ""


def test_without_the_extra_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from nopad.runtime.cli import run; sys.exit(run(['serve', '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and done.stdout == ""
    assert done.stderr == "nopad: this needs the package fastapi: pip install 'nopad[serve]'\n"
