"""Gradients on the torch engine: those of transformers' own model, and integrated ones that add up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_models import CASES
from transformers import AutoModelForSequenceClassification

from nopad.export.bundle import write_bundle
from nopad.model.checkpoint.load import load_checkpoint
from nopad.runtime import Explanation, Model, load
from nopad.runtime.bundle import DEFAULT_CHECKPOINT
from nopad.runtime.errors import UsageError
from nopad.runtime.tokenizer import Tokens

pytest.importorskip("captum")
TEXT = "A dull film. But the acting wasn't bad; I loved it!"


def opened(checkpoint: Path, folder: Path, **options: object) -> Model:
    write_bundle(load_checkpoint(checkpoint, **options), folder, torch="fp32")  # type: ignore[arg-type]
    return load(folder, engine="torch", threads=1, allow_unverified=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with opened(DEFAULT_CHECKPOINT, tmp_path_factory.mktemp("bundle")) as found:
        yield found


def explained(model: Model, text: str = TEXT, **options: object) -> Explanation:
    (found,) = model.explain([text], **options)  # type: ignore[arg-type]
    assert isinstance(found, Explanation)
    return found


def theirs(folder: Path, ids: list[int], label: int) -> np.ndarray:
    """Gradient x input of each token by transformers, at what its first layer reads."""
    reference = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    reference.eval()
    seen = []

    def keep(module: object, arguments: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    reference.base_model.embeddings.register_forward_hook(keep)
    logits = reference(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64)).logits[
        0
    ]
    others = torch.cat([logits[:label], logits[label + 1 :]])
    (logits[label] - others.logsumexp(0)).backward()
    assert seen[0].grad is not None
    return (seen[0] * seen[0].grad)[0].sum(-1).detach().numpy()


def test_gradient_x_input_is_that_of_transformers(model: Model) -> None:
    found = explained(model, method="gradient-x-input", by="token")
    (tokens,) = model.encode([TEXT])
    assert isinstance(tokens, Tokens)
    want = theirs(DEFAULT_CHECKPOINT, tokens.input_ids, model.labels.index(found.label))[1:-1]
    assert [each.score for each in found.attributions] == pytest.approx(want.tolist(), abs=1e-4)
    assert found.runs == 1


def test_gradients_of_bert_are_those_of_transformers(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("bert-single")
    with opened(folder, tmp_path, **CASES["bert-single"].load) as bert:
        found = explained(bert, "a film of trains", method="gradient-x-input", by="token")
        (tokens,) = bert.encode(["a film of trains"])
        assert isinstance(tokens, Tokens)
        by_token = theirs(folder, tokens.input_ids, bert.labels.index(found.label))
        want = by_token[[not special for special in tokens.special]]
        assert sum(each.score for each in found.attributions) == pytest.approx(float(want.sum()), abs=1e-3)
        complete = explained(bert, "a film of trains", method="integrated-gradients")
        assert abs(complete.residual) <= 0.01 * abs(complete.value - complete.base_value)


@pytest.mark.parametrize("text", [TEXT, "Splendid.", "It was long and I left before the end. " * 12])
def test_integrated_gradients_add_up_within_a_percent(model: Model, text: str) -> None:
    found = explained(model, text, method="integrated-gradients", budget=4096)  # the default ends before in some texts
    assert abs(found.residual) <= 0.01 * abs(found.value - found.base_value)
    (answer,) = model.predict([text])
    assert found.score == pytest.approx(answer.score, abs=1e-5) and found.engine == "torch"


def test_the_baseline_is_the_text_with_masks(model: Model) -> None:
    masked = explained(model, removal="mask")
    assert explained(model, method="integrated-gradients").base_value == pytest.approx(masked.base_value, abs=1e-5)


def test_windows_have_gradients_too(model: Model) -> None:
    text = "It was a film about trains. " * 200 + "Awful, dull, a waste of time."
    found = explained(model, text, method="integrated-gradients", by="sentence", truncation="window")
    (answer,) = model.predict([text], truncation="window")
    assert found.windows > 1 and found.score == pytest.approx(answer.score, abs=1e-5)
    assert abs(found.residual) <= 0.01 * abs(found.value - found.base_value)
    with pytest.raises(UsageError, match="merge='mean', not 'max'"):
        explained(model, text, method="gradient-x-input", truncation="window", merge="max")


def test_answers_after_gradients_are_the_same(model: Model) -> None:
    before = model.logits([TEXT])[0]
    explained(model, method="integrated-gradients")
    assert (model.logits([TEXT])[0] == before).all()


def test_half_precision_is_differentiated_in_fp32(tmp_path: Path, model: Model) -> None:
    write_bundle(load_checkpoint(DEFAULT_CHECKPOINT), tmp_path, torch="fp16")
    with load(tmp_path, engine="torch", threads=1, allow_unverified=True) as half:
        found = explained(half, method="integrated-gradients")
    exact = explained(model, method="integrated-gradients")
    assert [each.score for each in found.attributions] == pytest.approx(
        [each.score for each in exact.attributions], abs=2e-2
    )


def test_coroutines_get_the_same(model: Model) -> None:
    found = asyncio.run(model.aexplain(TEXT, method="integrated-gradients"))
    assert found == explained(model, method="integrated-gradients")
