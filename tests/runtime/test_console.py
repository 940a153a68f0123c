"""What commands share: options, a JSON object on each line, remarks and progress on stderr."""

from __future__ import annotations

import io
import json
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner

from nopad.runtime.console import (
    common_options,
    emit,
    figure,
    messages,
    reading_options,
    status,
    threads_option,
)

Capture = pytest.CaptureFixture[str]


@click.command()
@reading_options
@common_options
@threads_option
def shown(**options: object) -> None:
    """Print the options as they arrive."""
    click.echo(json.dumps(options))


def test_the_options_and_their_order() -> None:
    result = CliRunner().invoke(shown, ["--columns", "text, label", "-q", "--threads", "2"])
    assert json.loads(result.stdout) == {
        "encoding": None,
        "columns": ["text", "label"],
        "as_json": False,
        "quiet": True,
        "threads": 2,
    }
    assert json.loads(CliRunner().invoke(shown).stdout)["columns"] == []
    assert [option.opts[0] for option in shown.params] == ["--encoding", "--columns", "--json", "--quiet", "--threads"]
    assert CliRunner().invoke(shown, ["--threads", "0"]).exit_code == 2


def test_an_object_is_one_line_of_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"text": "naïve\n", "score": np.float32(0.5)}
    emit(value)
    assert capsys.readouterr().out == '{"text": "naïve\\n", "score": 0.5}\n'
    emit({"text": "\ud800"})  # a lone surrogate, which UTF-8 cannot encode
    assert json.loads(capsys.readouterr().out) == {"text": "\ud800"}
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    emit(value)
    ascii_only.seek(0)
    assert ascii_only.read() == '{"text": "na\\u00efve\\n", "score": 0.5}\n'


def test_a_figure_that_is_none() -> None:
    assert figure(0.00012345) == "0.000123" and figure(0.5, ".1e") == "5.0e-01" and figure(None) == "none"


def test_remarks_go_to_stderr_as_they_are_unless_quiet(capsys: Capture) -> None:
    messages(quiet=False).print("[bold]:bug: " + "word " * 60 + "[/red]")
    out, err = capsys.readouterr()
    assert out == "" and err == "[bold]:bug: " + "word " * 60 + "[/red]\n"
    messages(quiet=True).print("nothing")
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_progress_is_one_line_for_each_new_message(capsys: Capture) -> None:
    with status(messages(quiet=False)) as show:
        for step in range(3):
            show("counting", step, 3)
        show("writing")
    assert capsys.readouterr() == ("", "counting\nwriting\n")


def test_on_a_terminal_progress_is_a_bar_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    console = messages(quiet=False)
    assert console.is_terminal
    with status(console) as show:
        show("counting", 1, 3)
        show("counting", 3, 3)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "counting" in drawn and drawn.endswith("\x1b[2K")  # the last line is erased
