"""What the scripts hold equal that compare trainings over seeds, on a handful of rows; and that they still run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from repository import load_script
from scipy import stats
from training_samples import make_scratch, sentences, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_script("over_seeds")  # which both import by that name
    folder = tmp_path_factory.mktemp("compare")
    write_jsonl(folder / "eval.jsonl", sentences(40, seed=1))
    return make_scratch(folder, write_jsonl(folder / "train.jsonl", sentences(120, seed=2)))


def command(folder: Path, *options: str) -> list[str]:
    data = ["--train", str(folder / "train.jsonl"), "--eval", str(folder / "eval.jsonl"), "--threads", "1"]
    return ["script", *data, "--batch-size", "16", "--max-length", "32", *options]


@pytest.mark.slow
def test_padded_and_packed_batches_learn_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same texts in the same batches from the same weights."""
    options = ["--model", str(folder), "--rows", "64", "--rounds", "2", "--trainers", "padded,nopad"]
    monkeypatch.setattr("sys.argv", command(folder, *options, "--learning-rate", "1e-3"))
    load_script("compare_training").main()
    said = capsys.readouterr().out
    padded, packed = map(float, re.findall(r"samples/s .*, loss ([\d.]+)", said))
    assert packed == pytest.approx(padded, abs=2e-4)
    assert "nopad against padded: " in said
    rows = [line.split("|") for line in said.splitlines() if re.match(r"\| (padded|nopad) ", line)]
    assert len(rows) == 2 and rows[0][2:4] == rows[1][2:4], "accuracy after the last step, of each round"


def test_both_architectures_have_the_budget(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokenizer", str(folder), "--work", str(tmp_path), "--layers", "1", "--width", "32", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", command(folder, *options, "--tokens", "1500", "--learning-rates", "1e-3"))
    script = load_script("compare_architectures")
    script.main()
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(run["architecture"], run["seed"]) for run in runs] == [
        (name, seed) for seed in (0, 1) for name in ("modernbert", "bert")
    ]
    sizes = {run["architecture"]: run["parameters"] for run in runs}
    assert 0 <= sizes["bert"] - sizes["modernbert"] < script.STEP * 3 * 32, "less than a step of a gated feed-forward"
    for modernbert, bert in (runs[:2], runs[2:]):
        assert modernbert["tokens"] == bert["tokens"] == pytest.approx(1500, abs=16 * 32), "the same whole steps"
    table = (tmp_path / "table.md").read_text()
    assert "modernbert, 0.001" in table and "(" in table
    before = (tmp_path / "results.json").read_text()
    script.main()
    assert (tmp_path / "results.json").read_text() == before, "what is there is not trained again"


def test_an_interval_of_few_seeds_is_students() -> None:
    values = [0.8, 0.82, 0.87]
    low, mean, high = load_script("over_seeds").mean_interval(values)
    wanted = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(wanted) and mean == pytest.approx(np.mean(values))
