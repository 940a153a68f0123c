"""The files of a bundle: int8 graphs are calibrated on the tokens that the runtime will read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from st_folders import Case, edit

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.export.bundle_files import _calibration_batches
from nopad.model.checkpoint.load import load_checkpoint
from nopad.runtime.predictor import load
from nopad.runtime.tokenizer import Tokens

TEXTS = ["an hour of my life i want back", "a film", "so slow that nothing moves and nobody seems to mind it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    """An embedding model that cuts the left end of texts over 16 tokens, with a prompt before each."""
    path = tmp_path_factory.mktemp("st") / "folder"
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    case = Case(model=prompts, transformer={"max_seq_length": 16})
    case.build(checkpoint("bert-embed-default"), path)
    edit(path / "tokenizer_config.json", truncation_side="left")
    return path


def test_calibration_cuts_the_end_that_the_tokenizer_says(tmp_path: Path) -> None:
    """int8 scales are calibrated on the tokens that the model will read."""
    folder = tmp_path / "checkpoint"
    make_checkpoint("bert-single", folder)
    edit(folder / "tokenizer_config.json", truncation_side="left")
    export_checkpoint(folder, tmp_path / "bundle", ExportOptions(max_length=6, parity=False))
    (batch,) = _calibration_batches(load_checkpoint(folder), tmp_path / "bundle", TEXTS[:1], 6, 1)
    with load(tmp_path / "bundle", allow_unverified=True) as model:
        (read,) = model.encode(["an hour of my life i want back"])
        (end,) = model.encode(["life i want back"])
    assert batch.input_ids.tolist() == read.input_ids == end.input_ids  # type: ignore[union-attr]


def test_calibration_reads_the_texts_with_the_default_prompt(folder: Path, tmp_path: Path) -> None:
    """It also leaves out a text that the runtime refuses: its token has no embedding in the model."""
    bundle = tmp_path / "bundle"
    export_checkpoint(folder, bundle, ExportOptions(parity=False))
    checkpoint = load_checkpoint(folder)
    with load(bundle, allow_unverified=True) as model:
        served = [tokens for tokens in model.encode(TEXTS) if isinstance(tokens, Tokens)]
    served.sort(key=lambda tokens: -tokens.used)  # as micro-batches are
    assert [tokens.used < tokens.tokens for tokens in served] == [True, True, False]
    (batch,) = _calibration_batches(checkpoint, bundle, TEXTS, 16, 1)
    assert batch.input_ids.tolist() == [token for tokens in served for token in tokens.input_ids]
    assert batch.prompt_lengths.tolist() == [tokens.prompt_length for tokens in served] and batch.prompt_lengths.all()
    size = min(max(tokens.input_ids) for tokens in served) + 1
    embedded = [tokens.input_ids for tokens in served if max(tokens.input_ids) < size]
    assert len(embedded) < len(served)
    checkpoint.encoder.encoder_config = dataclasses.replace(checkpoint.config, vocab_size=size)
    (batch,) = _calibration_batches(checkpoint, bundle, TEXTS, 16, 1)
    assert batch.input_ids.tolist() == [token for ids in embedded for token in ids]
