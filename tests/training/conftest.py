"""A tokenizer and configuration to train from scratch, and a run by the command that several files look at."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# training_samples is imported in the fixtures: it skips the test modules where packages for training are missing.


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    # Neither the user's cache nor another test's: rows must come from the files of this test.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training_samples import make_scratch, sentences, write_jsonl

    folder = tmp_path_factory.mktemp("scratch")
    return make_scratch(folder, write_jsonl(folder / "texts.jsonl", sentences(300, seed=99)))


class CommandRun(NamedTuple):
    output: Path
    data: Path  # its rows, JSON lines
    said: str  # on stderr


@pytest.fixture(scope="session")
def command_run(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandRun:
    """`nopad train` on texts, some with wrong labels, evaluated on rows of their own. Tests that change it copy it."""
    from training_samples import sentences, write_jsonl

    from nopad.runtime.cli import run

    folder = tmp_path_factory.mktemp("command")
    names = ("neg|ative", "posi_tive")
    rows, held_out = (
        [{**row, "label": names[row["label"] ^ (n % 10 == 0)]} for n, row in enumerate(sentences(count, seed=count))]
        for count in (300, 100)
    )
    write_jsonl(folder / "rows.jsonl", rows)
    data = write_jsonl(folder / "held-out.jsonl", held_out)
    options = ["--from-scratch", str(scratch), "--output", str(folder / "out"), "--max-length", "64", "--threads", "1"]
    options += ["--learning-rate", "5e-3", "--batch-size", "16", "--epochs", "2", "--log-every", "1e-6"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run(["train", "--train", str(folder / "rows.jsonl"), "--eval", str(data), *options])
    assert code == 0, said.getvalue()
    return CommandRun(folder / "out", data, said.getvalue())


@pytest.fixture(scope="session")
def teacher(command_run: CommandRun) -> Path:
    """The checkpoint of that run, of which others learn."""
    return command_run.output


@pytest.fixture(scope="session")
def teacher_bundle(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle. Tests that change it copy it."""
    from nopad.runtime.cli import run

    folder = tmp_path_factory.mktemp("teacher") / "bundle"
    assert run(["export", str(teacher), "--output", str(folder), "--quiet"]) == 0
    return folder
