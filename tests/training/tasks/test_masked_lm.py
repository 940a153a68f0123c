"""Masked-language modelling: what is hidden and how, transformers' loss at the hidden tokens only, perplexity."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from repository import DATA
from training_samples import CONFIG

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.encoder import build_encoder
from nopad.model.errors import CheckpointError
from nopad.model.packing import pack
from nopad.training.tasks.base import STREAM
from nopad.training.tasks.masked_lm import MaskedLM
from nopad.training.tasks.token_targets import IGNORED, pack_token_targets

TEXT = "Extraordinarily long documentation deserves characteristically uncomplicated tokenisation. " * 40


def task(**changes: Any) -> MaskedLM:
    return MaskedLM(**{"mask_probability": 0.3, "whole_word": False, "mask_id": 4, "vocabulary": 400, **changes})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    folder = DATA / "modernbert-tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set NOPAD_DATA to the folder with the test data")
    return open_tokenizer(folder)


def collated(task: MaskedLM, rows: dict[str, Any]) -> dict[str, torch.Tensor]:
    return task.collate([dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)], multiple=64)


def test_a_long_text_is_divided_and_nothing_of_it_lost(tokenizer: Any) -> None:
    rows = task().encode({"text": [TEXT, "short"], "number": [7, 8], "row": [0, 1]}, tokenizer, 64)
    whole = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    parts = rows["input_ids"][:-1]
    assert [token for part in parts for token in part[1:-1]] == whole and len(parts) > 3
    assert all(len(part) <= 64 and part[0] == tokenizer.cls_token_id for part in parts)
    assert rows["number"] == [[7, part] for part in range(len(parts))] + [[8, 0]]
    assert all(unit[0] == unit[-1] == -1 and -1 not in unit[1:-1] for unit in rows["unit"])


def test_the_shares_of_hidden_tokens() -> None:
    """30 % of the tokens; of these 80 % masked, 10 % replaced, 10 % kept: BERT's and ModernBERT's recipe."""
    torch.manual_seed(0)
    count = 20_000
    row = {"input_ids": [2] + [10] * count + [3], "unit": [-1, *range(1, count + 1), -1]}
    batch = task().collate([row], multiple=64)
    seen, target = batch["input_ids"][: count + 2], batch["labels"][0]
    hidden = target != IGNORED
    assert not hidden[0] and not hidden[-1] and set(target[hidden].tolist()) == {10}
    assert (seen[~hidden][1:-1] == 10).all()
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.01)
    masked, kept = (seen[hidden] == 4).float().mean(), (seen[hidden] == 10).float().mean()
    assert masked == pytest.approx(0.8, abs=0.02) and kept == pytest.approx(0.1, abs=0.02)
    assert len(set(seen[hidden].tolist())) > 300, "replaced by any token of the vocabulary"
    assert task().collate([row], multiple=64)["labels"].tolist() != batch["labels"].tolist(), "others each time"


def test_rows_to_evaluate_always_hide_the_same(tokenizer: Any) -> None:
    ready = task().with_tokenizer(tokenizer)
    assert (ready.mask_id, ready.vocabulary) == (tokenizer.mask_token_id, len(tokenizer))
    rows = ready.encode({"text": [TEXT, TEXT], "number": [0, 1], "row": [0, 1]}, tokenizer, 64)
    first, again = collated(ready, rows), collated(ready, rows)
    assert all(torch.equal(first[name], again[name]) for name in first)
    half = len(rows["input_ids"]) // 2
    assert first["labels"][:half].tolist() != first["labels"][half:].tolist(), "other tokens of another text"


def test_whole_words_are_hidden(tokenizer: Any) -> None:
    rows = (
        task(whole_word=True)
        .with_tokenizer(tokenizer)
        .encode({"text": [TEXT], "number": [0], "row": [0]}, tokenizer, 512)
    )
    batch = collated(task(whole_word=True), rows)
    words = tokenizer(TEXT, truncation=True, max_length=512).word_ids()
    states: dict[int, set[bool]] = {}
    for word, target in zip(words, batch["labels"][0].tolist(), strict=False):
        if word is not None:
            states.setdefault(word, set()).add(target != IGNORED)
    assert all(len(state) == 1 for state in states.values())
    assert 0.15 < np.mean([state == {True} for state in states.values()]) < 0.45
    assert max(words.count(word) for word in states) > 1, "some words have several tokens"


def test_a_tokenizer_without_a_mask_is_refused(tokenizer: Any) -> None:
    class NoMask:
        is_fast, mask_token_id = True, None

    with pytest.raises(CheckpointError, match="no mask token"):
        task().with_tokenizer(NoMask())


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_loss_and_gradients_at_the_hidden_tokens_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {name: CONFIG[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    config = (
        transformers.ModernBertConfig(**CONFIG)
        if architecture == "modernbert"
        else transformers.BertConfig(**small, num_hidden_layers=2)
    )
    model = transformers.AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(tmp_path)
    encoder = load_checkpoint(tmp_path).encoder
    ids = [[2, *range(10, 60), 3], [2, *range(90, 110), 3]]
    rows = [{"input_ids": row, "unit": [-1, *range(1, len(row) - 1), -1], "number": [i]} for i, row in enumerate(ids)]
    batch = task().collate(rows, multiple=64)
    logits = encoder(**{name: batch[name] for name in (*STREAM, "chosen")})
    assert logits.shape == (task().items(batch), 400)
    mask = batch["pad_index"] >= 0
    padded = torch.where(mask, batch["input_ids"][batch["pad_index"].clamp(min=0)], 0)
    theirs = model.eval()(input_ids=padded, attention_mask=mask.long(), labels=batch["labels"])
    loss = task().loss(logits, batch, label_smoothing=0.0)
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    theirs.loss.backward()
    gradients = dict(model.named_parameters())
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and gradients[name].grad is not None
        scale = gradients[name].grad.abs().max().item()
        assert (parameter.grad - gradients[name].grad).abs().max() <= 1e-5 * max(scale, 1e-3), name


@pytest.mark.parametrize("chosen", [[], [5, 1], [*range(64)], [*range(99, 34, -1)]])
def test_the_head_of_chosen_rows_is_the_head_of_all_rows(chosen: list[int]) -> None:
    encoder = build_encoder(read_config(CONFIG, task="fill-mask")).eval()
    batch = pack([[2, *range(5, 90), 3], [2, *range(7, 30), 3]], multiple=64)
    stream = {name: torch.from_numpy(getattr(batch, name)) for name in STREAM}
    computed: list[int] = []
    encoder.head.register_forward_hook(lambda _, inputs, out: computed.append(len(out)))
    some = encoder(**stream, chosen=torch.tensor(chosen, dtype=torch.int64))
    every = encoder(**stream)[chosen]
    assert torch.allclose(some, every, rtol=1e-4, atol=1e-4)
    assert computed[0] % 64 == 0, "each number of rows costs a kernel of oneDNN, which stays"
    weights = torch.randn(every.shape)
    theirs, ours = (
        torch.autograd.grad((logits * weights).sum(), [*encoder.parameters()], allow_unused=True)
        for logits in (every, some)
    )
    for want, got in zip(theirs, ours, strict=True):
        assert want is not None and got is not None
        assert (got - want).abs().max() <= 1e-5 * max(want.abs().max().item(), 1.0)


def test_perplexity_and_accuracy_count_every_hidden_token_once() -> None:
    rows = [
        {"input_ids": [2, 5, 6, 3], "target": [IGNORED, 1, 0, IGNORED]},
        {"input_ids": [2, 3], "target": [2, IGNORED]},
    ]
    batch = pack_token_targets(rows, multiple=64)
    logits = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 5.0], [1.0, 0.0, 3.0]])
    sums, counts = task().judge(logits, batch)
    assert counts.tolist() == [2, 1] and sums[:, 1].tolist() == [1, 1]
    found = task().metrics(sums.numpy(), counts.numpy())
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0, 2]))
    assert found["perplexity"] == pytest.approx(torch.exp(losses).item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx(2 / 3)
