"""Folders as sentence-transformers saves them: `modules.json` and the pooling beside the encoder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference_models import Reference

from nopad.model.checkpoint import load_checkpoint
from nopad.model.errors import CheckpointError

GetReference = Callable[[str], Reference]


def modules_json(folder: Path, *modules: str) -> None:
    entries = [{"type": f"sentence_transformers.models.{module}"} for module in modules]
    (folder / "modules.json").write_text(json.dumps(entries))


@pytest.fixture
def embedder(reference: GetReference, tmp_path: Path) -> Path:
    """A ModernBERT embedder as sentence-transformers saves it."""
    folder = Path(shutil.copytree(reference("modernbert-embed-default").folder, tmp_path / "st"))
    modules_json(folder, "Transformer", "Pooling")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    return folder


@pytest.mark.parametrize(
    ("pooling", "modules", "expected"),
    [
        ({"pooling_mode_cls_token": True}, ["Transformer", "Pooling"], ("cls", False)),
        ({"pooling_mode_mean_tokens": True}, ["Transformer", "Pooling", "Normalize"], ("mean", True)),
        ({"pooling_mode": "cls"}, ["Transformer", "Pooling"], ("cls", False)),  # sentence-transformers 6
        ({"pooling_mode": ["mean"]}, ["Transformer", "Pooling"], ("mean", False)),
    ],
)
def test_sentence_transformers_folder(
    pooling: dict[str, Any], modules: list[str], expected: tuple[str, bool], embedder: Path
) -> None:
    modules_json(embedder, *modules)
    (embedder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
    config = load_checkpoint(embedder).config
    assert (config.pooling, config.normalize) == expected
    assert load_checkpoint(embedder, normalize=not expected[1]).config.normalize is not expected[1]
    assert load_checkpoint(embedder, pooling="cls").config.pooling == "cls"


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
        {"pooling_mode": "max"},
        {"pooling_mode": ["cls", "max"]},
        {"pooling_mode": None},
    ],
)
def test_other_pooling_is_refused(pooling: dict[str, Any], embedder: Path) -> None:
    (embedder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(CheckpointError, match="pooling .* is not supported; nopad has cls and mean"):
        load_checkpoint(embedder)


def test_other_modules_are_refused(embedder: Path) -> None:
    modules_json(embedder, "Transformer", "Pooling", "Dense", "Normalize")
    with pytest.raises(CheckpointError, match=r"modules\.json: the module Dense is not supported"):
        load_checkpoint(embedder)
    # They make embeddings from what the encoder computes: another task does not ask them.
    assert load_checkpoint(embedder, task="text-classification", new_head=True).config.task == "text-classification"


@pytest.mark.parametrize("broken", ["modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["[", '["x"]'])
def test_broken_sentence_transformers_files(broken: str, content: str, embedder: Path) -> None:
    (embedder / broken).write_text(content)
    with pytest.raises(CheckpointError, match=broken):
        load_checkpoint(embedder)


def test_pooling_must_be_there(embedder: Path) -> None:
    (embedder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="names the module Pooling, but .* is missing"):
        load_checkpoint(embedder)
