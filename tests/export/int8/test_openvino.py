"""int8 for OpenVINO: weights rounded by what the layers read on texts, in the file that OpenVINO opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from int8_models import small_graph
from onnx import numpy_helper
from reference_models import CASES, token_ids
from repository import DATA

from nopad.export.bundle_files import write_graph, write_int8_graph
from nopad.export.int8.openvino import quantize_for_openvino
from nopad.export.progress import silent
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import PackedBatch, pack
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, open_bundle
from nopad.runtime.tokenizer import open_encoder

REVIEWS = DATA / "imdb"
LAYERS = [f"model.layers.{i}.{part}" for i in range(4) for part in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")]
FEW = pack([token_ids(12, 40)], multiple=1)  # tokens: weights are rounded to the nearest
Array = np.ndarray[Any, Any]


def answers(file: Path, batch: PackedBatch) -> Array:
    """ONNX Runtime's: the file's weights alone, its activations are not rounded."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {node.name: getattr(batch, node.name) for node in session.get_inputs()})[0])


def arrays(file: Path) -> dict[str, Array]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}


def of_type(stored: dict[str, Array], name: str) -> set[str]:
    return {key for key, array in stored.items() if array.dtype.name == name}


def quantized(file: Path, batch: PackedBatch) -> tuple[Path, dict[str, Any]]:
    output = file.with_name(f"int8.{file.name}")
    return output, quantize_for_openvino(file, output, [batch], silent)


def test_the_embedded_models_file(openvino_bundle: Path) -> None:
    exact, file = openvino_bundle / "model.openvino.onnx", openvino_bundle / "model.openvino.int8.onnx"
    assert 0.25 * exact.stat().st_size <= file.stat().st_size <= 0.3 * exact.stat().st_size
    stored = arrays(file)
    assert len(of_type(stored, "int8")) == 1 + 7 * 4 and not of_type(stored, "bfloat16")
    matrices = {name for name in of_type(stored, "float32") if min(stored[name].shape, default=0) > 1}
    assert {name.partition(".")[0] for name in matrices if stored[name].ndim == 2} == {"head", "classifier"}
    batch = pack([token_ids(length, 8000) for length in (3, 70, 129)], multiple=1)
    assert 0 < np.abs(answers(file, batch) - answers(exact, batch)).max() <= 0.1


def test_the_manifest_says_what_is_int8(openvino_bundle: Path) -> None:
    told = {one.precision: one.quantized for one in open_bundle(openvino_bundle).manifest.artifacts}
    assert told["fp32"] is None and told["bf16"] is None and told["int8"] is not None
    tokens, modules = told["int8"].pop("tokens"), told["int8"].pop("int8")
    assert sorted(modules) == sorted(LAYERS) and tokens > 0
    # Sums over 128 and 192 inputs: 64 is the largest group that divides both.
    assert told["int8"] == {"kept": [], "weight_bits": 8, "scales": "group", "group": 128}


def test_it_is_the_same_from_the_bundles_own_fp32_graph_and_from_one_of_its_own(
    openvino_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((openvino_bundle / "tokenizer.json").read_bytes())
    alone = write_int8_graph(load_checkpoint(DEFAULT_CHECKPOINT), tmp_path, "openvino", None, 512, silent)
    assert (tmp_path / alone.file).read_bytes() == (openvino_bundle / alone.file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", alone.file}


@pytest.mark.parametrize("decoder", [False, True])
def test_a_scale_for_each_channel_of_a_layer_and_each_row_of_embeddings(decoder: bool, tmp_path: Path) -> None:
    onnx.save(small_graph(decoder), tmp_path / "model.onnx")
    file, figures = quantized(tmp_path / "model.onnx", FEW)
    assert figures["int8"] == ["model.layers.0.mlp.Wo"] and figures["group"] == 0  # 16 inputs have no group
    exact, stored = arrays(tmp_path / "model.onnx"), arrays(file)
    names = {"layer": "layer_int8", "places": "places:int8"} | ({} if decoder else {"words": "words:int8"})
    assert of_type(stored, "int8") == set(names.values())
    # Embeddings that a decoder reads too are stored once; a head stays as it was.
    assert of_type(stored, "bfloat16") == ({"words.bf16"} if decoder else set())
    assert decoder or np.array_equal(stored["head"], exact["head"])
    for name, key in names.items():
        scales = stored["layer_scale" if name == "layer" else f"{key}:scale"].reshape(-1, 1)
        assert scales.shape == (len(exact[name]), 1) and scales.dtype == np.float32 and (scales > 0).all()
        assert (np.abs(stored[key] * scales - exact[name]) <= 0.50001 * scales).all()
        assert np.abs(stored[key].astype(int)).max() == 127 and name not in stored
    assert not stored["layer_int8"][5].any()
    onnx.checker.check_model(str(file), full_check=True)
    want = answers(tmp_path / "model.onnx", FEW)
    assert 0 < np.abs(answers(file, FEW) - want).max() <= 2e-2 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tables", "bf16"), [("bert-single", 3, 0), ("modernbert-mlm", 0, 1), ("bert-mlm", 2, 1)]
)
def test_other_architectures(
    name: str, tables: int, bf16: int, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = load_checkpoint(checkpoint(name), **CASES[name].load)
    exact = tmp_path / write_graph(loaded, tmp_path, "fp32", "openvino").file
    file, _ = quantized(exact, pack([token_ids(100)], multiple=1))
    stored = arrays(file)
    # Words, places and types of BERT; those of words are bf16 where a decoder reads them.
    assert sum("embeddings" in key for key in of_type(stored, "int8")) == tables
    assert len(of_type(stored, "bfloat16")) == bf16
    batch = pack([token_ids(length) for length in (3, 70, 129)], multiple=1)
    want = answers(exact, batch)
    assert 0 < np.abs(answers(file, batch) - want).max() <= 0.1 * max(1.0, float(np.abs(want).max()))


@pytest.mark.slow
@pytest.mark.skipif(not REVIEWS.is_dir(), reason="needs IMDb in NOPAD_DATA")
def test_texts_make_the_weights_more_exact(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    (tmp_path / "tokenizer.json").write_bytes((DEFAULT_CHECKPOINT / "tokenizer.json").read_bytes())
    exact = write_graph(checkpoint, tmp_path, "fp32", "openvino")
    nearest, _ = quantized(tmp_path / exact.file, FEW)
    with (REVIEWS / "train.jsonl").open() as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(60), strict=False)]
    fitted = write_int8_graph(checkpoint, tmp_path, "openvino", texts, 512, silent)
    assert fitted.precision == "int8" and fitted.quantized is not None and fitted.quantized["group"] == 128
    assert fitted.quantized["kept"] == [] and fitted.quantized["tokens"] > 8 * 192

    with (REVIEWS / "test.jsonl").open() as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(40), strict=False)]
    encoder = open_encoder(tmp_path / "tokenizer.json", 256)
    batch = pack([tokens.input_ids for tokens in encoder.encode(texts, "")], multiple=1)  # type: ignore[union-attr]
    want = answers(tmp_path / exact.file, batch)

    def error(file: Path) -> float:
        return float(np.sqrt(np.square(answers(file, batch) - want).mean()))

    # Embeddings are rounded to the nearest in both, so the layers' gain is a part of the whole.
    assert error(tmp_path / fitted.file) < error(nearest)
