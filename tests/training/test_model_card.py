"""The model card says what the run knows, in the form of the Hub, and is replaced only while nobody has edited it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import confusion_matrix
from training_samples import logits

from nopad.model.head import softmax
from nopad.runtime.cli import run


@pytest.fixture(scope="module")
def card(command_run: Any) -> ModelCard:
    return ModelCard.load(command_run.output / "README.md")


def cells(line: str) -> list[str]:
    return [cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows(card: ModelCard, after: str) -> list[list[str]]:
    """The rows of the first table behind these words."""
    lines = card.text.partition(after)[2].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| ---"))
    table = lines[start + 1 : lines.index("", start)]
    return [cells(line) for line in table]


def test_its_metadata_is_the_hubs(card: ModelCard, command_run: Any) -> None:
    record = json.loads((command_run.output / "config.json").read_text())["nopad_training"]
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-classification"
    assert card.data.tags == ["nopad", "modernbert"] and card.data.model_name == "out"
    assert card.data.datasets is None and card.data.base_model is None, "files and random weights are not the Hub's"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: record["metrics"][name] for name in ("accuracy", "f1")}
    assert {result.dataset_name for result in card.data.eval_results} == {"held-out.jsonl"}


def test_its_figures_are_those_of_the_weights(card: ModelCard, command_run: Any) -> None:
    held_out = [json.loads(line) for line in command_run.data.read_text().splitlines()]
    names = ("neg|ative", "posi_tive")
    truth = [names.index(row["label"]) for row in held_out]
    _, theirs = logits(command_run.output, [row["text"] for row in held_out])  # transformers' own
    chosen = theirs.argmax(-1).numpy()
    matrix = confusion_matrix(truth, chosen)
    assert matrix[0, 1] and matrix[1, 0], "there are mistakes to show"
    shown = rows(card, "Confusion matrix")
    assert shown == [[name, *map(str, counts)] for name, counts in zip(names, matrix.tolist(), strict=True)]
    precision = matrix[0, 0] / matrix[:, 0].sum()
    assert rows(card, "| label ")[0][:2] == [names[0], f"{precision:.3f}"]
    # Calibration, computed in another way: bin by bin.
    scores = softmax(theirs.numpy()).max(-1)
    bins = [(scores > n / 15) & (scores <= (n + 1) / 15) for n in range(15)]
    error = sum(abs((scores - (chosen == truth))[one].sum()) for one in bins) / len(scores)
    said = re.search(r"calibration error ([\d.]+) %", card.text)
    assert said and float(said[1]) == pytest.approx(100 * error, abs=0.06)


def test_it_says_what_was_done(card: ModelCard, command_run: Any) -> None:
    record = json.loads((command_run.output / "config.json").read_text())["nopad_training"]
    assert ["learning rate", "0.005"] in rows(card, "## Training")
    data = rows(card, "## Data")
    assert [row[:3] for row in data] == [["trained on", "rows.jsonl", "300"], ["evaluated on", "held-out.jsonl", "100"]]
    assert data[0][3] == f"`{record['data']['train']['sha256'][:16]}`"
    assert "the best of 2 evaluations" in card.text and "Texts are cut at 64 tokens" in card.text
    assert "of CPU time" in card.text and record["cpu_seconds"] > 0 < record["seconds"]
    for name in ("nopad", "torch", "transformers"):
        assert f"{name} {record['versions'][name]}" in card.text
    assert str(command_run.output.parent) not in card.text, "paths are nobody else's business"
    assert "![Learning curves](curves.svg)" in card.text and (command_run.output / "curves.svg").is_file()


def test_a_card_that_was_edited_is_not_replaced(
    command_run: Any, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(command_run.output, tmp_path / "out"))
    again = ["train", "--train", str(command_run.data), "--from-scratch", str(scratch), "--output", str(output)]
    again += ["--max-length", "64", "--epochs", "0.1", "--threads", "1"]
    assert run(again) == 0, "an untouched one is"
    with (output / "README.md").open("a") as file:
        file.write("My own words.\n")
    assert run(again) == 3
    assert "files that nopad does not replace (README.md)" in capsys.readouterr().err
    assert (output / "README.md").read_text().endswith("My own words.\n")
