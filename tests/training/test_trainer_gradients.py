"""A training step's gradient is that of transformers' padded model for the same texts, however they are divided."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from reference_models import disturb
from torch import Tensor
from training_samples import CONFIG

from nopad.model import products
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.head import Head
from nopad.training.batches import Batches, token_counts
from nopad.training.meter import ROW, Meter
from nopad.training.packed_trainer import PackedTrainer
from nopad.training.recipe import Recipe
from nopad.training.recompute import recompute_layers
from nopad.training.saved import Notes
from nopad.training.tasks.single_label import SingleLabel

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "modernbert": {**CONFIG, "architectures": ["ModernBertForSequenceClassification"]},
    "bert": {
        **{key: CONFIG[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        **WITHOUT_DROPOUT,
    },
}
ROWS = 40


@pytest.fixture(scope="module")
def reviews(imdb: Path) -> datasets.Dataset:
    """The beginnings of reviews, of many lengths; each byte is a token."""
    with (imdb / "train.jsonl").open("rb") as lines:
        texts = [json.loads(next(lines))["text"].encode() for _ in range(ROWS)]
    ids = [[2, *(byte + 5 for byte in text[: 7 * (i % 28 + 1)]), 3] for i, text in enumerate(texts)]
    return datasets.Dataset.from_dict({"input_ids": ids, "target": [i % 2 for i in range(ROWS)]})


@pytest.fixture(scope="module", params=ARCHITECTURES)
def padded(
    request: pytest.FixtureRequest, reviews: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Tensor]]:
    """A random checkpoint of transformers, and its gradients for all reviews as one padded batch."""
    folder = tmp_path_factory.mktemp("padded")
    torch.manual_seed(0)
    raw = ARCHITECTURES[request.param]
    (folder / "config.json").write_text(json.dumps(raw))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_config(config).train()
    disturb(model)
    model.save_pretrained(folder)
    tensors = [torch.tensor(ids) for ids in reviews["input_ids"]]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        for rows in (tensors, [torch.ones_like(row) for row in tensors])
    )
    model(input_ids=ids, attention_mask=mask, labels=torch.tensor(list(reviews["target"]))).loss.backward()
    return folder, {name: parameter.grad for name, parameter in model.named_parameters()}


class _Gradients(transformers.TrainerCallback):
    """What the optimizer is about to use, step by step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy every gradient."""
        self.seen.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})


def step(
    folder: Path, rows: datasets.Dataset, tmp_path: Path, *, recompute: bool = False, **plan: Any
) -> dict[str, Tensor]:
    """The gradients of the one step that an epoch has."""
    checkpoint = load_checkpoint(folder)
    if recompute:
        recompute_layers(checkpoint.encoder)
    accumulation = plan.pop("accumulation", 1)
    batches = Batches(token_counts(rows), seed=1, **{"texts": ROWS, **plan})
    assert len(batches) == accumulation
    gradients = _Gradients()
    PackedTrainer(
        checkpoint=checkpoint,
        tokenizer=None,
        task=SingleLabel(),
        batches=batches,
        head=Head(task="text-classification"),
        meter=Meter(None),
        notes=Notes(),
        recipe=Recipe(),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            num_train_epochs=1,
            save_strategy="no",
            remove_unused_columns=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows.add_column(ROW, list(range(len(rows)))),
        callbacks=[gradients],
    ).train()
    (seen,) = gradients.seen
    return seen


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"texts": 10, "accumulation": 4},
        {"texts": 13, "accumulation": 4},  # the last has one text
        {"tokens": 1200, "accumulation": 4},
        {"texts": 13, "accumulation": 4, "recompute": True},
    ],
    ids=["one", "equal", "unequal", "tokens", "recomputed"],
)
def test_gradients_are_those_of_one_padded_batch(
    plan: dict[str, Any], padded: tuple[Path, dict[str, Tensor]], reviews: datasets.Dataset, tmp_path: Path
) -> None:
    folder, theirs = padded
    compare(step(folder, reviews, tmp_path, **plan), theirs)


def test_also_with_products_by_onednn(
    padded: tuple[Path, dict[str, Tensor]],
    reviews: datasets.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    folder, theirs = padded
    used: list[int] = []
    product = products._product
    monkeypatch.setattr(products, "_product", lambda *args: (used.append(1), product(*args))[1])
    monkeypatch.setattr(products, "_faster_here", lambda: True)
    monkeypatch.setattr(products, "WORTH", 0)
    compare(step(folder, reviews, tmp_path, recompute=True), theirs)
    assert len(used) > 30


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    largest = max(gradient.norm().item() for gradient in theirs.values())
    for name, gradient in theirs.items():
        # BERT's key bias has the gradient 0 (softmax cancels it): what stands there is rounding of the whole.
        scale = largest if name.endswith("key.bias") else gradient.norm().item()
        assert (ours[name] - gradient).norm().item() <= 1e-5 * scale, name
