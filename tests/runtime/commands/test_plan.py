"""`nopad plan`: what it reads, what it prints and writes, and how it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.bundle import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT, open_bundle, write_manifest
from nopad.runtime.cli import run
from nopad.runtime.errors import InputFileError, UsageError
from nopad.runtime.planning.lengths import parse_bytes, read_lengths
from nopad.runtime.planning.search import plan_profiles
from nopad.runtime.predictor import load
from nopad.runtime.profiles import read_profiles
from nopad.runtime.tokenizer import TextEncoder

Capture = pytest.CaptureFixture[str]
Plan = Callable[..., tuple[int, dict[str, Any], str]]
TEXTS = ["a dull film", "splendid", "an hour of my life I want back " * 12, "so so " * 100]


@pytest.fixture
def plan(capsys: Capture) -> Plan:
    """Run `nopad plan` in this process: exit code, the printed object, stderr."""

    def call(*arguments: object) -> tuple[int, dict[str, Any], str]:
        code = run(["plan", "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def lengths_of(texts: list[str], max_length: int = 1024) -> list[int]:
    encoder = TextEncoder(DEFAULT_BUNDLE / "tokenizer.json", max_length)
    return [tokens.used for tokens in encoder.encode(texts)]  # type: ignore[union-attr]


def test_texts_are_counted_with_the_models_tokenizer(plan: Plan, texts: Path) -> None:
    code, row, _ = plan("--data", texts)
    expected = plan_profiles(lengths_of(TEXTS), architecture=open_bundle().manifest.architecture, memory_bytes=2 << 30)
    assert code == 0
    assert {key: row[key] for key in expected.to_json()} == json.loads(json.dumps(expected.to_json()))
    assert (row["texts"], row["cut"], row["rows_failed"], row["model"]) == (4, 0, 0, "the embedded model")


@pytest.mark.parametrize("model", [DEFAULT_BUNDLE, DEFAULT_CHECKPOINT])
def test_a_bundle_and_its_checkpoint_give_the_same_plan(plan: Plan, texts: Path, model: Path) -> None:
    _, embedded, _ = plan("--data", texts, "--max-length", "model")
    code, row, _ = plan("--data", texts, "--model", model, "--max-length", "model")
    assert code == 0 and row["model"] == str(model) and row["max_length"] == 1024
    assert {**row, "model": ""} == {**embedded, "model": ""}


def test_texts_are_counted_with_the_bundles_default_prompt(plan: Plan, texts: Path, tmp_path: Path) -> None:
    """As when serving: `load` puts it before every text."""
    folder = tmp_path / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    manifest = dataclasses.replace(open_bundle(folder).manifest, prompts={"q": "query: "}, default_prompt_name="q")
    write_manifest(folder, manifest)
    code, row, _ = plan("--data", texts, "--model", folder)
    with load(folder, threads=1) as model:
        served = [tokens.used for tokens in model.encode(TEXTS)]  # type: ignore[union-attr]
    assert sum(served) > sum(lengths_of(TEXTS))
    expected = plan_profiles(served, architecture=manifest.architecture, memory_bytes=2 << 30)
    assert code == 0 and {key: row[key] for key in expected.to_json()} == json.loads(json.dumps(expected.to_json()))


def test_a_bundle_for_cpus_is_planned_in_the_blocks_of_its_engines(
    plan: Plan, texts: Path, bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], capsys: Capture
) -> None:
    name = "modernbert-single-mean"
    folder = bundle(name)  # its graph takes a stream of any length, an engine of the same checkpoint does not
    capsys.readouterr()  # of its export
    _, expected, _ = plan("--data", texts, "--model", checkpoint(name), "--max-length", "1000")
    code, row, _ = plan("--data", texts, "--model", folder, "--max-length", "1000")
    assert code == 0 and {**row, "model": ""} == {**expected, "model": ""}
    assert all(size % 64 == 0 for forecast in row["forecasts"] for size in forecast["profile"]["tokens"])


def test_a_checkpoint_without_weights_or_head_can_be_planned(plan: Plan, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(DEFAULT_CHECKPOINT / "tokenizer.json", folder)
    config = json.loads((DEFAULT_CHECKPOINT / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": None, "local_attention": 200}))
    code, row, _ = plan("--data", texts, "--model", folder)
    assert code == 0
    assert all(size % 128 == 0 for forecast in row["forecasts"] for size in forecast["profile"]["tokens"])  # its block


def test_the_file_is_what_export_takes(plan: Plan, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "profiles.json"
    code, row, err = plan("--data", texts, "--output", output)
    assert code == 0 and row["output"] == str(output) and str(output) in err
    profiles = read_profiles(output)
    assert [list(profile.tokens) for profile in profiles] == [
        forecast["profile"]["tokens"] for forecast in row["forecasts"]
    ]
    about = json.loads(output.read_text())["planned"]
    assert (about["source"], about["texts"], about["model"]) == (str(texts), 4, "the embedded model")
    assert plan("--data", texts, "--output", output, "--most", "1")[0] == 0  # our own file is replaced
    assert len(read_profiles(output)) == 1
    assert [path.name for path in tmp_path.iterdir() if "profiles" in path.name] == ["profiles.json"]


def test_another_file_is_not_replaced(plan: Plan, texts: Path, tmp_path: Path) -> None:
    before = texts.read_bytes()
    code, row, err = plan("--data", texts, "--output", texts)
    assert (code, row) == (3, {}) and "holds no profiles, so it is left alone" in err
    assert texts.read_bytes() == before
    code, _, err = plan("--data", texts, "--output", tmp_path / "no" / "p.json")
    assert code == 3 and f"the folder {tmp_path / 'no'} does not exist" in err


def test_bad_rows_are_counted_and_said(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n{"txt": "?"}\n{"text": "  "}\nno json\n{"text": "good"}\n')
    code, row, err = plan("--data", path)
    assert code == 0 and (row["texts"], row["rows_failed"]) == (2, 3)
    assert "3 of 5 rows have no text (line 2: field 'text' is missing" in err
    path.write_text('{"txt": "?"}\n{"txt": "!"}\n')
    code, row, err = plan("--data", path)
    assert (code, row) == (
        3,
        {},
    ) and "has no text to plan for (line 1: field text or sentence or content or review is missing" in err
    path.write_text("")
    assert plan("--data", path)[0] == 3


def test_texts_longer_than_the_longest_are_cut_and_counted(plan: Plan, texts: Path) -> None:
    longest = max(lengths_of(TEXTS))
    code, row, err = plan("--data", texts, "--max-length", 64)
    assert code == 0 and (row["cut"], row["max_length"]) == (2, 64)
    assert "2 texts are longer than 64 tokens and count as cut" in err and longest > 64
    assert "over 64 tokens will need another engine; --max-length model takes all 1024" in err
    texts.write_text(json.dumps({"text": "so so " * 3000}) + "\n")
    code, row, err = plan("--data", texts)
    assert code == 0 and (row["cut"], row["max_length"]) == (1, 1024)


@pytest.mark.parametrize("limit", [1, 3])
def test_limit_and_other_columns(plan: Plan, tmp_path: Path, limit: int) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("label\tphrase\tother\n" + "".join(f"0\t{text}\tmore words\n" for text in TEXTS))
    code, row, _ = plan("--data", path, "--field", "phrase", "--limit", limit)
    assert code == 0 and row["texts"] == limit
    assert plan("--data", path)[0] == 3  # it has no column text
    _, pairs, _ = plan("--data", path, "--field", "phrase", "--second-field", "other", "--limit", limit)
    assert pairs["wide"]["profile"]["tokens"][1] >= row["wide"]["profile"]["tokens"][1]


@pytest.mark.parametrize(
    "content", ["7\n9 2\n\n 300\t1 \n", '{"7": 1, "9": 2, "300": 1}', "9\n7\n9\n300", "\ufeff7\n9 2\n300 1"]
)
def test_histograms(plan: Plan, tmp_path: Path, content: str) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text(content, encoding="utf-8")
    assert read_lengths(str(path)) == Counter({7: 1, 9: 2, 300: 1})
    code, row, _ = plan("--lengths", path)
    expected = plan_profiles([7, 9, 9, 300], architecture=open_bundle().manifest.architecture)
    assert code == 0 and row["cost_ratio"] == expected.cost_ratio and row["texts"] == 4


def test_a_histogram_from_stdin() -> None:
    command = [sys.executable, "-m", "nopad.runtime.cli", "plan", "--lengths", "-", "--json", "--quiet"]
    done = subprocess.run(command, input="5000 3\n20\n", capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    assert (row["texts"], row["cut"], row["max_length"]) == (4, 3, 1024)  # the embedded model's max length
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"7\nten\n", "line 2: 'ten' is not `length` or `length count`"),
        (b"7 1 1\n", "line 1: '7 1 1' is not"),
        (b"7 -1\n", "line 1: '7 -1' is not"),
        (b"7\n\n0 5\n", "line 3: a length is at least 1 token"),
        (b"1.5\n", "line 1: '1.5' is not"),
        (b"9999999999999999999\n", "line 1: "),
        ("\u0663\n".encode(), "line 1: "),  # a digit, but not an ASCII digit
        (b"7 0\n", "has no lengths"),
        (b"", "has no lengths"),
        (b"\xff\xfe7\n", "not UTF-8"),
        (b'{"7": 1,}', "not valid JSON"),
        (b'{"7": "many"}', "the entry '7': '7 many' is not"),
        (b'{"7": 1.5}', "the entry '7'"),
        (b'{"7": true}', "the entry '7'"),
        (b'{"7": null}', "the entry '7'"),
        (b'{"0": 3}', "the entry '0': a length is at least 1 token"),
    ],
)
def test_a_bad_histogram_is_named(plan: Plan, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "lengths.txt"
    path.write_bytes(content)
    with pytest.raises(InputFileError) as error:
        read_lengths(str(path))
    assert message in str(error.value) and str(path) in str(error.value)
    assert plan("--lengths", path)[0] == 3


def test_entries_of_one_length_add_up(tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    path.write_text('{"7": 1, "07": 2, "7": 4}')
    assert read_lengths(str(path)) == Counter({7: 7})
    with pytest.raises(InputFileError, match="cannot read .*missing: No such file"):
        read_lengths(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give --data FILE (texts) or --lengths FILE (token lengths)"),
        (["--data", "a", "--lengths", "b"], 2, "not both"),
        (["--lengths", "{lengths}", "--memory", "plenty"], 2, "'plenty' is not an amount of memory"),
        (["--lengths", "{lengths}", "--memory", "1MiB"], 2, "the memory bound is 0.00 GiB"),
        (["--lengths", "{lengths}", "--max-length", "2000"], 2, "--max-length 2000 is neither"),
        (["--lengths", "{lengths}", "--max-length", "long"], 2, "--max-length long is neither"),
        (["--lengths", "{lengths}", "--most", "0"], 2, "--most"),
        (["--lengths", "nowhere"], 3, "cannot read nowhere"),
        (["--data", "nowhere.jsonl"], 3, "cannot read nowhere.jsonl"),
        (["--lengths", "{lengths}", "--model", "nowhere"], 3, "no bundle at nowhere"),
        (["--lengths", "{lengths}", "--model", "{folder}"], 3, "is not a bundle"),
    ],
)
def test_refusals(plan: Plan, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "lengths").write_text("20\n300\n")
    filled = [argument.format(lengths=tmp_path / "lengths", folder=tmp_path) for argument in arguments]
    found, row, err = plan(*filled)
    assert (found, row) == (code, {}) and message in err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "is a JSON list, expected an object"),
        ("{", "cannot be read"),
        ('{"model_type": "roberta"}', "'roberta' has no packed encoder"),
        ("{config}", "tokenizer.json is missing; save the tokenizer there, or give token lengths with --lengths"),
    ],
)
def test_checkpoints_that_cannot_be_planned(plan: Plan, texts: Path, tmp_path: Path, config: str, message: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    whole = (DEFAULT_CHECKPOINT / "config.json").read_text()
    (folder / "config.json").write_text(whole if config == "{config}" else config)
    code, row, err = plan("--data", texts, "--model", folder)
    assert (code, row) == (3, {}) and message in err


def test_the_table_shows_each_profile_beside_one_wide_one(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "lengths.txt"
    path.write_text("20 900\n1000 3\n")
    assert run(["plan", "--lengths", str(path), "--memory", "200MiB"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "903 texts for the embedded model, 903 of them simulated"
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "wide", "expected"]
    assert "99.7%" in lines[2] and "0.3%" in lines[3]
    assert "of one wide profile's; waste" in lines[-1]
    assert "sizes are opt/max" in err
    assert run(["plan", "--lengths", str(path), "--most", "1", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "one profile is enough" in out and err == ""


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("1.5GB", 1_500_000_000), ("4096", 4096), ("1kb", 1000), ("8 B", 8)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "0", "-1GiB", "nan", "inf", "1TiBB", "1e40", "2 Gi", "1 2GiB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="is not an amount of memory"):
        parse_bytes(text)


def test_the_options_come_from_the_environment_too(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lengths").write_text("20\n300\n")
    monkeypatch.setenv("NOPAD_PLAN_LENGTHS", str(tmp_path / "lengths"))
    monkeypatch.setenv("NOPAD_PLAN_MAX_LENGTH", "model")
    code, row, _ = plan()
    assert code == 0 and (row["texts"], row["max_length"]) == (2, 1024)


def test_real_reviews(plan: Plan, imdb: Path) -> None:
    code, row, _ = plan("--data", imdb / "test.jsonl", "--limit", "1000", "--memory", "96MiB", "--max-length", "model")
    assert code == 0 and row["texts"] == 1000
    assert len(row["forecasts"]) >= 2 and row["cost_ratio"] < 0.9
    assert row["waste"] < row["wide"]["waste"] and row["launches"] < row["wide"]["launches"]
    assert sum(forecast["memory_bytes"] for forecast in row["forecasts"]) <= 96 << 20
