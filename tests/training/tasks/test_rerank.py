"""Reranking: sentence-transformers' own loss and encoding of pairs, and a folder that its CrossEncoder opens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.runtime.cli import run
from nopad.runtime.predictor import load
from nopad.training.pair_data import load_passages
from nopad.training.recipe import Recipe
from nopad.training.tasks.rerank import LabelledPairs, Rerank
from nopad.training.trainer import TrainingResult, train

cross_encoder = pytest.importorskip("sentence_transformers.cross_encoder")

Halves = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def trained(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    data = load_passages(str(reviews / "passages"))
    recipe = Recipe(learning_rate=1e-3, epochs=1, max_length=24)  # cuts most pairs
    return train(data, tmp_path_factory.mktemp("rerank") / "out", from_scratch=reviews, recipe=recipe)


def test_the_loss_is_binary_cross_entropy() -> None:
    logits, labels = torch.randn(6, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0.3, 1, 0, 0.5])
    ours = Rerank().loss(logits, {"labels": labels}, label_smoothing=0.0)
    assert ours.item() == pytest.approx(torch.nn.BCEWithLogitsLoss()(logits[:, 0], labels).item())


def test_their_library_opens_the_folder_with_equal_scores(trained: TrainingResult, reviews: Path) -> None:
    model = cross_encoder.CrossEncoder(str(trained.output), device="cpu")
    rows = [json.loads(line) for line in (reviews / "passages" / "test.jsonl").read_text().splitlines()]
    scores = model.predict([(row["query"], row["passage"]) for row in rows]).reshape(-1, 3)
    assert scores.min() > 0 and scores.max() < 1 and scores.std() > 1e-3  # sigmoid's
    # The passages were cut as the library cuts them, or the metrics would differ.
    labels = np.array([row["label"] for row in rows]).reshape(-1, 3)
    assert trained.metrics["ndcg@10"] == pytest.approx(ndcg_score(labels, scores), abs=1e-6)
    ranks = (scores >= scores[labels == 1][:, None]).sum(1)
    assert trained.metrics["mrr@10"] == pytest.approx((1 / ranks).mean(), abs=1e-6)
    loss = torch.nn.BCELoss()(torch.tensor(scores.ravel()), torch.tensor(labels.ravel(), dtype=torch.float32))
    assert trained.metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_only_queries_with_an_answer_among_others_count() -> None:
    targets = np.array([[1, 0], [0, 7], [0, 0], [1, 7], [0, 3], [0, 3], [1, 4]])  # label, query
    scores = np.array([[0.5], [0.9], [0.1], [0.3], [0.2], [0.1], [0.9]], dtype=np.float32)
    found = Rerank().metrics(scores, targets)
    assert found["mrr@10"] == 0.75 and found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3)) / 2)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_a_model_that_cannot_tell_passages_apart_finds_none(order: list[int]) -> None:
    targets = np.array([[1, 0], [0, 0], [0, 0]])[order]
    found = Rerank().metrics(np.zeros((3, 1), dtype=np.float32), targets)
    assert found == {"mrr@10": pytest.approx(1 / 3), "ndcg@10": pytest.approx(1 / np.log2(4))}


def test_an_answer_beyond_the_tenth_rank_counts_nothing() -> None:
    targets = np.array([[float(i == 11), 0] for i in range(12)])
    scores = -np.arange(12, dtype=np.float32)[:, None]
    assert Rerank().metrics(scores, targets) == {"mrr@10": 0.0, "ndcg@10": 0.0}


def test_accuracy_where_each_query_has_one_passage() -> None:
    targets = np.array([[1, 0], [0, 1], [1, 2], [0, 3]])
    assert LabelledPairs().metrics(np.array([[1.0], [-1.0], [-2.0], [-0.1]]), targets) == {"accuracy": 0.75}


@pytest.mark.slow
def test_train_export_and_serve(
    reviews: Path, halves: Halves, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    start = ["--from-scratch", str(reviews / "config.json"), "--train", str(reviews / "passages")]
    options = ["--epochs", "1", "--max-length", "64", "--learning-rate", "1e-3", "--quiet"]
    assert run(["train", "--task", "rerank", *start, "-o", str(out), *options]) == 0
    assert run(["export", str(out), "-o", str(bundle), "--target", "cpu", "--quiet"]) == 0  # the gate has passed
    query, passages = halves["test"][0][0], [second for _, second in halves["test"][:6]]
    want = cross_encoder.CrossEncoder(str(out), device="cpu").predict([(query, passage) for passage in passages])
    with load(bundle) as model:
        ranked = model.rerank(query, passages)
    assert [each.index for each in ranked] == np.argsort(-want).tolist()
    assert [each.score for each in ranked] == pytest.approx(sorted(want, reverse=True), abs=1e-4)
    fields = ["--data", str(reviews / "passages" / "test.jsonl"), "--text-field", "query", "--second-field", "passage"]
    assert run(["parity", str(bundle), "--reference", str(out), *fields, "--limit", "40", "--quiet", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["case"] for row in rows if row["check"] == "logits" and row["case"].endswith("texts")] == ["40 texts"]
