"""Bad recipes: what is refused, in which words, with the line, before anything runs. And what is wired by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.cli import run

Run = Callable[..., tuple[int, str, list[dict[str, Any]]]]


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A dry run of this recipe: exit code, stderr, and the outcomes."""
    (tmp_path / "rows.jsonl").write_text('{"text": "splendid", "label": 1}\n')

    def call(text: str | bytes, *arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
        (tmp_path / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        code = run(["run", str(tmp_path / "r.yaml"), "--dry-run", "--json", *arguments])
        out, said = capsys.readouterr()
        assert not (tmp_path / "r.run").exists()
        return code, said, [json.loads(line) for line in out.splitlines()]

    return call


TRAIN = "train:\n  model: m\n  train: rows.jsonl\n"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 2, "has no steps"),
        ("# nothing\n---\n", 2, "has no steps"),
        ("set:\n  a: b\n", 2, "has no steps"),
        ("- train\n", 2, "line 1: a recipe is a mapping of steps"),
        ("train: [1]\n", 2, "line 1: train is a mapping of options"),
        ("train:\n\tmodel: m\n", 2, "line 2: this is not YAML"),
        ("train:\n  model: 'm\n", 2, "this is not YAML"),
        ("train: {}\n---\nplan: {}\n", 2, "line 2: this is not YAML"),
        (b"train:\n  model: \xff\n", 3, "is not UTF-8 text"),
        ("train: \x00\n", 2, "is not YAML"),
        ("[" * 600, 2, "r.yaml"),
        ("train: !!python/object/apply:os.getcwd []\n", 2, "line 1: train is a mapping of options"),
        ("? [a]\n: b\n", 2, "line 1: a recipe is a mapping of steps by their names"),
        (TRAIN + "train:\n  model: n\n", 2, "line 4: 'train' stands in line 1 already"),
        (TRAIN + "  model: n\n", 2, "line 4: 'model' stands in line 2 already"),
        ("trian: {}\n", 2, "line 1: no step is called 'trian'; the nearest is 'train'"),
        ("serve: {}\n", 2, "line 1: no step is called 'serve'"),
        ("run: {}\n", 2, "line 1: no step is called 'run'"),
        ("export two words: {}\n", 2, "line 1: 'export two words' names no step"),
        (TRAIN + "  epoch: 3\n", 2, "line 4: nopad train has no option 'epoch'; the nearest is 'epochs'"),
        (TRAIN + "  epochs: many\n", 2, "line 4: train.epochs: 'many' is not a valid float"),
        (TRAIN + "  eval-fraction: 1.5\n", 2, "line 4: train.eval-fraction: 1.5 is not in the range"),
        (TRAIN + "  problem-type: poem\n", 2, "line 4: train.problem-type: 'poem' is not one of"),
        (TRAIN + "  bf16: maybe\n", 2, "line 4: train.bf16: 'maybe' is not a valid boolean"),
        (TRAIN + "  labels:\n", 2, "line 4: train.labels has no value"),
        (TRAIN + "  labels: []\n", 2, "line 4: train.labels has no value"),
        (TRAIN + '  tokenizer: "a\\0b"\n', 2, "line 4: train.tokenizer holds a zero character"),
        (TRAIN + "  labels: [a, b]\n", 2, "line 4: train.labels is one value"),
        (TRAIN + "  labels: {a: b}\n", 2, "line 4: train.labels is a text or a number"),
        (TRAIN + "  resume: true\n", 2, "line 4: train.resume: nopad run gives --resume itself"),
        (TRAIN + "  json: true\n", 2, "line 4: train.json: nopad run gives --json itself"),
        ("train:\n  model: m\n", 2, "line 1: train needs 'train'"),
        ("train:\n  from-scratch: none.json\n  train: x\n", 2, "line 2: train.from-scratch: Path"),
        ("export:\n  target: cpu\n", 2, "line 1: export needs a checkpoint, and no step above makes one"),
        (TRAIN + "export:\n  target: cpu,gpu\n", 2, "line 5: export.target: 'gpu' is not one of"),
        (TRAIN + "calibrate:\n  data: rows.jsonl\n", 2, "line 4: calibrate needs a bundle, and no step"),
        ("calibrate:\n  bundle: b\n  data: rows.jsonl\n", 2, "a recipe changes only what it has made"),
        (TRAIN + "calibrate:\n  bundle: $train\n  data: rows.jsonl\n", 2, "a recipe changes only what it has made"),
        (TRAIN + "export:\nexport gpu:\nparity:\n", 2, "say which, as `bundle:`, of ${export}, ${export gpu}"),
        (TRAIN + "export:\ncalibrate:\n  data: row.jsonl\n", 3, "line 6: calibrate.data: there is no file"),
        ("plan:\n  data: '-'\n", 2, "line 2: plan.data: a recipe reads no stdin"),
        ("plan:\n  data: $rows\n", 2, "line 2: plan: $rows is no value and no earlier step; there is none"),
        ("set:\n  row: rows.jsonl\nplan:\n  data: $rows\n", 2, "line 4: plan: $rows is no value and no earlier step; "
         "the nearest is 'row'"),
        ("export:\n  checkpoint: $train\n" + TRAIN, 2, "line 2: export: $train is no value and no earlier step"),
        ("set:\n  a: $b\n" + TRAIN, 2, "line 2: set.a refers to $b, which is not set above it"),
        ("set:\n  a b: c\n" + TRAIN, 2, "line 2: set.a b: a name has only letters"),
        ("set:\n  train: c\n" + TRAIN, 2, "'train' is also the name of a value in `set`"),
        ("plan:\n  data: rows.jsonl\nplan b:\n  data: rows.jsonl\n  output: r.run/plan.json\n", 2,
         "line 3: plan b would write where plan does"),
    ],
)  # fmt: skip
def test_bad_recipes(text: str | bytes, code: int, said: str, look: Run) -> None:
    got, message, outcomes = look(text)
    assert said in message and "r.yaml" in message
    assert got == code and not outcomes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "modle=x"], "--set modle: "),
        (["--set", "model"], "'model' is not NAME=VALUE."),
        (["--force", "exprot"], "--force exprot: the recipe has no such step; the nearest is 'export'"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, look: Run) -> None:
    code, message, _ = look(f"set:\n  model: m\n{TRAIN}export:\n", *arguments)
    assert code == 2 and said in message


def test_a_recipe_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tmp_path / "no.yaml")]) == 3
    assert "cannot read the recipe" in capsys.readouterr().err


def test_values_are_as_they_are_typed_on_the_command_line(tmp_path: Path) -> None:
    from nopad.pipeline.recipe import read_recipe
    from nopad.pipeline.steps import compile_steps

    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "r.yaml").write_text(
        """
set: {data: rows.jsonl, root: "$data", size: 128}
train: &train
  model: m
  train: $root
  eval: rows$$.jsonl
  learning_rate: 5e-5
  labels: no,yes
  bf16: no
  max-length: $size
train b:
  <<: *train
  epochs: 1
export:
  checkpoint: $train
  target: cpu
  thorough: true
  allow-pickle: false
parity:
  reference: ${train b}
bench:
  reference: $train
  workload: [1x8, 2x8]
analyze:
  other: other
  data: rows.jsonl
"""
    )
    steps = compile_steps(read_recipe(tmp_path / "r.yaml", {}), tmp_path / "run")
    outputs = {step.name: f"/{step.name}" for step in steps}
    lines = {step.name: step.arguments(outputs) for step in steps}
    common = ["--model=m", "--train=rows.jsonl", "--eval=rows$.jsonl", "--learning-rate=5e-5", "--labels=no,yes"]
    common += ["--no-bf16", "--max-length=128"]
    assert lines["train"] == ["train", *common, f"--output={tmp_path}/run/train"]
    assert set(lines["train b"]) == {"train", *common, "--epochs=1", f"--output={tmp_path}/run/train-b"}
    assert lines["export"] == [
        "export",
        "--target=cpu",
        "--thorough",
        f"--output={tmp_path}/run/export",
        "--",
        "/train",
    ]
    assert lines["parity"] == ["parity", "--reference=/train b", "--", "/export"]
    assert lines["bench"][1:4] == ["--reference=/train", "--workload=1x8", "--workload=2x8"]
    page = f"--output={tmp_path}/run/analyze.html"
    assert lines["analyze"] == ["analyze", "--data=rows.jsonl", page, "--", "/export", "other"]
    assert steps[3].changes == "export" and steps[3].reads == ("train b", "export")
    assert steps[0].files == {"rows.jsonl": tmp_path / "rows.jsonl"}


def test_all_files_that_are_read_count_however_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nopad.pipeline.recipe import read_recipe
    from nopad.pipeline.steps import compile_steps

    names = ["part-1.jsonl", "part-2.jsonl", "eval-1.jsonl", "eval-2.jsonl", "exact[1].jsonl"]
    for name in names:
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "r.yaml").write_text(
        "train:\n  model: m\n  train: [part-*.jsonl, 'exact[1].jsonl']\nexport:\n  triton: models\n"
    )
    monkeypatch.setenv("NOPAD_TRAIN_EVAL", "eval-1.jsonl:eval-2.jsonl")
    train, export = compile_steps(read_recipe(tmp_path / "r.yaml", {}), tmp_path / "run")
    assert train.files == {name: tmp_path / name for name in names}
    assert export.files == {}  # which writes into models


def test_an_option_may_be_longer_than_a_file_name(look: Run) -> None:
    labels = ",".join(f"card_payment_fee_charged_{number}" for number in range(77))
    assert look(f"{TRAIN}  labels: {labels}\n")[0] == 0
    assert look(f"set:\n  names: a,b\n{TRAIN}  labels: $names\n", "--set", f"names={labels}")[0] == 0


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_a_library_that_a_target_needs_is_missed_before_anything_runs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nopad.export.targets.importable", lambda module: module != "openvino")
    (tmp_path / "rows.jsonl").write_text('{"text": "splendid", "label": 1}\n')
    path = tmp_path / "r.yaml"
    path.write_text(TRAIN + "export:\n  target: $targets\nset:\n  targets: cpu,openvino\n")
    assert run(["run", str(path), *arguments]) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "step export (line 4 of the recipe): --target openvino needs OpenVINO: pip install 'nopad[openvino]'" in said
    assert not (tmp_path / "r.run" / "train").exists()
    assert run(["run", str(path), "--set", "targets=cpu", "--dry-run"]) == 0
    path.write_text(TRAIN + "export:\n")
    assert run(["run", str(path), "--dry-run"]) == 0


def test_a_target_that_is_missed_counts_for_a_step_that_will_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the step is done: with other options, or from a checkpoint that will be another."""
    from nopad.pipeline.digests import digest_of
    from nopad.pipeline.freshness import parts_of
    from nopad.pipeline.recipe import read_recipe
    from nopad.pipeline.record import Book, Output, Record, write_book
    from nopad.pipeline.steps import compile_steps

    monkeypatch.setattr("nopad.export.targets.importable", lambda module: module != "openvino")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    path, folder = tmp_path / "r.yaml", tmp_path / "r.run"
    path.write_text(f"set:\n  targets: openvino\n{TRAIN}export:\n  target: $targets\n")
    steps, book = compile_steps(read_recipe(path, {}), folder), Book()
    for step in steps:
        assert step.output is not None
        step.output.mkdir(parents=True)
        made = digest_of(step.output)
        record = Record(parts=parts_of(step, steps, book, digest_of), state="done", started="", exit_code=0)
        output = Output(made=made, now=made)
        book = Book(records={**book.records, step.name: record}, outputs={**book.outputs, step.name: output})
    write_book(folder, book)
    assert run(["run", str(path), "--dry-run"]) == 0
    assert run(["run", str(path), "--dry-run", "--set", "targets=cpu,openvino"]) == 4
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    assert run(["run", str(path), "--dry-run"]) == 4
    assert "--target openvino needs OpenVINO" in " ".join(capsys.readouterr().err.split())
