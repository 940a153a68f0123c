"""`nopad predict` on the command line: input and answers. Its output file is tested in `test_predict_output.py`."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from predict_command import NOPAD, command

from nopad.runtime import predictor
from nopad.runtime.batching import WINDOW
from nopad.runtime.bundle import open_bundle, write_manifest
from nopad.runtime.cli import run
from nopad.runtime.data.records import Row
from nopad.runtime.offline.answers import answers
from nopad.runtime.predictor import load

NAME = "modernbert-single-mean"
KEYS = {"label", "score", "scores", "tokens", "tokens_used", "engine"}
Bundles = Callable[[str], Path]
Predict = Callable[..., tuple[int, list[dict[str, Any]], str]]


def test_texts_become_a_table_that_shows_them_as_they_are(bundle: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    texts, folder = ["a :bug: film", "[red]splendid[/red]", "word " * 30], str(bundle(NAME))
    capsys.readouterr()
    assert run(["predict", folder, *texts, "--quiet"]) == 0
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head.split() == ["answer", "score", "text"] and err == ""
    assert len(rows) == 3 and texts[0] in rows[0] and texts[1] in rows[1]
    assert rows[2].endswith("...") and rows[2].startswith("class ")


def test_json_rows_hold_the_text_and_the_documented_keys(predict: Predict) -> None:
    code, rows, _ = predict("a dull film", "splendid")
    assert code == 0 and [row["text"] for row in rows] == ["a dull film", "splendid"]
    for row in rows:
        assert set(row) == {"text", *KEYS} and row["engine"] == "onnx-cpu"
        assert row["score"] == max(row["scores"].values()) == row["scores"][row["label"]]
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("t.jsonl", '{"text": "a film"}\n\n{"text": "splendid"}\n', [1, 3]),
        ("t.ndjson", '\ufeff{"text": "a film"}\r\n{"text": "splendid"}', [1, 2]),
        ("t.csv", '\ufefftext,n\n"a film",1\n\n"splendid",2\n', [2, 4]),
        ("t.tsv", "n\ttext\n1\ta film\n2\tsplendid\n", [2, 3]),
        ("t.txt", "\ufeffa film\nsplendid", [1, 2]),
    ],
)
def test_files_are_read_by_their_ending(
    name: str, content: str, lines: list[int], predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    code, rows, err = predict("--input", tmp_path / name)
    _, wanted, _ = predict("a film", "splendid")
    assert (code, err, [row["line"] for row in rows]) == (0, "", lines)
    for row, want in zip(rows, wanted, strict=True):
        assert set(row) == {"line", *KEYS} and row["tokens"] == want["tokens"]
        assert row["scores"] == pytest.approx(want["scores"], abs=1e-6)


@pytest.mark.parametrize("content", [b'{"text": "a film"}\n{"text": "caf\xe9"}\n', b"a film\ncaf\xe9\n"])
def test_stdin_holds_objects_or_plain_lines(content: bytes, bundle: Bundles) -> None:
    done = subprocess.run(command(bundle(NAME), "--input", "-"), input=content, capture_output=True, timeout=120)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3 and [row["line"] for row in rows] == [1, 2] and rows[0]["tokens"] == 6, done.stderr
    assert "not valid UTF-8" in rows[1]["error"]


BAD = {
    2: (b'{"body": "x"}', "'text' is missing (found: body)"),
    3: (b'["a list"]', "a JSON list, expected an object"),
    4: (b'{"text": "cut', "not valid JSON"),
    5: (b'{"text": ""}', "empty"),
    6: (b'{"text": " \\n\\t "}', "only spaces"),
    7: (b'{"text": null}', "is not a text"),
    8: (b'{"text": "caf\xe9"}', "not valid UTF-8"),
    9: (b'{"\\ud800": 1}', "(found: \ud800)"),
    10: (b'{"text": ' + b"[" * 100_000, "not valid JSON"),
    11: (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize(
    ("name", "content", "lines", "bad"),
    [
        ("t.tsv", b'n\ttext\n1\t"a film\n2\t"a "dull" film"\n', [2, 3], {}),  # no quotes in TSV: a line is a row
        ("t.csv", b'text\n"a film\ndull\nsplendid\n', [2, 3, 4], {2: "not valid CSV"}),  # not one long text
        ("t.csv", b'text\n"a "dull" film"\nsplendid\n', [2, 3], {2: "close its quotes"}),
        ("-", b'\n \n{"text": "a film"}\n\n{"text": "splendid"}\n', [3, 5], {}),
        ("-", b"\n\na film\n", [1, 2, 3], {1: "empty", 2: "empty"}),
        ("t.json", b'[{"text": "a film"},\n 7, {"text": "splendid"}]', [1, 2, 3], {2: "the item is a JSON int"}),
        ("t.json", b'{"text": "a film"}\n{"text": "splendid"}\n', [1, 2], {}),
    ],
)
def test_rows_are_never_merged_or_taken_for_something_else(
    name: str, content: bytes, lines: list[int], bad: dict[int, str], bundle: Bundles, tmp_path: Path
) -> None:
    (tmp_path / "t").write_bytes(content)
    source = "-" if name == "-" else (tmp_path / "t").rename(tmp_path / name)
    arguments = command(bundle(NAME), "--input", source)
    done = subprocess.run(arguments, input=content, capture_output=True, timeout=120)
    rows = {row["line"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == lines and done.returncode == (3 if bad else 0)
    assert {line for line, row in rows.items() if "error" in row} == set(bad)
    assert all(reason in rows[line]["error"] for line, reason in bad.items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1\x15\x04", "cannot read {}: Parquet"),
        (b"\x1f\x8b\x08\0", "cannot read {}: Compressed file ended"),
        (b"PK\x03\x04", "cannot read {}: File is not a zip file"),
        ("text\n".encode("utf-16"), "{} is UTF-16, not UTF-8: read it with --encoding utf-16"),
        ("text\n".encode("utf-16-le"), "{} is UTF-16-LE, not UTF-8: read it with --encoding utf-16-le"),
    ],
)
def test_damaged_files_and_other_encodings_are_refused_whole(
    content: bytes, words: str, predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / "t").write_bytes(content)
    code, rows, err = predict("--input", tmp_path / "t")
    assert (code, rows) == (3, []) and words.format(tmp_path / "t") in err


def test_many_bad_lines_do_not_wait_for_each_other() -> None:
    read: list[int] = []

    def rows() -> Iterator[Row]:
        for n in range(1, 10_000):
            read.append(n)
            yield Row(line=n, error="bad")

    with load() as model:
        assert next(answers(model, rows(), {})) == {"line": 1, "error": "bad"} and len(read) == WINDOW


def test_a_terminal_that_knows_no_unicode_and_a_closed_stdin(bundle: Bundles) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    table = [*NOPAD, "predict", str(bundle(NAME)), "na\u00efve \U0001f3ac"]
    done = subprocess.run(table, capture_output=True, text=True, env=ascii_only, timeout=120)
    assert done.returncode == 0 and "na\\xefve" in done.stdout, done.stderr
    done = subprocess.run([*table, "--json"], capture_output=True, text=True, env=ascii_only, timeout=120)
    assert json.loads(done.stdout)["text"] == "na\u00efve \U0001f3ac"
    closed = f"{shlex.join(command(bundle(NAME), '--input', '-'))} <&-"
    done = subprocess.run(["bash", "-c", closed], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "stdin" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("to_file", [True, False])
def test_every_kind_of_bad_line_fails_alone(to_file: bool, predict: Predict, tmp_path: Path) -> None:
    lines = [b'{"text": "a film"}', *(line for line, _ in BAD.values()), b'{"text": "splendid"}']
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    output = tmp_path / "answers.jsonl"
    code, rows, err = predict("--input", tmp_path / "t.jsonl", *(["--output", output] if to_file else []))
    if to_file:
        rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert code == 3 and "10 of 12 lines failed" in err
    assert [row["line"] for row in rows] == list(range(1, 13))
    assert set(rows[0]) == set(rows[-1]) == {"line", *KEYS}
    for number, (_, reason) in BAD.items():
        assert set(rows[number - 1]) == {"line", "error"} and reason in rows[number - 1]["error"]


def test_answers_come_in_the_order_of_the_lines(predict: Predict, tmp_path: Path) -> None:
    words = ["a film " * (1 + 37 * i % 50) + str(i) for i in range(WINDOW + 100)]
    (tmp_path / "t.txt").write_text("\n".join(words))
    code, rows, _ = predict("--input", tmp_path / "t.txt", "--token-budget", "300")
    assert code == 0 and [row["line"] for row in rows] == list(range(1, len(words) + 1))
    few = [0, 1, 49, 300, WINDOW - 1, WINDOW, WINDOW + 99]
    _, alone, _ = predict(*(words[i] for i in few))
    for i, want in zip(few, alone, strict=True):
        assert rows[i]["tokens"] == want["tokens"]
        assert rows[i]["scores"] == pytest.approx(want["scores"], abs=1e-5)


def test_csv_lines_are_counted_and_stray_commas_and_missing_columns_named(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,n\n"two\nlines",1\n\nthird,2\ngood, but long,3\n"",4\nlast,5,\n')
    code, rows, _ = predict("--input", tmp_path / "t.csv")
    assert code == 3 and [row["line"] for row in rows] == [2, 5, 6, 7, 8]
    assert ["error" in row for row in rows] == [False, False, True, True, False]
    assert "3 cells, the header 2" in rows[2]["error"] and "empty" in rows[3]["error"]
    (tmp_path / "t.csv").write_text("n,phrase\n1,a film\n")
    code, rows, err = predict("--input", tmp_path / "t.csv")
    assert (code, rows) == (
        3,
        [],
    ) and "no column text or sentence or content or review (it has: n, phrase); name one with --field" in err
    assert predict("--input", tmp_path / "t.csv", "--field", "phrase")[1][0]["tokens"] == 6


def test_pairs_go_to_a_reranker(predict: Predict, tmp_path: Path) -> None:
    pairs = [{"query": "a film", "passage": "splendid"}, {"query": "a film"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    options = ["--field", "query", "--second-field", "passage"]
    code, rows, _ = predict("--input", tmp_path / "t.jsonl", *options, name="modernbert-rerank")
    assert code == 3 and set(rows[0]) == {"line", *KEYS} and 0 < rows[0]["score"] < 1
    assert "'passage' is missing (found: query)" in rows[1]["error"]
    _, (single,), _ = predict("a film", name="modernbert-rerank")
    assert rows[0]["tokens"] > single["tokens"]


def test_token_labels_and_entities_have_their_own_keys(predict: Predict) -> None:
    _, (tagged,), _ = predict("a splendid film", name="modernbert-token")
    assert set(tagged) == {"text", "entities", "labels", "tokens", "tokens_used", "engine"}
    assert len(tagged["labels"]) == tagged["tokens"] - 2 and tagged["entities"]
    for entity in tagged["entities"]:
        assert set(entity) == {"label", "score", "start", "end", "text"}
        assert entity["text"] == "a splendid film"[entity["start"] : entity["end"]]


def test_embeddings_have_their_own_keys(predict: Predict) -> None:
    _, (embedded,), _ = predict("a film", name="modernbert-embed-mean-unit")
    assert set(embedded) == {"text", "vector", "tokens", "tokens_used", "engine"} and len(embedded["vector"]) == 64
    assert sum(x * x for x in embedded["vector"]) == pytest.approx(1, abs=1e-5)


def test_embeddings_of_tokens_have_their_own_keys(predict: Predict) -> None:
    _, (embedded,), _ = predict("a film", name="modernbert-tokens")
    assert set(embedded) == {"text", "tokens_text", "vectors", "tokens", "tokens_used", "engine"}
    assert embedded["tokens_text"][0] == "[CLS]" and len(embedded["tokens_text"]) == embedded["tokens"]
    assert [len(vector) for vector in embedded["vectors"]] == [64] * embedded["tokens"]


def test_a_long_text_is_cut_and_counted_or_refused(predict: Predict) -> None:
    long = "again and " * 1500
    code, (row,), err = predict(long)
    assert code == 0 and row["tokens_used"] == 1024 < row["tokens"] and f"1024 of {row['tokens']} tokens" in err
    code, (short, refused), _ = predict("short", long, "--truncation", "error")
    assert code == 3 and "label" in short and set(refused) == {"text", "error"} and "1024" in refused["error"]


def test_a_long_text_is_read_in_windows(predict: Predict, tmp_path: Path) -> None:
    long = "again and " * 1500
    code, (row, short), err = predict(long, "short", "--truncation", "window", "--stride", "64", "--merge", "max")
    assert code == 0 and row["tokens_used"] == row["tokens"] > 1024 and row["windows"] > 1 and "tokens of" not in err
    assert "windows" not in short
    (tmp_path / "t.txt").write_text(f"{long}\nshort\n")
    options = (
        "--input",
        tmp_path / "t.txt",
        "--truncation",
        "window",
        "--stride",
        "64",
        "--output",
        tmp_path / "t.csv",
    )
    code, _, err = predict(*options)
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert code == 0 and rows[0].split(",")[-3:-1] == ["windows", "engine"] and "cut" not in err
    assert [line.split(",")[-3] for line in rows[1:]] == [str(row["windows"]), "1"]
    code, _, err = predict("short", "--stride", "3")
    assert code == 2 and "ask for truncation='window'" in err
    code, _, err = predict("short", "--entities", "max")
    assert code == 2 and "are for token-classification" in err


def test_entities_by_strategy(predict: Predict) -> None:
    text = "Alice works in Paris"
    for strategy in ("none", "simple", "first", "average", "max"):
        _, (row,), _ = predict(text, "--entities", strategy, "--ignore-labels", "", name="modernbert-token")
        assert row["entities"] and all(text[each["start"] : each["end"]] == each["text"] for each in row["entities"])
        assert strategy != "none" or [each["label"] for each in row["entities"]] == row["labels"]
    label = row["entities"][0]["label"]
    _, (fewer,), _ = predict(text, "--ignore-labels", f"O, {label}", name="modernbert-token")
    assert label not in {each["label"] for each in fewer["entities"]}


def test_options_reach_the_model_from_the_line_and_the_environment(
    predict: Predict, bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    opened: dict[str, Any] = {}
    real = predictor.load
    monkeypatch.setattr(predictor, "load", lambda path, **options: opened.update(options) or real(path, **options))
    _, (row,), _ = predict("a film", "--top-k", "2", "--token-budget", "99")
    assert len(row["scores"]) == 2 and (opened["threads"], opened["token_budget"]) == (1, 99)
    (tmp_path / "t.txt").write_text("a film\nsplendid\n")
    for name, value in {"TOP_K": "1", "TRUNCATION": "error", "INPUT": str(tmp_path / "t.txt")}.items():
        monkeypatch.setenv(f"NOPAD_PREDICT_{name}", value)
    assert run(["predict", str(bundle(NAME))]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row["scores"]) for row in rows] == [1, 1] and opened["truncation"] == "error"
    monkeypatch.delenv("NOPAD_PREDICT_INPUT")
    monkeypatch.setenv("NOPAD_PREDICT_JSON", "1")
    assert run(["predict", str(bundle(NAME)), "a film"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "a film"


def test_an_unverified_bundle_opens_only_when_asked(bundle: Bundles, tmp_path: Path, capsys: Any) -> None:
    own = Path(shutil.copytree(bundle(NAME), tmp_path / "bundle"))
    manifest = open_bundle(own).manifest
    ungated = tuple(dataclasses.replace(artifact, parity={}) for artifact in manifest.artifacts)
    write_manifest(own, dataclasses.replace(manifest, artifacts=ungated))
    assert run(["predict", str(own), "a film"]) == 3
    assert "--allow-unverified" in capsys.readouterr().err
    assert run(["predict", str(own), "a film", "--allow-unverified", "--quiet"]) == 0
    assert "class " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a film", "--input", "{}/t.txt"], 2, "not both"),
        ([], 2, "either texts or --input"),
        (["--input", "{}/t.txt", "--resume"], 2, "--resume needs"),
        (["--input", "-", "--output", "{}/o", "--resume"], 2, "--resume needs"),
        (["a film", "--output", "{}/o"], 2, "--output needs --input"),
        (["--input", "{}/absent.jsonl", "--output", "{}/o"], 3, "cannot read {}/absent.jsonl: No such file"),
        (["--input", "{}/absent.jsonl"], 3, "cannot read {}/absent.jsonl: No such file"),
        (["--input", "{}"], 3, "{} holds no data: expected one kind"),
        (["--input", "{}/t.txt", "--output", "{}"], 2, "is a folder; name a file"),
        (["--input", "{}/t.txt", "--output", "{}/t.txt"], 2, "would overwrite the --input file"),
        (["--input", "{}/t.txt", "--output", "{}/pipe"], 2, "is a device or pipe; name a file"),
        (["--input", "{}/t.txt", "--output", "{}/absent/o"], 3, "{}/absent/o.partial"),
        (["a film", "--threads", "0"], 2, "--threads"),
        (["a film", "--truncation", "silent"], 2, "'truncate', 'error'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_writes_nothing(
    arguments: list[str], code: int, words: str, predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("a film\n")
    os.mkfifo(tmp_path / "pipe")
    got, rows, err = predict(*(argument.format(tmp_path) for argument in arguments))
    assert (got, rows) == (code, []) and words.format(tmp_path) in err
    assert {path.name for path in tmp_path.iterdir()} == {"t.txt", "pipe"}


def test_a_first_argument_is_a_folder_a_mistake_or_a_text(
    bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("nopad.runtime.bundle.DEFAULT_BUNDLE", bundle(NAME))
    assert run(["predict", str(tmp_path / "absent"), "a film"]) == 3
    assert f"no bundle at {tmp_path}/absent" in capsys.readouterr().err
    assert run(["predict", "bundel", "a film"]) == 3  # not answered by the embedded model
    assert "no bundle at bundel" in capsys.readouterr().err
    assert run(["predict", "splendid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "splendid"
    assert run(["predict", str(bundle(NAME) / "manifest.json"), "a film"]) == 3
    assert "manifest.json is a file: a bundle is a folder" in capsys.readouterr().err
    assert run(["predict", str(tmp_path), "a film"]) == 3
    assert "it has no manifest.json" in capsys.readouterr().err
    assert run(["predict", "longer than any file name " * 20, "\udce9", "--json"]) == 3
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["label"].startswith("class ") and second["text"] == "\udce9" and "surrogate" in second["error"]


def test_quiet_says_nothing_but_what_failed(predict: Predict, bundle: Bundles, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "t.txt").write_text("a film\n" + "again and " * 1500)
    for output in ([], ["--output", tmp_path / "o"], ["--output", tmp_path / "o", "--resume"]):
        code, _, err = predict("--input", tmp_path / "t.txt", "--quiet", *output)
        assert (code, err) == (0, "")
    assert run(["predict", str(bundle(NAME)), "a film", " ", "--quiet"]) == 3
    assert "' ': the text is empty" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_said_once(bundle: Bundles) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(bundle(NAME), "a film"), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4 and done.stderr.count("\n") == 1 and "disk is full" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(bundle: Bundles, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a film\n" * 3000)
    pipe = f"set -o pipefail; {shlex.join(command(bundle(NAME), '--input', tmp_path / 't.txt'))} | head -1"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["line"] == 1
