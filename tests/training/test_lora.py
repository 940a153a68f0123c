"""LoRA: what is trained, what is written, and that PEFT, transformers and nopad's export read it as one model."""

import json
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from training_samples import logits, sentences, write_jsonl
from training_samples import weights as weights_of

from nopad.runtime import load
from nopad.runtime.cli import run

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


def test_a_run_over_it_replaces_it_and_resumes_as_any_other(base: Path, tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(80)))
    options = ["--model", str(base), "--lora", "2", "--quiet", *QUICK, "--epochs", "1"]
    for _ in range(2):  # the second replaces the first's files, the adapter's, too
        assert run(["train", "--train", data, "--output", str(tmp_path / "out"), *options]) == 0
    (tmp_path / "out" / "adapter" / "notes.txt").write_text("mine")
    assert run(["train", "--train", data, "--output", str(tmp_path / "out"), *options]) == 3


@pytest.mark.parametrize("task", ["embeddings", "token-classification"])
def test_other_tasks(base: Path, tmp_path: Path, task: str) -> None:
    rows = sentences(60)
    if task == "embeddings":
        pairs = [{"anchor": row["text"], "positive": row["text"] + " again"} for row in rows]
    else:
        pairs = [
            {"tokens": row["text"].split(), "tags": [word if word == "good" else "O" for word in row["text"].split()]}
            for row in rows
        ]
    data = str(write_jsonl(tmp_path / "rows.jsonl", pairs))
    options = ["--model", str(base), "--lora", "2", "--quiet", *QUICK, "--epochs", "1", "--task", task]
    assert run(["train", "--train", data, "--output", str(tmp_path / "out"), *options]) == 0
    for part in (".", "adapter"):
        bundle = tmp_path / f"bundle{part}"
        assert run(["export", str(tmp_path / "out" / part), "--output", str(bundle), "--quiet", "--task", task]) == 0
    with load(tmp_path / "bundle.") as one, load(tmp_path / "bundleadapter") as other:
        for a, b in zip(one.logits(TEXTS[:8]), other.logits(TEXTS[:8]), strict=True):
            assert np.abs(a - b).max() <= 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "4", "--freeze-layers", "1"], "leave out --freeze-layers"),
        (["--lora", "4", "--layer-decay", "0.9"], "leave out --freeze-layers and --layer-decay"),
        (["--lora", "0"], "--lora must be at least 1"),
        (["--lora-dropout", "0.1"], "settings of --lora RANK"),
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
