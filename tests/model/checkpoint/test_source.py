"""The files that a checkpoint is read from."""

import json
from pathlib import Path

from nopad.model.checkpoint.adapter import Adapter
from nopad.model.checkpoint.source import Source, open_source
from nopad.runtime.bundle import DEFAULT_CHECKPOINT


def test_a_folder_is_its_own_home() -> None:
    source = open_source(DEFAULT_CHECKPOINT)
    assert source.folder == source.home == source.tokenizer == DEFAULT_CHECKPOINT
    assert source.base is None and source.adapter is None and source.remarks == ()
    assert source.files == source.weights == (DEFAULT_CHECKPOINT / "model.safetensors",)
    assert source.raw_config == json.loads((DEFAULT_CHECKPOINT / "config.json").read_text())


def test_a_folder_of_sentence_transformers_names_its_home(tmp_path: Path) -> None:
    (tmp_path / "0_Transformer").symlink_to(DEFAULT_CHECKPOINT.resolve())
    kind = "sentence_transformers.models.Transformer"
    (tmp_path / "modules.json").write_text(json.dumps([{"name": "0", "path": "0_Transformer", "type": kind}]))
    source = open_source(tmp_path)
    assert (source.folder, source.home) == (tmp_path, tmp_path / "0_Transformer")
    assert source.tokenizer == source.home and source.weights == (source.home / "model.safetensors",)


def test_an_adapter_has_its_bases_weights_and_tokenizer_but_for_its_own(tmp_path: Path) -> None:
    own, base = tmp_path / "adapter", tmp_path / "base"
    own.mkdir()
    weights = (base / "model.safetensors",)
    adapter = Adapter(folder=own, settings={})
    source = Source(folder=own, home=own, base=base, raw_config={}, weights=weights, adapter=adapter)
    assert source.files == (*weights, own / "adapter_model.safetensors")
    assert source.tokenizer == base
    (own / "vocab.txt").touch()
    assert source.tokenizer == own
