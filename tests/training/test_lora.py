"""LoRA: what is trained, what is written, and that PEFT, transformers and nopad's export read it as one model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from training_samples import CONFIG, logits, sentences, weight_difference, write_jsonl
from training_samples import weights as weights_of

from nopad.model.checkpoint.load import load_checkpoint
from nopad.runtime import load
from nopad.runtime.cli import run
from nopad.training import lora
from nopad.training.meter import Meter

QUICK = ["--max-length", "64", "--threads", "1", "--learning-rate", "1e-2", "--batch-size", "16", "--epochs", "4"]
TEXTS = [row["text"] for row in sentences(40, seed=5)]


@pytest.fixture(scope="module")
def base(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows the telling words already, with the other label."""
    folder = tmp_path_factory.mktemp("lora")
    data = str(write_jsonl(folder / "rows.jsonl", [{**row, "label": 1 - row["label"]} for row in sentences(300)]))
    options = ["--from-scratch", str(scratch), "--quiet", *QUICK, "--learning-rate", "5e-3"]
    assert run(["train", "--train", data, "--output", str(folder / "base"), *options]) == 0
    return folder / "base"


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    data = str(write_jsonl(folder / "rows.jsonl", sentences(300)))
    options = ["--model", str(base), "--lora", "4", "--lora-dropout", "0.1", "--quiet", *QUICK]
    assert run(["train", "--train", data, "--output", str(folder / "out"), *options]) == 0
    return folder / "out"


def test_it_learns_and_the_result_is_an_ordinary_checkpoint(trained: Path, base: Path) -> None:
    ours, theirs = logits(trained, TEXTS)
    truth = torch.tensor([row["label"] for row in sentences(40, seed=5)])
    assert (ours.argmax(-1) == truth).float().mean() >= 0.9
    assert (ours - theirs).abs().max() <= 1e-4
    before, after = weights_of(base), weights_of(trained)
    assert not [name for name in after if "lora" in name or "base_layer" in name]
    embeddings = "model.embeddings.tok_embeddings.weight"
    assert torch.equal(before[embeddings], after[embeddings])
    change = after["model.layers.1.attn.Wqkv.weight"] - before["model.layers.1.attn.Wqkv.weight"]
    assert 1 <= torch.linalg.matrix_rank(change, atol=1e-5) <= 4


def test_the_adapter_is_pefts_and_small(trained: Path, base: Path) -> None:
    folder = trained / "adapter"
    stored = load_file(folder / "adapter_model.safetensors")
    of_adapter, of_model = (sum(map(torch.numel, tensors.values())) for tensors in (stored, weights_of(trained)))
    assert of_adapter < 0.5 * of_model
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about transformers
        adapted = peft.PeftModel.from_pretrained(model, folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours, _ = logits(trained, TEXTS)
    with torch.inference_mode():
        theirs = torch.stack([adapted(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS])
    assert (ours - theirs).abs().max() <= 1e-4 < ours.std()


@pytest.mark.parametrize("part", [".", "adapter"])
def test_merged_checkpoint_and_adapter_export_to_the_same_answers(trained: Path, tmp_path: Path, part: str) -> None:
    assert run(["export", str(trained / part), "--output", str(tmp_path / "bundle"), "--quiet"]) == 0
    with load(tmp_path / "bundle") as model:
        assert model.labels == ("LABEL_0", "LABEL_1")
        answers = np.stack(model.logits(TEXTS))
    ours, _ = logits(trained, TEXTS)
    assert np.abs(answers - ours.numpy()).max() <= 1e-4


def test_a_run_over_it_replaces_it_but_no_file_of_the_users(base: Path, tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(80)))
    options = ["--model", str(base), "--lora", "2", "--quiet", *QUICK, "--epochs", "1"]
    for _ in range(2):  # the second replaces the first's files, the adapter's, too
        assert run(["train", "--train", data, "--output", str(tmp_path / "out"), *options]) == 0
    (tmp_path / "out" / "adapter" / "notes.txt").write_text("mine")
    assert run(["train", "--train", data, "--output", str(tmp_path / "out"), *options]) == 3


def test_an_interrupted_run_ends_as_any_other_and_its_state_is_a_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(100)))
    steps = 6  # of an epoch: 90 rows, batches of 16
    options = [
        "--model",
        str(base),
        "--lora",
        "2",
        "--lora-dropout",
        "0.2",
        "--quiet",
        *QUICK,
        "--schedule",
        "constant",
    ]

    def train(output: str, *more: str) -> int:
        return run(["train", "--train", data, "--output", str(tmp_path / output), *options, *more])

    assert train("epoch", "--epochs", "1") == 0 and train("whole", "--epochs", "2") == 0
    add = Meter.add

    def interrupted(self: Meter, facts: Any, loss: Any, *, step: int) -> None:
        add(self, facts, loss, step=step)
        if step == steps + 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as context:
        context.setattr(Meter, "add", interrupted)
        assert train("out", "--epochs", "2") == 130
    state = tmp_path / "out.training" / f"checkpoint-{steps}"
    merged = load_checkpoint(state).encoder.state_dict()
    after_an_epoch = load_checkpoint(tmp_path / "epoch").encoder.state_dict()
    assert merged.keys() == after_an_epoch.keys()
    assert max((merged[name] - after_an_epoch[name]).abs().max() for name in merged) <= 1e-6
    assert train("out", "--epochs", "2", "--resume") == 0
    assert weight_difference(tmp_path / "out", tmp_path / "whole") == 0.0
    ours, theirs = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("out", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_recomputed_layers_and_some_modules(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(80)))
    options = ["--model", str(base), "--lora", "2", "--lora-modules", "Wqkv, mlp.Wo", *QUICK, "--epochs", "1"]
    for name, more in (("kept", ()), ("recomputed", ("--gradient-checkpointing",))):
        assert run(["train", "--train", data, "--output", str(tmp_path / name), *options, *more]) == 0
        assert "LoRA of rank 2 beside attn.Wqkv, mlp.Wo: " in capsys.readouterr().err
    assert weight_difference(tmp_path / "kept", tmp_path / "recomputed") <= 1e-6
    settings = json.loads((tmp_path / "kept" / "adapter" / "adapter_config.json").read_text())
    assert sorted(settings["target_modules"]) == ["attn.Wqkv", "mlp.Wo"]
    before, after = weights_of(base), weights_of(tmp_path / "kept")
    changed = {
        name.split(".", 3)[3] for name in before if ".layers." in name and not torch.equal(before[name], after[name])
    }
    assert changed == {"attn.Wqkv.weight", "mlp.Wo.weight"}
    assert "PEFT" in (tmp_path / "kept" / "README.md").read_text()


AUTO = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "rerank": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "embeddings": transformers.AutoModel,
}
SMALL = {name: CONFIG[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}


@pytest.mark.parametrize("task", AUTO)
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "eurobert"])
def test_peft_opens_what_every_architecture_and_task_writes(
    architecture: str, task: str, scratch: Path, tmp_path: Path
) -> None:
    base, output = tmp_path / "base", tmp_path / "out"
    shutil.copytree(scratch, base)
    if architecture == "eurobert" and not hasattr(transformers, "EuroBertConfig"):
        pytest.skip("this transformers has no EuroBERT")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        architecture, **SMALL, num_hidden_layers=2, pad_token_id=0, initializer_range=0.2, max_position_embeddings=64
    )
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(base)
    rows: list[dict[str, Any]] = sentences(40)
    if task == "embeddings":
        rows = [{"anchor": row["text"], "positive": row["text"] + " again"} for row in rows]
    elif task == "rerank":
        rows = [{"query": row["text"][:9], "passage": row["text"], "label": row["label"]} for row in rows]
    elif task == "token-classification":
        rows = [
            {"tokens": (words := row["text"].split()), "tags": [str(len(word) > 3) for word in words]} for row in rows
        ]
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    options = ["--model", str(base), "--lora", "2", "--quiet", *QUICK, "--epochs", "1", "--task", task]
    assert run(["train", "--train", data, "--output", str(output), *options]) == 0
    labels = {} if task == "embeddings" else {"num_labels": 1 if task == "rerank" else 2}
    start, merged = AUTO[task].from_pretrained(base, **labels), AUTO[task].from_pretrained(output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about transformers
        by_peft = peft.PeftModel.from_pretrained(AUTO[task].from_pretrained(base, **labels), output / "adapter")
    by_transformers = AUTO[task].from_pretrained(output / "adapter", **labels)  # which asks PEFT itself
    ids = torch.randint(5, 400, (4, 20))
    with torch.no_grad():
        answers = [model.eval()(input_ids=ids)[0] for model in (start, merged, by_peft, by_transformers)]
    assert all((answers[1] - others).abs().max() <= 1e-4 for others in answers[2:])
    assert (answers[0] - answers[1]).abs().max() > 1e-2
    ours, theirs = (load_checkpoint(folder).encoder for folder in (output, output / "adapter"))
    assert ours.encoder_config == theirs.encoder_config
    assert max((a - b).abs().max() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)) <= 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "4", "--freeze-layers", "1"], "leave out --freeze-layers"),
        (["--lora", "4", "--layer-decay", "0.9"], "leave out --freeze-layers and --layer-decay"),
        (["--lora", "0"], "--lora must be at least 1"),
        (["--lora-dropout", "0.1"], "settings of --lora RANK"),
        (["--lora-modules", "Wqkv"], "settings of --lora RANK"),
        (["--lora", "4", "--lora-modules", "Wqkv,query"], "--lora-modules 'query': no linear layer of this model ends"),
        (["--lora", "4", "--lora-alpha", "-1"], "--lora-alpha must be at least 1"),
        (["--lora", "4", "--task", "fill-mask"], "--lora does not apply to --task fill-mask"),
    ],
)
def test_what_does_not_go_together_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(40)))
    given = ["--train", data, "--output", str(tmp_path / "out"), "--model", str(base), "--max-length", "64"]
    assert run(["train", *given, *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_it_needs_a_whole_checkpoint_and_peft(
    trained: Path, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(40)))
    given = ["--train", data, "--output", str(tmp_path / "out"), "--max-length", "64", "--lora", "4"]
    assert run(["train", *given, "--from-scratch", str(scratch)]) == 2
    assert "--lora needs --model" in capsys.readouterr().err
    assert run(["train", *given, "--model", str(trained / "adapter")]) == 2
    assert "adapter is an adapter" in capsys.readouterr().err
    monkeypatch.setattr(lora, "importable", lambda module: module != "peft")
    assert run(["train", *given, "--model", str(trained)]) == 4
    assert "pip install 'nopad[lora]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(base: Path, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(135)))
    held = str(write_jsonl(tmp_path / "held.jsonl", sentences(64, seed=1)))
    options = ["--train", data, "--eval", held, "--model", str(base), "--lora", "4", *QUICK, "--epochs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    launchers = {"one": [], "two": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]}
    for name, launcher in launchers.items():
        size = ["--batch-size", str(32 // (1 + bool(launcher)))]
        command = [sys.executable, "-m", *launcher, "nopad.runtime.cli", "train", *options, *size, "-o", name]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stderr.count("LoRA of rank 4") == 1, done.stderr
    assert weight_difference(tmp_path / "one", tmp_path / "two") <= 1e-5


def test_the_updates_have_a_learning_rate_of_their_own(base: Path, tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(20)))
    options = [
        "--model",
        str(base),
        "--train",
        data,
        "--epochs",
        "1",
        "--max-length",
        "64",
        "--threads",
        "1",
        "--quiet",
    ]
    rates = []
    for name, own in (("all", []), ("updates", ["--lora", "4"]), ("named", ["--lora", "4", "--learning-rate", "3e-3"])):
        assert run(["train", *options, *own, "--output", str(tmp_path / name)]) == 0
        record = json.loads((tmp_path / name / "config.json").read_text("utf-8"))["nopad_training"]
        rates.append(record["recipe"]["learning_rate"])
    assert rates == [8e-5, 8e-4, 3e-3]
