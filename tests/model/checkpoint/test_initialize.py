"""Random weights are spread as transformers spreads them."""

import pytest
import torch
import transformers
from reference_models import BERT, CASES, MODERNBERT

from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.read_config import read_config
from nopad.model.encoder import build_encoder


@pytest.mark.parametrize("name", ["modernbert-single-cls", "bert-single", "modernbert-mlm"])
def test_random_initialisation_is_that_of_transformers(name: str) -> None:
    # By spread per parameter: the draws themselves differ. Wide layers, so that the estimate is sharp.
    case = CASES[name]
    wide = {"vocab_size": 2000, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2}
    raw = {**(MODERNBERT if case.architecture == "modernbert" else BERT), **case.config, **wide}
    config = transformers.AutoConfig.for_model(**raw)
    auto = (
        transformers.AutoModelForMaskedLM
        if case.task == "fill-mask"
        else (transformers.AutoModelForSequenceClassification)
    )
    torch.manual_seed(0)
    theirs = dict(auto.from_config(config).named_parameters())
    ours = build_encoder(read_config(raw, task=case.task))  # type: ignore[arg-type]
    initialize(ours)
    compared = dict(ours.named_parameters())
    assert set(theirs) == set(compared) or case.architecture == "bert"
    for key, tensor in compared.items():
        expected = theirs[key]
        if expected.ndim == 1:
            assert torch.equal(tensor, expected), key
        else:
            spread = expected.std().item()
            assert abs(tensor.std().item() - spread) <= 5 * spread / expected.numel() ** 0.5 + 1e-4, key
