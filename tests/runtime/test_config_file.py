"""`nopad serve --config`: options from TOML, what is refused, which source wins, and back to a file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from nopad.runtime.cli import cli, run

Config = Callable[[str], Path]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    def write(text: str) -> Path:
        path = tmp_path / "nopad.toml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def parsed(*arguments: object) -> dict[str, Any]:
    """What `nopad serve` takes from these arguments, the environment and a file."""
    command = cli.get_command(click.Context(cli), "serve")
    assert command is not None
    with command.make_context("serve", [str(argument) for argument in arguments]) as context:
        return context.params


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config("port = 1\nmax-batch = 2\nmax_body = 3\ndrain-seconds = 4\njson = true\n")
    assert parsed()["port"] == 8000
    got = parsed("--config", path)
    assert (got["port"], got["max_batch"], got["max_body"], got["drain_seconds"], got["as_json"]) == (
        1,
        2,
        3,
        4.0,
        True,
    )
    monkeypatch.setenv("NOPAD_SERVE_MAX_BATCH", "20")
    monkeypatch.setenv("NOPAD_SERVE_PORT", "10")
    monkeypatch.setenv("NOPAD_SERVE_CONFIG", str(path))
    got = parsed("--port", 100)
    assert (got["port"], got["max_batch"], got["max_body"]) == (100, 20, 3)


def test_lists_paths_and_models(config: Config) -> None:
    path = config(
        'api-key = ["one", "two"]\ncors-origin = "https://a.b"\napi-key-file = "keys/file"\ntls-key = "/key"\n'
        '[models]\nsentiment = "bundles/one"\n"by year" = "/srv/two"\n'
    )
    got = parsed("--config", path)
    assert got["keys"] == ("one", "two") and got["cors_origins"] == ("https://a.b",)
    assert got["key_file"] == path.parent / "keys" / "file" and got["tls_key"] == Path("/key")
    assert got["configured"] == (f"sentiment={path.parent}/bundles/one", "by year=/srv/two")


def test_what_is_wrong_is_one_line_that_names_it(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    for text, words in (
        ("max-bach = 3", "no option 'max-bach'; the nearest is 'max-batch'"),
        ('model = "a"', "no option 'model'; the nearest is 'models'"),
        ('config = "other"', "no option 'config'"),
        ('max-batch = "3"', "max-batch is a whole number, not '3'"),
        ("max-batch = true", "max-batch is a whole number, not True"),
        ("drain-seconds = false", "drain-seconds is a number, not False"),
        ("quiet = 1", "quiet is true or false, not 1"),
        ("host = 1", "host is a text, not 1"),
        ("api-key = [1]", "api-key is a text, or a list of texts"),
        ("max-batch = 0", "0 is not in the range"),
        ('[models]\na = ["b"]', "[models] is a table of names and bundle folders"),
        ("port = ", "is not TOML"),
    ):
        assert run(["serve", "--config", str(config(text))]) == 2
        out, err = capsys.readouterr()
        assert words in err and "Traceback" not in err and out == "", text
    assert run(["serve", "--config", "nowhere.toml"]) == 2
    assert "cannot read --config nowhere.toml: No such file" in capsys.readouterr().err


def test_keys_in_a_file_that_everybody_may_read_are_remarked_on(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config('api-key = "secret"\n')
    parsed("--config", path)
    assert capsys.readouterr().err == ""
    path.chmod(0o644)
    parsed("--config", path)
    err = capsys.readouterr().err
    assert f"chmod o-r {path}" in err and "secret" not in err
    path.write_text('api-key-file = "keys"\ntls-key = "key"\n')
    parsed("--config", path)
    assert capsys.readouterr().err == ""


def test_what_is_printed_is_a_file_that_says_the_same(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    monkeypatch.chdir(tmp_path)
    arguments = ["--port", "1", "--timeout", "0.5", "--api-key", "secret", "--cors-origin", 'a"\\é', "--uds", "s"]
    assert run(["serve", *arguments, "--allow-unverified", "a b=some", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert "secret" not in text and "# api-key = ..." in text
    assert tomllib.loads(text)["models"] == {"a b": str(tmp_path / "some")}
    given = parsed(*arguments, "--allow-unverified")
    again = parsed("--config", config(text))
    assert again.pop("configured") == (f"a b={tmp_path}/some",)
    expected = {**given, "keys": (), "uds": tmp_path / "s"}
    expected.pop("configured")
    assert again == expected
