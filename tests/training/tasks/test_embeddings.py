"""Embeddings: sentence-transformers' own losses and metrics, and a folder that it opens with equal embeddings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.errors import CheckpointError
from nopad.runtime.cli import run
from nopad.runtime.errors import UsageError
from nopad.runtime.predictor import load
from nopad.training.pair_data import load_pairs
from nopad.training.recipe import Recipe
from nopad.training.tasks.base import STREAM
from nopad.training.tasks.embeddings import NONE, Pairs, ScoredPairs
from nopad.training.trainer import TrainingResult, train

sentence_transformers = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.losses")
evaluation = pytest.importorskip("sentence_transformers.evaluation")

Halves = dict[str, list[tuple[str, str]]]
QUICK = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 32, "max_length": 64}


class Given(nn.Module):
    """A model of sentence-transformers whose embeddings are its input."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(features)

    def get_embedding_dimension(self) -> int:
        return 16

    get_sentence_embedding_dimension = get_embedding_dimension


def theirs(make: Callable[[Any], Any], embeddings: Tensor, columns: int, scores: Tensor, cuts: Sequence[int]) -> float:
    model = Given()
    loss = make(model)
    if cuts:
        loss = losses.MatryoshkaLoss(model, loss, [16, *cuts])
    features = [{"sentence_embedding": part.clone()} for part in embeddings.chunk(columns)]
    return float(loss(features, scores))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("cuts", [(), (8, 4)], ids=["full", "matryoshka"])
@pytest.mark.parametrize("columns", [2, 3], ids=["pairs", "triplets"])
def test_in_batch_negatives_are_theirs(columns: int, cuts: tuple[int, ...]) -> None:
    embeddings = torch.randn(7 * columns, 16)
    batch = {"labels": torch.arange(7 * columns).reshape(columns, 7).T}
    ours = Pairs(matryoshka=cuts).loss(embeddings, batch, label_smoothing=0.0)
    want = theirs(losses.MultipleNegativesRankingLoss, embeddings, columns, torch.zeros(7), cuts)
    assert ours.item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("cuts", [(), (8, 4)], ids=["full", "matryoshka"])
def test_cosent_is_theirs(cuts: tuple[int, ...]) -> None:
    embeddings, scores = torch.randn(12, 16, requires_grad=True), torch.tensor([0.1, 0.9, 0.5, 0.5, 0.2, 1.0])
    ours = ScoredPairs(matryoshka=cuts).loss(embeddings, {"labels": scores}, label_smoothing=0.0)
    assert ours.item() == pytest.approx(theirs(losses.CoSENTLoss, embeddings.detach(), 2, scores, cuts), rel=1e-5)
    ours.backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()


@pytest.mark.parametrize(
    ("texts", "barred"),
    [
        ([[1, 5], [2, 6], [3, 5]], [(0, 2), (2, 0)]),  # a positive of two anchors
        ([[1, 5], [1, 6], [3, 7]], [(0, 1), (1, 0)]),  # one anchor with two positives
        ([[1, 5], [2, 1], [3, 7]], [(0, 1)]),  # an anchor is another's positive
        ([[1, 5, 9], [2, 6, 5], [3, 7, 8]], [(0, 4)]),  # a positive is another's negative
    ],
    ids=["positive", "anchor", "itself", "negative"],
)
def test_equal_texts_are_no_negatives(texts: list[list[int]], barred: list[tuple[int, int]]) -> None:
    columns, vectors = len(texts[0]), torch.randn(10, 16) + 3.0
    batch = {"labels": torch.tensor(texts)}
    embeddings = vectors[batch["labels"].T.flatten()]
    unit = nn.functional.normalize(embeddings, dim=-1)
    scores = 20 * unit[:3] @ unit[3:].T
    for row, candidate in barred:
        scores[row, candidate] = -torch.inf
    want = -scores.log_softmax(1).diagonal().mean()
    ours = Pairs().loss(embeddings, batch, label_smoothing=0.0)
    assert ours.item() == pytest.approx(want.item(), rel=1e-5)
    unmasked = theirs(losses.MultipleNegativesRankingLoss, embeddings, columns, torch.zeros(3), ())
    assert ours.item() < unmasked - 1e-6


def encoded(*texts: list[int]) -> dict[str, Any]:
    """A row of tokenized texts, as `Pairs.encode` has it."""
    return {
        "input_ids": [token for ids in texts for token in ids],
        "lengths": [len(ids) for ids in texts],
        "prompt_lengths": [0] * len(texts),
        "identities": [hash(tuple(ids)) for ids in texts],
    }


def test_texts_that_read_the_same_are_one_text_in_one_stream() -> None:
    rows = [encoded([2, first, 3], [2, 7, 3]) for first in (5, 6)]
    batch = Pairs().collate(rows, multiple=64)
    assert next(iter(batch)) == "labels" and batch["labels"].shape == (2, 2)
    assert batch["labels"][0, 1] == batch["labels"][1, 1] and batch["labels"].unique().numel() == 3
    assert batch["input_ids"][:12].tolist() == [2, 5, 3, 2, 6, 3, 2, 7, 3, 2, 7, 3]
    assert batch["input_ids"].shape == (64,) and batch["pad_index"].shape[0] == 4


def test_rows_with_different_numbers_of_negatives() -> None:
    """As sentence-transformers' loss over the anchors one by one, each with all candidates that are there."""
    rows = [encoded([1], [2]), encoded([3], [4], [5], [6]), encoded([7], [8], [9])]
    batch = Pairs().collate(rows, multiple=64)
    order = [1, 3, 7, 2, 4, 8, 5, 9, 6]
    assert batch["input_ids"][: len(order)].tolist() == order
    assert (batch["labels"] == NONE).tolist() == [[False] * 2 + [True] * 2, [False] * 4, [False] * 3 + [True]]
    vectors = torch.randn(10, 16)
    ours = Pairs().loss(vectors[order], batch, label_smoothing=0.0)
    unit = nn.functional.normalize(vectors, dim=-1)
    scores = 20 * unit[[1, 3, 7]] @ unit[[2, 4, 8, 5, 9, 6]].T
    assert ours.item() == pytest.approx(nn.functional.cross_entropy(scores, torch.arange(3)).item(), rel=1e-6)
    predictions, targets = Pairs().judge(vectors[order], batch)
    assert predictions.shape == (3, 64) and torch.equal(predictions[1], vectors[[3, 4, 5, 6]].flatten())
    # A narrower batch is filled up as `Trainer` does it; what is filled up is no document.
    narrow = nn.functional.pad(predictions[:1, :32], (0, 32), value=NONE)
    other = torch.cat([narrow, predictions[1:]])
    found = [Pairs().metrics(each.numpy(), targets.numpy()) for each in (predictions, other)]
    assert found[0] == found[1] and 0 < found[0]["mrr@10"] <= 1


def test_a_matryoshka_size_beyond_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match="embeddings have 16 elements"):
        Pairs(matryoshka=(16,)).loss(torch.randn(4, 16), {"labels": torch.arange(4).reshape(2, 2)}, label_smoothing=0.0)


@pytest.fixture(scope="module")
def trained(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    folder = tmp_path_factory.mktemp("embeddings")
    data = load_pairs(str(reviews / "pairs"), matryoshka=[16])
    return train(
        data, folder / "out", from_scratch=reviews, recipe=Recipe(**{**QUICK, "learning_rate": 4e-3, "epochs": 4})
    )


def test_it_learns(trained: TrainingResult) -> None:
    assert trained.metrics["ndcg@10"] >= 0.12  # of 60 texts; in random order 0.076 is expected


def test_metrics_are_those_of_their_evaluator(trained: TrainingResult, halves: Halves) -> None:
    model = sentence_transformers.SentenceTransformer(str(trained.output), device="cpu")
    queries = {str(i): first for i, (first, _) in enumerate(halves["test"])}
    corpus = {f"d{i}": second for i, (_, second) in enumerate(halves["test"])}
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries, corpus, {str(i): {f"d{i}"} for i in range(len(queries))}, accuracy_at_k=[1], mrr_at_k=[10]
    )
    want = {name.removeprefix("cosine_"): value for name, value in evaluator(model).items()}
    for name in ("accuracy@1", "mrr@10", "ndcg@10"):
        assert trained.metrics[name] == pytest.approx(want[name], abs=1e-6), name


def test_queries_with_several_answers_and_their_own_text_in_the_corpus() -> None:
    vectors = {1: [1.0, 0.0], 2: [0.9, 0.1], 3: [0.5, 0.5], 4: [0.0, 1.0]}
    # Text 1 has the answers 2 and 4, text 3 the answer 1: text 1 is never its own answer.
    targets = np.array([[1, 2], [1, 4], [3, 1]])
    predictions = np.array([[*vectors[a], *vectors[b]] for a, b in targets], dtype=np.float32)
    found = Pairs().metrics(predictions, targets)
    # For 1: 2, 4. For 3: 2, then 1 and 4 at one distance, in the order of the corpus.
    assert found["accuracy@1"] == 0.5 and found["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3)) / 2)


@torch.no_grad()
def ours(folder: Path, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    checkpoint = load_checkpoint(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    columns = Pairs().encode({"texts": [[text] for text in texts]}, tokenizer, tokenizer.model_max_length)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    batch = Pairs().collate(rows, multiple=checkpoint.config.block)
    return checkpoint.encoder(**{name: batch[name] for name in STREAM}).numpy()


def test_their_library_opens_the_folder_with_equal_embeddings(trained: TrainingResult, halves: Halves) -> None:
    texts = [text for pair in halves["test"][:8] for text in pair]
    want = sentence_transformers.SentenceTransformer(str(trained.output), device="cpu").encode(texts)
    assert np.abs(ours(trained.output, texts) - want).max() <= 1e-5 and np.abs(want).max() > 0.1
    raw = json.loads((trained.output / "config.json").read_text())
    assert raw["nopad_training"]["task"] == {
        "head": "embeddings",
        "pooling": None,
        "teacher_vectors": False,
        "matryoshka": [16],
        "prompts": {},
        "default_prompt_name": None,
    }


def test_scored_pairs_from_a_folder_that_normalises(trained: TrainingResult, reviews: Path, tmp_path: Path) -> None:
    model = sentence_transformers.SentenceTransformer(str(trained.output), device="cpu")
    model.append(pytest.importorskip("sentence_transformers.models").Normalize())
    model.save_pretrained(str(tmp_path / "model"))
    for _ in range(2):  # the second run replaces the first one's output
        result = train(
            load_pairs(str(reviews / "scored")),
            tmp_path / "out",
            model=str(tmp_path / "model"),
            recipe=Recipe(**QUICK),
        )
    rows = [json.loads(line) for line in (reviews / "scored" / "test.jsonl").read_text().splitlines()]
    trained_model = sentence_transformers.SentenceTransformer(str(result.output), device="cpu")
    assert len(trained_model) == 3
    columns = [[row[name] for row in rows] for name in ("sentence1", "sentence2", "score")]
    want = evaluation.EmbeddingSimilarityEvaluator(*columns)(trained_model)
    assert result.metrics["spearman"] == pytest.approx(
        next(value for name, value in want.items() if name.endswith("spearman_cosine")), abs=1e-6
    )
    vectors = ours(result.output, columns[0])
    assert np.abs(vectors - trained_model.encode(columns[0])).max() <= 1e-5
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_another_pooling_than_the_models_own(trained: TrainingResult, reviews: Path, tmp_path: Path) -> None:
    data, recipe = load_pairs(str(reviews / "pairs"), pooling="cls"), Recipe(**QUICK)
    result = train(data, tmp_path / "out", model=str(trained.output), recipe=recipe)
    texts = ["a good film", "it was a long story of people who went away"]
    want = sentence_transformers.SentenceTransformer(str(result.output), device="cpu").encode(texts)
    assert load_checkpoint(result.output).config.pooling == "cls"
    assert np.abs(ours(result.output, texts) - want).max() <= 1e-5


def test_a_folder_with_other_modules_is_refused(trained: TrainingResult, reviews: Path, tmp_path: Path) -> None:
    model = sentence_transformers.SentenceTransformer(str(trained.output), device="cpu")
    model.append(pytest.importorskip("sentence_transformers.models").Dense(32, 8))
    model.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="with Dense is not trained"):
        train(load_pairs(str(reviews / "pairs")), tmp_path / "out", model=str(tmp_path / "model"))


PROMPTS = {"query": "a story of ", "passage": "long ago, "}


@pytest.fixture(scope="module")
def prompted(trained: TrainingResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers with prompts, one of them the default, that are not pooled."""
    folder = tmp_path_factory.mktemp("prompted") / "model"
    model = sentence_transformers.SentenceTransformer(
        str(trained.output), device="cpu", prompts=PROMPTS | {"other": "of "}, default_prompt_name="passage"
    )
    model.set_pooling_include_prompt(False)
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("chosen", [None, {"query": "was "}, {}], ids=["own", "chosen", "none"])
def test_prompts_of_a_folder_or_chosen(
    chosen: dict[str, str] | None,
    prompted: Path,
    reviews: Path,
    halves: Halves,
    tmp_path: Path,
) -> None:
    data = load_pairs(str(reviews / "pairs"), prompts=chosen)
    result = train(data, tmp_path / "out", model=str(prompted), recipe=Recipe(**{**QUICK, "epochs": 0.1}))
    model = sentence_transformers.SentenceTransformer(str(result.output), device="cpu")
    saved = json.loads((result.output / "config_sentence_transformers.json").read_text())
    assert saved["default_prompt_name"] == (None if chosen is not None else "passage")
    prompts = {name: text for name, text in saved["prompts"].items() if text}
    assert prompts == (PROMPTS | {"other": "of "} if chosen is None else chosen)
    # Evaluated as the library does with these prompts: both the words and that they are not pooled.
    queries = {str(i): first for i, (first, _) in enumerate(halves["test"])}
    corpus = {f"d{i}": second for i, (_, second) in enumerate(halves["test"])}
    before, behind = prompts.get("query", ""), prompts.get("passage", "")
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries,
        corpus,
        {str(i): {f"d{i}"} for i in range(len(queries))},
        mrr_at_k=[10],
        query_prompt=before,
        corpus_prompt=behind,
    )
    want = {name.removeprefix("cosine_"): value for name, value in evaluator(model).items()}
    for name in ("mrr@10", "ndcg@10"):
        assert result.metrics[name] == pytest.approx(want[name], abs=1e-6), name


def test_prompts_are_put_before_texts_and_do_not_make_them_others(reviews: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(reviews)
    task = Pairs().with_prompts(PROMPTS, None)
    rows = task.encode({"texts": [["a film", "was seen", "by him"], ["he", "a film"]]}, tokenizer, 64)
    before, behind = PROMPTS.values()
    texts = [before + "a film", behind + "was seen", behind + "by him"]
    assert rows["input_ids"][0] == [token for ids in tokenizer(texts)["input_ids"] for token in ids]
    assert rows["identities"][0][0] == rows["identities"][1][1]  # as a query and as a document
    assert rows["prompt_lengths"][0] == [len(tokenizer(text)["input_ids"]) - 1 for text in (before, behind, behind)]
    assert task.describe() == "prompts: 'a story of ' before the first text of a row, 'long ago, ' before the others"
    assert Pairs().with_prompts({"query": "", "document": ""}, None).describe() == ""


@pytest.mark.slow
def test_prompts_from_training_to_serving(reviews: Path, halves: Halves, tmp_path: Path) -> None:
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    options = ["--epochs", "0.1", "--max-length", "64", "--prompts", json.dumps(PROMPTS), "--quiet"]
    start = ["--from-scratch", str(reviews / "config.json"), "--train", str(reviews / "pairs")]
    assert run(["train", "--task", "embeddings", *start, "-o", str(out), *options]) == 0
    assert run(["export", str(out), "-o", str(bundle), "--target", "cpu", "--quiet"]) == 0
    texts = [first for first, _ in halves["test"][:5]]
    theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    with load(bundle) as model:
        for name, prompt in PROMPTS.items():
            got = model.embed(texts, prompt_name=name)
            assert np.abs(got - theirs.encode(texts, prompt_name=name)).max() <= 1e-4
            assert np.abs(got - theirs.encode([prompt + text for text in texts])).max() <= 1e-4
        assert np.abs(model.embed(texts) - got).max() > 1e-3


@pytest.mark.slow
def test_train_export_and_serve(reviews: Path, halves: Halves, tmp_path: Path) -> None:
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    options = ["--epochs", "1", "--max-length", "64", "--matryoshka", "16", "--quiet"]
    start = ["--from-scratch", str(reviews / "config.json"), "--train", str(reviews / "pairs")]
    assert run(["train", "--task", "embeddings", *start, "-o", str(out), *options]) == 0
    assert run(["export", str(out), "-o", str(bundle), "--target", "cpu", "--quiet"]) == 0  # the gate has passed
    texts = [text for pair in halves["test"][:5] for text in pair]
    want = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode(texts)
    with load(bundle) as model:
        assert np.abs(model.embed(texts) - want).max() <= 1e-4
