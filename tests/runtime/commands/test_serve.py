"""`nopad serve` as a process: the flags, the environment, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from changed_bundles import warmer

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from nopad.runtime.cli import cli, run

COMMAND = [sys.executable, "-m", "nopad.runtime.cli", "serve", "--port", "0", "--threads", "1", "--json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_ends_in_order(number: signal.Signals, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    environment = {**os.environ, "NOPAD_SERVE_MAX_BATCH": "2", "NOPAD_SERVE_API_KEY_FILE": str(keys)}
    environment |= {"NOPAD_SERVE_ACCESS_LOG": "1", "NOPAD_SERVE_LOG_FORMAT": "json", "NOPAD_SERVE_METRICS_NAMES": "tei"}
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
        assert "nopad_" not in httpx.get(said["url"] + "/metrics").text
        process.send_signal(number)
        assert process.wait(60) == 0
        words, *lines = process.stderr.read().splitlines()
        assert "serves default (text-classification)" in words
        assert [json.loads(line)["status"] for line in lines] == [401, 200, 422]


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
        (["--tls-key", "key"], 2, "--tls-key is the key of a --tls-cert"),
        (["--tls-cert", str(tmp_path / "empty")], 2, "are no PEM files"),
        (["--uds", str(tmp_path / "empty")], 2, "is no socket"),
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


def test_without_grpc_its_extra_is_named_before_anything_is_loaded() -> None:
    program = (
        "import sys; sys.modules['grpc'] = None\n"
        "from nopad.runtime.cli import run; sys.exit(run(['serve', '--port', '0', '--grpc-port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "nopad: this needs the package grpc: pip install 'nopad[grpc]'\n"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_says_where_it_answers_grpc(workers: int) -> None:
    grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
    command = [*COMMAND, "--grpc-port", "0", "--compress-from", "1000", "--workers", str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        said = json.loads(process.stdout.readline())
        with grpc.insecure_channel(said["grpc"]) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=60) == b"\x08\x01"  # field 1 is true
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert f"{said['grpc']} answers gRPC" in process.stderr.read()


def serve_command() -> click.Command:
    command = cli.get_command(click.Context(cli), "serve")
    assert command is not None
    return command


def sample(option: click.Option) -> tuple[str, Any]:
    """A value that is not the default, as the environment writes it and as the command gets it."""
    if option.is_flag:
        return ("false", False) if option.default is True else ("true", True)
    if isinstance(option.type, click.Choice):
        value = next(choice for choice in option.type.choices if choice != option.default)
        return str(value), value
    if isinstance(option.type, click.types.IntParamType):
        return "4711", 4711
    if isinstance(option.type, click.types.FloatParamType):
        return "47.5", 47.5
    if isinstance(option.type, click.Path):
        place = str(Path(__file__).parent) if option.type.exists else "some/place"
        value = Path(place)
        return place, (value,) if option.multiple else value
    return "word", ("word",) if option.multiple else "word"


@pytest.mark.parametrize(
    "option",
    [
        each
        for each in serve_command().params
        if isinstance(each, click.Option) and each.name not in ("help", "configured")
    ],
    ids=lambda option: option.name,
)
def test_every_option_is_set_by_its_variable(option: click.Option, monkeypatch: pytest.MonkeyPatch) -> None:
    long = max(option.opts, key=len).lstrip("-")
    text, value = sample(option)
    assert option.name is not None
    with serve_command().make_context("serve", []) as context:
        assert context.params[option.name] != value
    monkeypatch.setenv(f"NOPAD_SERVE_{long}".replace("-", "_").upper(), text)
    with serve_command().make_context("serve", []) as context:
        assert context.params[option.name] == value


def test_every_setting_has_the_default_that_help_shows() -> None:
    from nopad.runtime.server.settings import Settings

    shown = {each.name: each.default for each in serve_command().params}
    for name in ("max_batch", "max_body", "max_connections", "drain_seconds", "hang_seconds", "workers"):
        assert shown[name] == getattr(Settings(), name)


@pytest.mark.parametrize("beside", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_unix_socket_is_served_alone_or_beside_a_port(beside: bool, tmp_path: Path) -> None:
    path = tmp_path / "nopad.sock"
    (tmp_path / "nopad.toml").write_text('uds = "nopad.sock"\nthreads = 1\njson = true\n')
    command = [sys.executable, "-m", "nopad.runtime.cli", "serve", "--config", str(tmp_path / "nopad.toml")]
    command += ["--port", "0"] if beside else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        said = json.loads(process.stdout.readline())
        assert said["url"].startswith("http://127.0.0.1:" if beside else f"unix:{path}")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            answer = client.post("http://nopad/predict", json={"inputs": "splendid"}, timeout=60)
        assert answer.json()[0]["label"] == "positive"
        if beside:
            assert httpx.get(said["url"] + "/health").status_code == 200
        process.terminate()
        assert process.wait(60) == 0 and not path.exists()
        assert f"unix:{path} serve" in process.stderr.read()
