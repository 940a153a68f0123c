"""`train` end to end on small data: it learns, its result opens in transformers, it repeats itself."""

import functools
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from training_samples import CONFIG, logits, make_scratch, sentences, weight_difference, weights, write_jsonl

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.errors import CheckpointError
from nopad.runtime.errors import UsageError
from nopad.training import trainer
from nopad.training.data import TrainingData, load_data
from nopad.training.provenance import provenance
from nopad.training.recipe import Recipe
from nopad.training.tasks.single_label import SingleLabel
from nopad.training.trainer import TrainingResult, train

QUICK = {"learning_rate": 5e-3, "epochs": 4, "batch_size": 16, "max_length": 64}
TEXTS = ["a good film", "it was bad", "the town was long and good", "people went away to find old bad friends"]


def data_of(rows: list[dict[str, Any]], tmp_path: Path) -> TrainingData:
    return load_data(str(write_jsonl(tmp_path / "rows.jsonl", rows)))


@pytest.fixture(scope="module")
def trained(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    folder = tmp_path_factory.mktemp("trained")
    data = data_of(sentences(300), folder)
    return train(data, folder / "out", from_scratch=scratch, recipe=Recipe(**QUICK))


def test_it_learns_the_telling_word(trained: TrainingResult) -> None:
    assert trained.metrics["accuracy"] >= 0.95 and trained.metrics["f1"] >= 0.95
    assert 0 < trained.epoch <= 4 and trained.seconds > 0
    fresh = sentences(100, seed=5)
    ours, _ = logits(trained.output, [row["text"] for row in fresh])
    right = (ours.argmax(-1) == torch.tensor([row["label"] for row in fresh])).float().mean()
    assert right >= 0.95


def test_the_result_opens_in_transformers_with_equal_logits(trained: TrainingResult) -> None:
    ours, theirs = logits(trained.output, TEXTS)
    assert (ours - theirs).abs().max() <= 1e-5
    assert theirs.abs().max() > 0.1


def test_the_output_folder_holds_what_serving_needs(trained: TrainingResult) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in trained.output.iterdir()
    }
    assert not list(trained.output.glob("*.bin"))
    raw = json.loads((trained.output / "config.json").read_text())
    assert raw["architectures"] == ["ModernBertForSequenceClassification"]
    assert raw["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert raw["problem_type"] == "single_label_classification"
    assert raw["nopad_training"]["recipe"] == {**Recipe(**QUICK).__dict__}
    assert raw["nopad_training"]["metrics"] == trained.metrics
    tokenizer = json.loads((trained.output / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 64
    assert [path.name for path in trained.output.parent.iterdir() if path.name.startswith(("out", "."))] == ["out"]


def test_the_same_seed_gives_the_same_weights(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(sentences(60), tmp_path)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(ord(name))  # what came before must not matter
        if name == "b":  # transformers 4 leaves it so where the run before was in bf16
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        recipe = Recipe(**{**QUICK, "epochs": 1, "seed": seed})
        train(data, tmp_path / name, from_scratch=scratch, recipe=recipe)
    assert weight_difference(tmp_path / "a", tmp_path / "b") == 0.0
    assert weight_difference(tmp_path / "a", tmp_path / "c") > 1e-2


def test_real_reviews(imdb: Path, tmp_path: Path) -> None:
    for name, count in (("train", 200), ("test", 40)):
        with (imdb / f"{name}.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    scratch = make_scratch(tmp_path, tmp_path / "data" / "train.jsonl")
    recipe = Recipe(**{**QUICK, "learning_rate": 1e-3, "epochs": 2, "max_length": 200})
    data = load_data(str(tmp_path / "data"))
    assert (len(data.train), len(data.evaluation)) == (200, 40)
    result = train(data, tmp_path / "out", from_scratch=scratch, recipe=recipe)
    assert math.isfinite(result.metrics["loss"]) and 0.0 < result.metrics["accuracy"] <= 1.0
    ours, theirs = logits(result.output, [row["text"] for row in rows])
    assert (ours - theirs).abs().max() <= 1e-5
    # The metrics are of the weights kept: computed anew, by transformers.
    targets = torch.tensor([row["label"] for row in rows])
    assert result.metrics["accuracy"] == pytest.approx((theirs.argmax(-1) == targets).float().mean().item())


def test_several_labels_at_once(scratch: Path, tmp_path: Path) -> None:
    rows = sentences(300, seed=2)
    for row in rows:
        words = row["text"].split()
        row["label"] = [name for name in ("bad", "film", "good") if name in words]
    result = train(data_of(rows, tmp_path), tmp_path / "out", from_scratch=scratch, recipe=Recipe(**QUICK))
    raw = json.loads((result.output / "config.json").read_text())
    assert raw["problem_type"] == "multi_label_classification"
    assert raw["id2label"] == {"0": "bad", "1": "film", "2": "good"}
    assert result.metrics["f1"] >= 0.9
    ours, theirs = logits(result.output, ["a good film", "bad"])
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours[:, [0, 2]] > 0).tolist() == [[False, True], [True, False]]


def test_regression(scratch: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": 2.0 * row["label"] - 0.5} for row in sentences(300, seed=3)]
    result = train(data_of(rows, tmp_path), tmp_path / "out", from_scratch=scratch, recipe=Recipe(**QUICK))
    assert set(result.metrics) == {"mse", "pearson", "spearman", "loss"}
    assert result.metrics["mse"] <= 0.2  # 1.0 is what always answering the mean gets
    raw = json.loads((result.output / "config.json").read_text())
    assert raw["problem_type"] == "regression" and len(raw["id2label"]) == 1
    ours, theirs = logits(result.output, ["a good film", "a bad film"])
    assert (ours - theirs).abs().max() <= 1e-5
    assert ours[0, 0] > 1.0 and ours[1, 0] < 0.0


def masked_lm(folder: Path, scratch: Path, architecture: str) -> Path:
    import transformers

    shutil.copytree(scratch, folder)
    raw = {**CONFIG, "model_type": architecture}
    if architecture == "bert":
        raw = {key: raw[key] for key in list(raw)[:7]} | {"pad_token_id": 0}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**raw)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_fine_tuning_a_masked_lm(architecture: str, scratch: Path, tmp_path: Path) -> None:
    source = masked_lm(tmp_path / "mlm", scratch, architecture)
    data = data_of(sentences(400), tmp_path)
    # A rate of nothing keeps the weights: what was loaded is what is written, with a new head on top.
    still = Recipe(**{**QUICK, "learning_rate": 1e-30, "epochs": 1})
    train(data, tmp_path / "still", model=str(source), recipe=still)
    before, after = weights(source), weights(tmp_path / "still")
    prefix = {"modernbert": "model.", "bert": "bert."}[architecture]
    kept = [name for name in before if name.startswith(prefix)]
    assert len(kept) > 10
    for name in kept:
        assert (after[name] - before[name]).abs().max() <= 1e-20, name
    assert after["classifier.weight"].shape == (2, 32) and after["classifier.weight"].std() > 0
    recipe = Recipe(**{**QUICK, "learning_rate": 2e-3, "epochs": 6})
    result = train(data, tmp_path / "out", model=str(source), recipe=recipe)
    ours, theirs = logits(result.output, TEXTS)
    assert (ours - theirs).abs().max() <= 1e-5
    assert result.metrics["accuracy"] >= 0.9
    assert weight_difference(tmp_path / "still", result.output) > 1e-3


def test_a_classifier_trained_from_a_cross_encoder_is_none(
    trained: TrainingResult, scratch: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.output, tmp_path / "cross-encoder"))
    raw = json.loads((folder / "config.json").read_text())
    identity = "torch.nn.modules.linear.Identity"
    keys = {"sentence_transformers": {"activation_fn": identity}, "sbert_ce_default_activation_function": identity}
    (folder / "config.json").write_text(json.dumps({**raw, **keys}))
    data = data_of(sentences(40), tmp_path)
    result = train(data, tmp_path / "out", model=str(folder), recipe=Recipe(**{**QUICK, "epochs": 1}))
    assert not keys.keys() & json.loads((result.output / "config.json").read_text()).keys()


def test_accumulated_gradients_equal_one_large_batch(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(sentences(72), tmp_path)  # 64 to train: no step is short
    # Adam and clipping would hide a wrong factor on the gradient; plain descent does not.
    plain = functools.partial(trainer.TrainingArguments, optim="sgd", max_grad_norm=0.0)
    monkeypatch.setattr(trainer, "TrainingArguments", plain)
    for name, size, accumulation in (("large", 16, 1), ("parts", 8, 2), ("small", 8, 1)):
        recipe = Recipe(learning_rate=0.1, epochs=1, batch_size=size, gradient_accumulation=accumulation, max_length=64)
        train(data, tmp_path / name, from_scratch=scratch, recipe=recipe)
    assert weight_difference(tmp_path / "large", tmp_path / "parts") <= 1e-6
    assert weight_difference(tmp_path / "large", tmp_path / "small") > 1e-3


def test_label_smoothing_is_used(scratch: Path, tmp_path: Path) -> None:
    data = data_of(sentences(100), tmp_path)
    for name, smoothing in (("plain", 0.0), ("smooth", 0.3)):
        recipe = Recipe(**{**QUICK, "epochs": 3, "label_smoothing": smoothing})
        train(data, tmp_path / name, from_scratch=scratch, recipe=recipe)
    assert weight_difference(tmp_path / "plain", tmp_path / "smooth") > 1e-3


def test_the_best_epoch_is_kept(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = iter([0.5, 0.9, 0.3])  # f1 of the three epochs
    monkeypatch.setattr(SingleLabel, "metrics", lambda *_: {"f1": next(scripted), "accuracy": 0.0})
    data = data_of(sentences(100), tmp_path)
    result = train(data, tmp_path / "out", from_scratch=scratch, recipe=Recipe(**{**QUICK, "epochs": 3}))
    assert result.epoch == 2.0 and result.metrics["f1"] == 0.9
    # The weights are that epoch's too: they give the loss that was noted then.
    rows = list(data.evaluation)
    ours, _ = logits(result.output, [row["text"] for row in rows])
    targets = torch.tensor([row["target"] for row in rows])
    assert F.cross_entropy(ours, targets).item() == pytest.approx(result.metrics["loss"], rel=1e-5)


def test_patience_ends_the_run_and_the_best_evaluation_is_kept(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def scripted(*_: Any) -> dict[str, float]:
        asked.append([0.5, 0.4, 0.9, 0.9, 0.8, 1.0][len(asked)])
        return {"f1": asked[-1], "accuracy": 0.0}

    monkeypatch.setattr(SingleLabel, "metrics", scripted)
    recipe = Recipe(**{**QUICK, "epochs": 6, "patience": 2})
    result = train(data_of(sentences(40), tmp_path), tmp_path / "out", from_scratch=scratch, recipe=recipe)
    assert len(asked) == 5, "the first after the best is equal, the second worse"
    assert result.epoch == 3.0 and result.metrics["f1"] == 0.9


def test_evaluations_every_so_many_steps_and_at_the_end(scratch: Path, tmp_path: Path) -> None:
    data = data_of(sentences(100), tmp_path)  # 90 rows to train on: 6 steps an epoch
    recipe = Recipe(**{**QUICK, "epochs": 2, "eval_steps": 5})
    said = io.StringIO()
    console = Console(file=said, width=200)
    result = train(data, tmp_path / "out", from_scratch=scratch, recipe=recipe, console=console)
    evaluated = [float(epoch) for epoch in re.findall(r"^epoch ([\d.]+): loss", said.getvalue(), re.MULTILINE)]
    assert evaluated == [0.8333, 1.667, 2.0]
    assert any(result.epoch == pytest.approx(epoch, abs=1e-3) for epoch in evaluated)


def test_the_record_says_what_the_run_depended_on(trained: TrainingResult, scratch: Path, tmp_path: Path) -> None:
    record = json.loads((trained.output / "config.json").read_text())["nopad_training"]
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["nopad"]
    assert record["machine"]["cpu"] and record["machine"]["threads"] == torch.get_num_threads()
    assert record["recipe"]["seed"] == 42 and record["data"]["train"]["rows"] == 270
    # The digest is of the rows: the same in another file, another for one other label.
    rows = sentences(300)
    same, other = (provenance(load_data(str(write_jsonl(tmp_path / name, rows[:])))) for name in ("a.jsonl", "b.json"))
    assert same["data"] == other["data"] == record["data"]
    rows[0] = {**rows[0], "label": 1 - rows[0]["label"]}
    changed = provenance(data_of(rows, tmp_path))["data"]
    assert (
        changed["train"]["sha256"] != same["data"]["train"]["sha256"]
        or changed["evaluation"] != same["data"]["evaluation"]
    )


# --- refusals


def test_refusals_come_before_anything_is_written(scratch: Path, tmp_path: Path) -> None:
    data = data_of(sentences(40), tmp_path)
    quick = Recipe(**QUICK)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(scratch / "config.json", bare)
    small = Path(shutil.copytree(scratch, tmp_path / "small"))
    (small / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 50}))
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="give one of --model .* and --from-scratch CONFIG"):
        train(data, out, recipe=quick)
    with pytest.raises(CheckpointError, match="has no tokenizer .*; name a folder that has one with --tokenizer"):
        train(data, out, from_scratch=bare, recipe=quick)
    with pytest.raises(CheckpointError, match="tokenizer of .* entries, the model's vocab_size is only 50"):
        train(data, out, from_scratch=small, recipe=quick)
    with pytest.raises(CheckpointError, match="--max-length 512 exceeds the model's max_position_embeddings 256"):
        train(data, out, from_scratch=scratch)
    with pytest.raises(CheckpointError, match="nothing to resume: .*out.training holds no saved epoch"):
        train(data, out, from_scratch=scratch, recipe=quick, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        train(data, out, model=str(tmp_path / "none"), recipe=quick)
    assert sorted(tmp_path.rglob("*")) == before


def test_config_file_and_tokenizer_from_two_places(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1}))
    recipe = Recipe(**{**QUICK, "epochs": 1})
    result = train(
        data_of(sentences(40), tmp_path),
        tmp_path / "out",
        from_scratch=tmp_path / "tiny.json",
        tokenizer=str(scratch),
        recipe=recipe,
    )
    assert load_checkpoint(result.output).config.num_layers == 1
