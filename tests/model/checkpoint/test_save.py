"""nopad -> transformers: saved checkpoints open there with the same logits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_models import MODERNBERT, TOLERANCE, Reference, difference, labels, packed_logits, token_ids

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.save import config_json, write_checkpoint

GetReference = Callable[[str], Reference]
SAVED = ("modernbert-single-mean", "modernbert-multi-cls", "modernbert-regression-cls", "modernbert-token")
SAVED += ("modernbert-mlm", "modernbert-mlm-untied", "modernbert-embed-mean-unit", "modernbert-rerank")
SAVED += ("bert-single", "bert-multi", "bert-regression", "bert-token", "bert-mlm", "bert-mlm-untied", "bert-rerank")


@pytest.mark.parametrize("name", SAVED)
def test_saved_checkpoint_opens_in_transformers(name: str, reference: GetReference, tmp_path: Path) -> None:
    made = reference(name)
    checkpoint = load_checkpoint(made.folder, **made.case.load)
    write_checkpoint(checkpoint.encoder, checkpoint.raw_config, tmp_path)
    theirs, info = type(made.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    opened = Reference(made.case, theirs.eval(), tmp_path)
    rows = [token_ids(length) for length in (1, 65, 129)]
    expected = [made.logits(ids) for ids in rows]
    for key, tensor in made.model.state_dict().items():
        if (name, key) == ("bert-mlm-untied", "cls.predictions.bias"):
            continue  # transformers 5 keeps it beside decoder.bias and does not use it
        assert torch.equal(theirs.state_dict()[key], tensor), key
    # The weights are equal to the bit; their alignment in memory still moves sums by an ulp.
    assert difference([opened.logits(ids) for ids in rows], expected) <= 1e-6
    assert difference(packed_logits(opened.encoder(), rows), expected) <= TOLERANCE
    assert opened.encoder().encoder_config == checkpoint.config
    if checkpoint.config.labels:
        assert theirs.config.id2label == dict(enumerate(checkpoint.config.labels))
        assert theirs.config.problem_type == checkpoint.config.problem_type


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_both_config_spellings_are_written(every: int, tmp_path: Path) -> None:
    raw = {**MODERNBERT, "architectures": ["ModernBertForSequenceClassification"], **labels(2)}
    raw |= {"global_attn_every_n_layers": every, "global_rope_theta": 90000.0, "local_rope_theta": 400.0}
    written = config_json(raw, read_config(raw))
    old = {key: value for key, value in written.items() if key not in ("layer_types", "rope_parameters")}
    gone = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    new = {key: value for key, value in written.items() if key not in gone}
    assert read_config(old) == read_config(new) == read_config(raw)
    assert json.loads(json.dumps(written)) == written


def test_unknown_config_keys_are_kept(reference: GetReference, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(reference("bert-single").folder)
    write_checkpoint(checkpoint.encoder, {**checkpoint.raw_config, "ours": {"a": 1}}, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ours"] == {"a": 1}
