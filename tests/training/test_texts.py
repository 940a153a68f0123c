"""`nopad train --task fill-mask` and `--task token-classification`, from the command to what the checkpoint answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from training_samples import CONFIG, make_scratch, sentences, write_jsonl

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import pack
from nopad.runtime.cli import run
from nopad.training.tasks.base import STREAM

BERT = {"model_type": "bert", "num_hidden_layers": 2, "pad_token_id": 0}
QUICK = ["--epochs", "2", "--learning-rate", "5e-3", "--batch-size", "16", "--max-length", "24", "--threads", "1"]
Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    def call(*options: str) -> dict[str, Any]:
        code = run(["train", *QUICK, "--output", str(tmp_path / "out"), "--json", *options])
        output = capsys.readouterr()
        assert code == 0, output.err
        result: dict[str, Any] = json.loads(output.out)
        return result

    return call


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_masked_tokens_are_learned_and_the_checkpoint_is_transformers(
    architecture: str, scratch: Path, tmp_path: Path, train: Train
) -> None:
    if architecture == "bert":
        kept = {
            name: CONFIG[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
        }
        (tmp_path / "bert").mkdir()
        for path in scratch.glob("tokenizer*"):
            (tmp_path / "bert" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "bert" / "config.json").write_text(json.dumps(kept | BERT))
        scratch = tmp_path / "bert"
    rows = str(write_jsonl(tmp_path / "rows.jsonl", sentences(200)))
    figures = train("--task", "fill-mask", "--from-scratch", str(scratch), "--train", rows)
    assert figures["perplexity"] < 60, "of 400 tokens; 22 words occur"
    assert 0 < figures["accuracy"] <= 1

    folder = tmp_path / "out"
    record = json.loads((folder / "config.json").read_text())["nopad_training"]["task"]
    assert record["mask_probability"] == 0.3 and record["whole_word"] is False and record["mask_id"] == 4
    encoder = load_checkpoint(folder).encoder
    ids = [2, 10, 4, 30, 3]
    batch = pack([ids], multiple=encoder.encoder_config.block)
    with torch.no_grad():
        ours = encoder(**{name: torch.from_numpy(getattr(batch, name)) for name in STREAM})[: len(ids)]
        model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
        theirs = model(input_ids=torch.tensor([ids])).logits[0]
    assert (ours - theirs).abs().max() <= 1e-4 and theirs.abs().max() > 0.1


def test_long_texts_are_divided_and_batches_of_other_masks_do_not_change_the_evaluation(
    scratch: Path, tmp_path: Path, train: Train
) -> None:
    rows = sentences(60)
    long = [{"text": " ".join(row["text"] for row in rows[i : i + 6])} for i in range(0, 60, 6)]
    data = str(write_jsonl(tmp_path / "rows.jsonl", long))
    options = ("--task", "fill-mask", "--from-scratch", str(scratch), "--train", data, "--eval", data, "--whole-word")
    first = train(*options, "--mask-probability", "0.4")
    again = train(*options, "--mask-probability", "0.4", "--eval-batch-size", "3")
    assert again["perplexity"] == pytest.approx(first["perplexity"], rel=1e-3)


def tagged(count: int) -> list[dict[str, Any]]:
    """Sentences in which 'old friends' is a group and 'town' a place."""
    rows = []
    for row in sentences(count):
        words = row["text"].split() + ["old", "friends", "in", "town"]
        pairs = list(zip([None, *words], words, strict=False))
        place = {"town": "B-LOC", "old": "B-GRP"}
        tags = ["I-GRP" if pair == ("old", "friends") else place.get(pair[1], "O") for pair in pairs]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def test_tagged_words_are_learned(scratch: Path, tmp_path: Path, train: Train) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", tagged(200)))
    options = ("--task", "token-classification", "--from-scratch", str(scratch), "--train", data)
    figures = train(*options, "--max-length", "64", "--epochs", "4", "--best-metric", "accuracy")
    assert figures["f1"] >= 0.95 and figures["precision"] >= 0.95 and figures["recall"] >= 0.95
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["architectures"] == ["ModernBertForTokenClassification"]
    assert set(raw["id2label"].values()) == {"O", "B-LOC", "I-LOC", "B-GRP", "I-GRP"}


@pytest.mark.slow
@pytest.mark.parametrize("labelled", ["--label-all-tokens", "--label-first-token"])
def test_the_verified_bundle_finds_the_entities(
    labelled: str, scratch: Path, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", tagged(200)))
    options = ("--task", "token-classification", "--from-scratch", str(scratch), "--train", data, labelled)
    train(*options, "--max-length", "64", "--epochs", "3")
    assert run(["export", str(tmp_path / "out"), "--output", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    assert run(["predict", str(tmp_path / "bundle"), "--json", "people went away to find old friends in town"]) == 0
    entities = json.loads(capsys.readouterr().out)["entities"]
    assert [(entity["label"], entity["text"]) for entity in entities] == [("GRP", "old friends"), ("LOC", "town")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "fill-mask", "--labels", "a,b"], "--labels does not apply to --task fill-mask"),
        (["--task", "token-classification", "--class-weights", "balanced"], "--class-weights does not apply"),
        (["--whole-word"], "--whole-word does not apply to --task text-classification"),
        (["--task", "fill-mask", "--best-metric", "f1"], "--best-metric 'f1' is none of this task's: loss, perplexity"),
        (["--best-metric", "mse"], "is none of this task's: loss, accuracy, f1, macro_f1, auc"),
    ],
)
def test_options_of_another_task_are_refused(
    options: list[str], message: str, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", sentences(20)))
    start = ["--from-scratch", str(scratch), "--train", data, "--output", str(tmp_path / "out")]
    assert run(["train", *start, *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_best_metric_that_the_data_does_not_define_is_told(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sentences(40)
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    only = str(write_jsonl(tmp_path / "eval.jsonl", [row for row in rows if row["label"] == 1]))
    start = ["--from-scratch", str(scratch), "--train", data, "--eval", only, "--output", str(tmp_path / "out")]
    assert run(["train", *QUICK, *start, "--best-metric", "auc"]) == 3
    assert "auc is undefined for this evaluation data" in capsys.readouterr().err


def test_a_tokenizer_without_a_mask_cannot_hide_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", sentences(20))
    folder = make_scratch(tmp_path / "scratch", rows)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "mask_token"}))
    start = ["--from-scratch", str(folder), "--train", str(rows), "--output", str(tmp_path / "out")]
    assert run(["train", *QUICK, *start, "--task", "fill-mask"]) == 3
    assert "has no mask token" in capsys.readouterr().err
