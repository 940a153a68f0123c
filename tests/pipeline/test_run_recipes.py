"""The recipes of recipes/ that are not of reviews, run for real: real rows, a small model, cached the second time."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers
from repository import DATA, ROOT
from training_samples import write_jsonl

from nopad.runtime.cli import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # four commands, one after the other


def rte(split: str) -> Iterator[dict[str, Any]]:
    """Pairs of RTE-2: the short hypothesis as a query, the text as a passage, and whether it says so."""
    for pair in ElementTree.parse(DATA / "rte" / f"rte2_{split}.xml").getroot():
        text, hypothesis = pair.findtext("t"), pair.findtext("h")
        yield {"query": hypothesis, "passage": text, "label": int(pair.attrib["entailment"] == "YES")}


def tagged_files(folder: Path) -> None:
    for name, part, count in (("train", "esp.train", 300), ("valid", "esp.testa", 60), ("test", "esp.testb", 60)):
        sentences = (DATA / "conll" / part).read_text("utf-8").split("\n\n")
        (folder / f"{name}.conll").write_text("\n\n".join(sentences[:count]) + "\n", "utf-8")


def pair_files(folder: Path) -> None:
    for name, split, count in (("train", "dev", 120), ("test", "test", 40)):
        rows = [{key: row[key] for key in ("query", "passage")} for row in rte(split) if row["label"]]
        write_jsonl(folder / f"{name}.jsonl", rows[:count])


def passage_files(folder: Path) -> None:
    """Each query with its own passage, and with the next one's, which says nothing of it."""
    for name, split, count in (("train", "dev", 60), ("test", "test", 20)):
        answered = list(islice((row for row in rte(split) if row["label"]), count))
        others = [{**row, "passage": other["passage"], "label": 0} for row, other in pairwise(answered)]
        write_jsonl(folder / f"{name}.jsonl", [*answered, *others])


def inference_files(folder: Path) -> None:
    """With a telling word, since a model of this size learns nothing else, and what is wrong is not calibrated."""
    for name, split, count in (("train", "dev", 160), ("test", "test", 60)):
        rows = [
            {"premise": row["passage"][:100], "hypothesis": f"{word} so: {row['query']}", "label": label}
            for row in rte(split)
            for label, word in [(("no", "Hardly"), ("yes", "Surely"))[row["label"]]]
        ]
        write_jsonl(folder / f"{name}.jsonl", rows[:count])


LEADS = {  # the metrics that the report shows first
    "nli": ("accuracy", "f1"),
    "ner": ("f1", "precision"),
    "embeddings": ("ndcg@10", "mrr@10"),
    "rerank": ("ndcg@10", "mrr@10"),
}
ANALYZED = {"nli": "accuracy", "ner": "F1 of entities"}  # the recipes with that step, and the figure it leads with
RECIPES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nli": (inference_files, "rte"),
    "ner": (tagged_files, "conll"),
    "embeddings": (pair_files, "rte"),
    "rerank": (passage_files, "rte"),
}


MORE = {"nli": {"EPOCHS": "5", "BATCH_SIZE": "8", "LEARNING_RATE": "1e-3"}}  # of training: it must learn something
PAIRS = {"nli": ("premise", "hypothesis"), "rerank": ("query", "passage")}  # columns of the two texts


def assert_of_pairs(name: str, results: dict[str, Any], data: Path, run_folder: Path) -> None:
    """Calibration and measurement have read the pairs that transformers' tokenizer makes of the rows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(run_folder / "train")

    def lengths(part: str) -> list[int]:
        rows = [json.loads(line) for line in (data / f"{part}.jsonl").read_text("utf-8").splitlines()]
        columns = [[row[column] for row in rows] for column in PAIRS[name]]
        return [len(ids) for ids in tokenizer(*columns, truncation=True, max_length=1024)["input_ids"]]

    for workload in results["bench"]["workloads"]:
        assert workload["lengths"] == lengths("test")[: len(workload["lengths"])]
    artifacts = json.loads((run_folder / "export" / "manifest.json").read_bytes())["artifacts"]
    (int8,) = [artifact["quantized"] for artifact in artifacts if artifact["precision"] == "int8"]
    assert int8["tokens"] == sum(lengths("train"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_repository(
    name: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_data, needs = RECIPES[name]
    if not (DATA / needs).is_dir():
        pytest.skip(f"no {DATA / needs}; set NOPAD_DATA to the folder with the test data")
    (tmp_path / "data").mkdir()
    make_data(tmp_path / "data")
    settings = {"EPOCHS": "1", "LEARNING_RATE": "3e-3", "THREADS": "1"}
    for option, value in (settings | MORE.get(name, {})).items():
        monkeypatch.setenv(f"NOPAD_TRAIN_{option}", value)
    for command in ("EXPORT", "CALIBRATE", "PARITY", "BENCH", "ANALYZE"):
        monkeypatch.setenv(f"NOPAD_{command}_THREADS", "1")
    monkeypatch.setenv("NOPAD_BENCH_ROUNDS", "2")
    monkeypatch.setenv("NOPAD_BENCH_NO_BUILD_TIME", "true")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    values = {
        "data": tmp_path / "data",
        "model": checkpoint("modernbert-mlm"),
        "targets": "cpu",
        "precisions": "fp32" if name == "embeddings" else "fp32,int8",
    }
    folder = tmp_path / "run"

    def go() -> list[dict[str, Any]]:
        sets = [word for pair in values.items() for word in ("--set", "{}={}".format(*pair))]
        code = run(["run", str(ROOT / "recipes" / f"{name}.yaml"), *sets, "--output", str(folder), "--json"])
        said = capsys.readouterr()
        assert code == 0, said.err
        return [line for line in map(json.loads, said.out.splitlines()) if "step" in line]

    first = go()
    assert {step["status"] for step in first} == {"done"}
    results = {step["step"]: step["results"][-1] for step in first}
    assert results["export"]["verdict"] == "verified" and results["parity"]["passed"]
    if name in PAIRS:
        assert_of_pairs(name, results, tmp_path / "data", folder)
    page = (folder / "report.html").read_text("utf-8")
    assert all(f">{step['step']}</h2>" in page for step in first) and "Nothing to show" not in page
    assert list(LEADS[name]) == re.findall(rf"train: ({'|'.join(LEADS[name])})", page)
    if name in ANALYZED:
        analysis = json.loads((folder / "analyze.json").read_bytes())
        assert analysis["rows"] == 60 and f"analyze: {ANALYZED[name]}" in page  # all that both have of test rows
        assert all(line in page for line in analysis["summary"]) and 'href="analyze.html"' in page
    assert ("analyze" in results) == (name in ANALYZED)
    assert {step["status"] for step in go()} == {"cached"}
