"""`nopad train` when something is wrong: exit codes, messages, and what is left on the disk."""

import json
import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import sentences, weights, write_jsonl

from nopad.runtime.atomic import locked
from nopad.runtime.cli import run
from nopad.training.packed_trainer import PackedTrainer

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def train(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run the command for one epoch in tmp_path; returns its exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", sentences(40))

    def call(*arguments: str, model: tuple[str, ...] = ("--from-scratch", str(scratch))) -> tuple[int, str]:
        rest = ["--output", "out", "--epochs", "1", "--max-length", "64", "--threads", "1"]
        code = run(["train", "--train", "rows.jsonl", *model, *rest, *arguments])
        return code, capsys.readouterr().err

    return call


def test_a_pair_alone_in_its_batch_is_refused(train: Command) -> None:
    rows = sentences(8)
    write_jsonl(Path("rows.jsonl"), [{"anchor": a["text"], "positive": b["text"]} for a, b in pairwise(rows)])
    code, said = train("--task", "embeddings", "--batch-size", "1", "--gradient-accumulation", "8")
    assert code == 2 and "so nothing would be learned" in said and left() == set()
    with_negatives = [{"anchor": a["text"], "positive": b["text"], "negative": "a bad film"} for a, b in pairwise(rows)]
    write_jsonl(Path("rows.jsonl"), with_negatives)
    assert train("--task", "embeddings", "--batch-size", "1")[0] == 0


def left() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"rows.jsonl"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--schedule", "x"], 2, "--schedule 'x' is unknown"),
        (["--max-length", "2"], 2, "--max-length must be at least 3"),
        (["--model", "some/model"], 2, "give one of --model"),
        (["--labels", "a,a"], 2, "--labels must name each label once"),
        (["--labels", ""], 2, "--labels must name each label once"),
        (["--bf16"], 4, "--bf16 needs a GPU or a CPU that has bfloat16"),
        (["--batch-tokens", "0"], 2, "--batch-tokens must be a positive number"),
        (["--resume"], 3, "nothing to resume"),
    ],
)
def test_options_are_checked_before_data_is_read(
    options: list[str], code: int, message: str, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("nopad.training.run_folder.cpu_has_bf16", lambda: False)
    Path("rows.jsonl").unlink()
    got, said = train(*options)
    assert got == code and message in said
    assert not left()


def test_no_model_at_all(train: Command) -> None:
    code, said = train(model=())
    assert code == 2 and "give one of --model" in said


@pytest.mark.parametrize("content", [b"{not json", b"[]", b"\xff{}"])
def test_a_configuration_that_cannot_be_read(content: bytes, train: Command) -> None:
    Path("tiny.json").write_bytes(content)
    code, said = train(model=("--from-scratch", "tiny.json"))
    assert code == 3 and "nopad: tiny.json " in said
    assert left() == {"tiny.json"}


def test_nobody_elses_files_are_replaced(train: Command) -> None:
    assert train()[0] == 0
    assert train()[0] == 0, "what train wrote it may replace"
    Path("out/notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    code, said = train()
    assert code == 3 and "out holds files that nopad does not replace (notes.txt)" in said
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before

    Path("project/src").mkdir(parents=True)
    Path("project/config.json").write_text("{}")
    code, said = train("--output", "project")
    assert code == 3 and "left alone" in said and Path("project/src").is_dir()


def test_the_model_is_not_replaced(train: Command, scratch: Path) -> None:
    assert train()[0] == 0
    code, said = train(model=("--model", "./out"))
    assert code == 3 and "out is what the model is read from" in said


def test_a_work_folder_with_other_things_in_it(train: Command) -> None:
    Path("out.training").mkdir()
    Path("out.training/notes.txt").write_text("mine")
    code, said = train()
    assert code == 3 and "out.training, where epochs are kept, holds notes.txt" in said
    assert Path("out.training/notes.txt").read_text() == "mine"


def test_a_second_run_to_the_same_output(train: Command) -> None:
    epoch = Path("out.training/checkpoint-1")
    epoch.mkdir(parents=True)
    with locked(Path("out.training"), "training"):
        code, said = train()
    assert code == 3 and "another process is training to out" in said
    assert epoch.is_dir(), "the other run's"


def test_the_only_step_of_a_run_does_not_warm_up(train: Command, scratch: Path) -> None:
    options = ("--batch-size", "64", "--warmup-ratio", "1", "--schedule", "polynomial")
    assert train(*options)[0] == 0 and train(*options, "--learning-rate", "1e-3", "--output", "other")[0] == 0
    assert any(not torch.equal(tensor, weights(Path("other"))[name]) for name, tensor in weights(Path("out")).items())


def test_nothing_that_was_hidden_is_no_perplexity_of_one(train: Command) -> None:
    code, said = train("--task", "fill-mask", "--mask-probability", "1e-9")
    assert code == 3 and "perplexity is undefined for this evaluation data" in said and not Path("out").exists()


@pytest.mark.parametrize("kind", [int, float], ids=["classes", "regression"])
def test_a_run_that_diverges_fails(kind: type, train: Command) -> None:
    write_jsonl(Path("rows.jsonl"), [{**row, "label": kind(row["label"])} for row in sentences(40)])
    code, said = train("--learning-rate", "1e30")
    assert code == 3 and "training diverged (loss nan" in said
    assert not left()


def test_interrupted_before_an_epoch_was_saved(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: PackedTrainer, **options: Any) -> None:
        Path("out.training/checkpoint-1").mkdir(parents=True)  # cut short: no trainer_state.json
        raise KeyboardInterrupt

    monkeypatch.setattr(PackedTrainer, "train", interrupt)
    code, said = train()
    assert code == 130 and "nothing was saved yet" in said and "--resume" not in said
    assert not left()


def test_an_epoch_that_was_saved_stays(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: PackedTrainer, **options: Any) -> None:
        Path("out.training/checkpoint-1").mkdir(parents=True)
        Path("out.training/checkpoint-1/trainer_state.json").write_text(json.dumps({}))
        raise KeyboardInterrupt

    monkeypatch.setattr(PackedTrainer, "train", interrupt)
    code, said = train()
    assert code == 130 and "out.training/checkpoint-1: go on with --resume" in said
    assert left() == {"out.training"}


@pytest.mark.parametrize("room", [20_000, 200_000], ids=["weights", "optimizer"])
def test_a_full_disk(room: int, train: Command) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        code, said = train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4 and "free some space" in said
    assert not left()


def test_options_of_speed_and_memory(train: Command) -> None:
    assert train("--batch-tokens", "300", "--gradient-checkpointing")[0] == 0
    recipe = json.loads(Path("out/config.json").read_text())["nopad_training"]["recipe"]
    assert recipe["batch_tokens"] == 300 and recipe["gradient_checkpointing"]
    code, said = train("--batch-tokens", "20")
    assert code == 2 and "a batch of 20 tokens is less than three texts of the longest length" in said


def test_bf16_on_a_cpu(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("nopad.training.run_folder.cpu_has_bf16", lambda: True)
    products: set[torch.dtype] = set()

    def see(module: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if type(module) is torch.nn.Linear:  # a head's stay in fp32
            products.add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(see)
    try:
        assert train("--bf16")[0] == 0
    finally:
        handle.remove()
    assert products == {torch.bfloat16}
    assert weights(Path("out"))["head.dense.weight"].dtype == torch.float32
