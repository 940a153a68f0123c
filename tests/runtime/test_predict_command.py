"""`nopad predict`: texts and files in, one answer a line out, and every bad line alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.cli import run

NAME = "modernbert-single-mean"
Bundles = Callable[[str], Path]
Answers = list[dict[str, Any]]
PROGRAM = "import sys; from nopad.runtime.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def predict(bundle: Bundles, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Answers, str]]:
    """Run it; exit code, the JSON lines of stdout, stderr."""

    def call(*arguments: object, name: str = NAME) -> tuple[int, Answers, str]:
        path = bundle(name)
        capsys.readouterr()  # what making it printed
        code = run(["predict", str(path), "--json", "--threads", "1", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def process(bundle: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "predict", str(bundle), "--threads", "1", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_texts_give_a_table_or_json(bundle: Bundles, predict: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, answers, err = predict("a dull film", "splendid", "--quiet")
    assert code == 0 and err == ""
    assert [answer["text"] for answer in answers] == ["a dull film", "splendid"]
    assert set(answers[0]) == {"text", "label", "score", "scores", "tokens", "tokens_used", "engine"}
    assert run(["predict", str(bundle(NAME)), "a dull film"]) == 0
    table = capsys.readouterr().out
    assert answers[0]["label"] in table and f"{answers[0]['score']:.4f}" in table and "a dull film" in table


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", '{"text": "a film"}\n\n{"text": "splendid"}\n'),
        ("t.jsonl", '\ufeff{"text": "a film"}\n\n{"text": "splendid"}'),
        ("t.csv", 'n,text\n1,"a film"\n2,splendid\n'),
        ("t.tsv", "n\ttext\n1\ta film\n2\tsplendid\n"),
        ("t.txt", "a film\nsplendid\n"),
        ("t", "a film\nsplendid\n"),
        ("t", '{"text": "a film"}\n{"text": "splendid"}\n'),
    ],
)
def test_every_kind_of_file(name: str, content: str, predict: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    code, answers, _ = predict("--input", tmp_path / name)
    _, wanted, _ = predict("a film", "splendid")
    assert code == 0
    assert [a["label"] for a in answers] == [w["label"] for w in wanted]
    assert [a["score"] for a in answers] == pytest.approx([w["score"] for w in wanted], abs=1e-6)
    numbers = [2, 3] if name.endswith(("csv", "tsv")) else [1, 3] if "jsonl" in name else [1, 2]
    assert [answer["line"] for answer in answers] == numbers


def test_stdin(bundle: Bundles) -> None:
    with process(bundle(NAME), "--input", "-", stdin=subprocess.PIPE) as running:
        out, err = running.communicate('{"text": "a film"}\n{"text": "splendid"}\n')
    assert running.returncode == 0, err
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 2]


BAD_LINES = (
    b'{"text": "a film"}\n'
    b'{"body": "no such field"}\n'
    b'["a list"]\n'
    b'{"text": "cut\n'
    b'{"text": ""}\n'
    b'{"text": "  \\t "}\n'
    b'{"text": 7}\n'
    b'{"text": "caf\xe9"}\n'
    b'{"text": "\\ud800"}\n'
    b'{"text": "splendid"}\n'
)
REASONS = {
    2: "found: body",
    3: "a JSON list",
    4: "not valid JSON",
    5: "empty",
    6: "only spaces",
    7: "is not a text",
    8: "not valid UTF-8",
    9: "surrogate",
}


def test_a_bad_line_fails_alone(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(BAD_LINES)
    code, answers, err = predict("--input", tmp_path / "t.jsonl")
    assert code == 3 and "8 of 10 lines failed" in err
    assert [answer["line"] for answer in answers] == list(range(1, 11))
    for answer in answers:
        if answer["line"] in REASONS:
            assert REASONS[answer["line"]] in answer["error"]
        else:
            assert answer["label"].startswith("class ")


def test_csv_counts_lines_of_the_file(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text\n"two\nlines"\nthird\n""\n', "utf-8")
    code, answers, _ = predict("--input", tmp_path / "t.csv")
    assert code == 3 and [answer["line"] for answer in answers] == [2, 4, 5]
    assert "empty" in answers[2]["error"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--input", "{}/absent.jsonl"], 3, "cannot read"),
        (["--input", "{}/t.csv"], 3, "no column 'text' (it has: n, body)"),
        (["--input", "{}/t.csv", "--field", "body", "text too"], 2, "not both"),
        ([], 2, "either texts or --input"),
        (["x", "--resume"], 2, "--resume needs"),
        (["x", "--top-k", "0"], 2, "top-k"),
        (["x", "--engine", "warp"], 2, "unknown engine 'warp'"),
        (["--input", "{}/t.csv", "--field", "body", "--output", "{}"], 2, "is a folder"),
    ],
)
def test_bad_arguments(arguments: list[str], code: int, words: str, predict: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("n,body\n1,x\n")
    got, answers, err = predict(*(argument.format(tmp_path) for argument in arguments))
    assert got == code and words in err and answers == []
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_missing_bundle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(tmp_path / "absent"), "a film"]) == 3
    assert "absent: the folder does not exist" in capsys.readouterr().err


def test_long_texts_are_said_to_be_cut_or_refused(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("short\n" + "again and " * 2000 + "\n")
    code, answers, err = predict("--input", tmp_path / "t.txt")
    assert code == 0 and answers[1]["tokens_used"] == 1024 < answers[1]["tokens"]
    assert "1 texts were longer than 1024 tokens" in err
    code, answers, _ = predict("--input", tmp_path / "t.txt", "--truncation", "error")
    assert code == 3 and "label" in answers[0] and "1024" in answers[1]["error"]


def test_pairs_and_other_tasks(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a query", "passage": "a passage"}\n{"text": "alone"}\n')
    code, answers, _ = predict("--input", tmp_path / "t.jsonl", "--second-field", "passage", name="modernbert-rerank")
    assert code == 3 and 0 <= answers[0]["score"] <= 1 and "'passage' is missing" in answers[1]["error"]
    _, (tagged,), _ = predict("a film", name="modernbert-token")
    assert set(tagged) >= {"text", "entities", "labels", "tokens", "tokens_used", "engine"}
    assert all(set(entity) == {"label", "score", "start", "end", "text"} for entity in tagged["entities"])
    _, (embedded,), _ = predict("a film", name="modernbert-embed-mean-unit")
    assert sum(x * x for x in embedded["vector"]) == pytest.approx(1, abs=1e-5)
    _, (top,), _ = predict("a film", "--top-k", "2", name="modernbert-multi-cls")
    assert len(top["scores"]) == 2


def test_options_from_the_environment(predict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOPAD_PREDICT_TOP_K", "1")
    _, (answer,), _ = predict("a film")
    assert list(answer["scores"]) == [answer["label"]]


def test_the_output_appears_at_the_end_and_replaces_the_old(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a film\n\nsplendid\n")
    output = tmp_path / "answers.jsonl"
    output.write_text("old")
    code, printed, _ = predict("--input", tmp_path / "t.txt", "--output", output)
    assert code == 3 and printed == []  # the empty line
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3] and "error" in rows[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "t.txt"]


def test_an_interrupted_file_goes_on_where_it_stopped(bundle: Bundles, tmp_path: Path) -> None:
    source, output, whole = tmp_path / "t.jsonl", tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    partial = tmp_path / "answers.jsonl.partial"
    lines = [{"text": f"film number {i} " + "and more " * (i % 40)} if i % 100 else {"x": 1} for i in range(9000)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with process(bundle(NAME), "--input", source, "--output", output) as running:
        while running.poll() is None and not (partial.exists() and partial.stat().st_size > 100_000):
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "--resume" in err and "Traceback" not in err and not output.exists()
    kept = partial.read_bytes()
    assert 0 < kept.count(b"\n") < len(lines)
    partial.write_bytes(kept[:-10])  # as if the machine had stopped in the middle of a line
    for out, extra in ((output, ["--resume"]), (whole, [])):
        with process(bundle(NAME), "--input", source, "--output", out, *extra) as running:
            _, err = running.communicate(timeout=300)
        assert running.returncode == 3, err
    assert not partial.exists()
    resumed, straight = ([json.loads(line) for line in p.read_text().splitlines()] for p in (output, whole))
    assert [row["line"] for row in resumed] == list(range(1, len(lines) + 1))
    for one, other in zip(resumed, straight, strict=True):
        assert one.get("label") == other.get("label") and one.get("error") == other.get("error")
        assert one.get("score", 0) == pytest.approx(other.get("score", 0), abs=1e-5)


def test_a_full_disk_is_said_and_can_be_resumed(bundle: Bundles, tmp_path: Path) -> None:
    source, output = tmp_path / "t.txt", tmp_path / "answers.jsonl"
    source.write_text("a film\n" * 3000)
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)); "
    )
    command = [sys.executable, "-c", limit + PROGRAM, "predict", str(bundle(NAME)), "--input", str(source)]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert "disk is full" in done.stderr and "Traceback" not in done.stderr and not output.exists()
    assert run(["predict", str(bundle(NAME)), "--input", str(source), "--output", str(output), "--resume"]) == 0
    assert [json.loads(line)["line"] for line in output.read_text().splitlines()] == list(range(1, 3001))


def test_a_reader_that_leaves_is_no_error(bundle: Bundles, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a film\n" * 4000)
    with process(bundle(NAME), "--input", tmp_path / "t.txt") as running:
        assert running.stdout is not None and running.stderr is not None
        assert json.loads(running.stdout.readline())["line"] == 1
        running.stdout.close()
        err = running.stderr.read()
        assert running.wait(timeout=60) == 0 and "Traceback" not in err and "Exception" not in err
