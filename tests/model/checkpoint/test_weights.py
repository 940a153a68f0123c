"""Weight files in all the forms that real checkpoints have."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import Reference, labels
from safetensors.torch import load_file, save_file

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.weights import weight_files
from nopad.model.errors import CheckpointError

GetReference = Callable[[str], Reference]
HEADS = (
    "modernbert-single-cls",
    "bert-single",
    "modernbert-mlm",
    "bert-mlm",
    "modernbert-embed-default",
    "bert-embed-default",
)


def edited(
    reference: Reference, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], **options: Any
) -> Path:
    """A copy of the checkpoint with `change` applied to its weights."""
    shutil.copytree(reference.folder, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file(change(weights), folder / options.pop("name", path.name), **options)
    return folder


def same(folder: Path, reference: Reference, tolerance: float = 0.0) -> bool:
    ours = load_checkpoint(folder, **reference.case.load).encoder.state_dict()
    true = reference.encoder().state_dict()
    return all((ours[name] - true[name]).abs().max().item() <= tolerance for name in true)


# --- prefixes


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "encoder.", "module._orig_mod.", "net.backbone."]
)
@pytest.mark.parametrize("head", HEADS)
def test_a_prefix_common_to_all_names_is_taken_off(
    prefix: str, head: str, reference: GetReference, tmp_path: Path
) -> None:
    made = reference(head)
    folder = edited(made, tmp_path / "c", lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    assert same(folder, made)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_the_base_models_own_prefix_is_no_other(
    prefix: str, architecture: str, reference: GetReference, tmp_path: Path
) -> None:
    made = reference(f"{architecture}-embed-default")  # stored without it; a checkpoint with heads has it
    own = prefix + {"modernbert": "model.", "bert": "bert."}[architecture]
    folder = edited(made, tmp_path / "c", lambda weights: {own + name: tensor for name, tensor in weights.items()})
    assert same(folder, made)


def test_a_prefix_that_is_not_common_to_all_is_named(reference: GetReference, tmp_path: Path) -> None:
    def wrap(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        named = {"encoder." + name: tensor for name, tensor in weights.items() if "classifier" not in name}
        return named | {"output.weight": torch.ones(3, 64)}

    for head in HEADS[:2]:
        folder = edited(reference(head), tmp_path / head, wrap)
        with pytest.raises(
            CheckpointError, match=r"\d+ of the \d+ names in it begin with 'encoder\.'.*\(output.weight\)"
        ):
            load_checkpoint(folder)
    averaged = edited(
        reference("modernbert-single-cls"),
        tmp_path / "swa",
        lambda weights: {
            "n_averaged": torch.ones(()),
            **{f"module.{name}": tensor for name, tensor in weights.items()},
        },
    )
    with pytest.raises(CheckpointError, match=r"begin with 'module\.'.*\(n_averaged\)"):
        load_checkpoint(averaged)


# --- files


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "model.fp16.safetensors", "weights.safetensors"])
def test_the_only_file_may_have_any_name(name: str, reference: GetReference, tmp_path: Path) -> None:
    made = reference("bert-single")
    folder = edited(made, tmp_path / "c", lambda weights: weights, name=name)
    (folder / "adapter_model.safetensors").write_bytes(b"x")  # no file of the whole model
    assert weight_files(folder) == [folder / name] and same(folder, made)
    shutil.copy(folder / name, folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=rf"several other files of weights \(.*{re.escape(name)}"):
        weight_files(folder)


def shard(folder: Path, count: int, stem: str = "model") -> dict[str, str]:
    """Split model.safetensors; returns the weight_map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for i in range(count):
        file = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: weights[name] for name in names[i::count]}, folder / file)
        index |= dict.fromkeys(names[i::count], file)
    return index


@pytest.mark.parametrize("indexed", [None, "model.safetensors.index.json", "model.fp16.safetensors.index.json"])
def test_shards(indexed: str | None, reference: GetReference, tmp_path: Path) -> None:
    made = reference("modernbert-single-cls")
    folder = Path(shutil.copytree(made.folder, tmp_path / "c"))
    index = shard(folder, 3)
    if indexed:
        (folder / indexed).write_text(json.dumps({"metadata": {}, "weight_map": index}))
        save_file({"model.final_norm.weight": torch.zeros(64)}, folder / "old-00001-of-00001.safetensors")
    assert len(weight_files(folder)) == 3 and same(folder, made)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors"):
        load_checkpoint(folder)


# --- what is in the files


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, "mixed"])
def test_other_floats_are_cast_to_fp32(dtype: Any, head: str, reference: GetReference, tmp_path: Path) -> None:
    made = reference(head)
    kinds = [torch.float16, torch.float32, torch.bfloat16, torch.float64] if dtype == "mixed" else [dtype]

    def cast(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(kinds[i % len(kinds)]) for i, (name, tensor) in enumerate(sorted(weights.items()))}

    folder = edited(made, tmp_path / "c", cast)
    encoder = load_checkpoint(folder, **made.case.load).encoder
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert same(folder, made, 0.0 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype: torch.dtype, reference: GetReference, tmp_path: Path) -> None:
    def quantize(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: t.to(dtype) if "Wi" in n else t for n, t in weights.items()}

    folder = edited(reference("modernbert-single-cls"), tmp_path / "c", quantize)
    with pytest.raises(
        CheckpointError, match=r"'model\.layers\.\d\.mlp\.Wi\.weight' is stored as .*: the checkpoint is quan"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors"])
def test_quantization_config_is_refused_by_name(method: str, reference: GetReference) -> None:
    folder = reference("modernbert-single-cls").folder
    raw = json.loads((folder / "config.json").read_text())
    try:
        (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": {"quant_method": method}}))
        with pytest.raises(
            CheckpointError, match=rf"quantized \(quantization_config: {method}\).*checkpoint it was made"
        ):
            load_checkpoint(folder)
    finally:
        (folder / "config.json").write_text(json.dumps(raw))


def test_weights_of_other_heads_are_left_alone(reference: GetReference, tmp_path: Path) -> None:
    made = reference("modernbert-single-cls")
    extra = {
        "lm_head.weight": torch.ones(5, 5),
        "decoder.weight": torch.ones(200, 64),
        "optimizer.step": torch.ones(()),
    }
    assert same(edited(made, tmp_path / "c", lambda weights: weights | extra), made)


def test_a_head_of_another_size_names_both_sizes(reference: GetReference, tmp_path: Path) -> None:
    made = reference("bert-single")
    folder = edited(made, tmp_path / "c", lambda weights: weights)
    for count, names in ((2, "a, b"), (4, "a, b, c, d")):
        changes = {"id2label": dict(enumerate(names.split(", ")))}
        message = rf"classifier of the file has 3 outputs .*config.json names {count} labels \({names}\)"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(folder, config_changes=changes)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k not in ("id2label", "label2id")}))
    with pytest.raises(
        CheckpointError, match=r"3 outputs .*2 labels \(LABEL_0, LABEL_1\).*without id2label, transformers takes 2"
    ):
        load_checkpoint(folder)
    assert load_checkpoint(folder, config_changes=labels(5), new_head=True).missing == (
        "classifier.weight",
        "classifier.bias",
    )


@pytest.mark.parametrize("head", HEADS[:2])
def test_a_missing_head_is_said_to_be_random_elsewhere(head: str, reference: GetReference, tmp_path: Path) -> None:
    def behead(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}

    folder = edited(reference(head), tmp_path / "c", behead)
    with pytest.raises(
        CheckpointError, match=r"all of them of its head \(classifier\.weight, classifier\.bias\)"
    ) as caught:
        load_checkpoint(folder)
    for part in (
        "not fine-tuned for text-classification",
        "random weights",
        "nopad train --model",
        "--task embeddings",
    ):
        assert part in str(caught.value)


def test_tied_bias_of_bert_may_have_either_name(reference: GetReference, tmp_path: Path) -> None:
    made = reference("bert-mlm")
    bias = load_file(made.folder / "model.safetensors")["cls.predictions.bias"]
    for name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):

        def rename(weights: dict[str, torch.Tensor], name: str = name) -> dict[str, torch.Tensor]:
            kept = {key: tensor for key, tensor in weights.items() if not key.endswith("predictions.bias")}
            return {key: tensor for key, tensor in kept.items() if "decoder" not in key} | {name: bias}

        assert same(edited(made, tmp_path / name, rename), made)


@pytest.fixture
def folder(reference: GetReference, tmp_path: Path) -> Path:
    """A good ModernBERT classifier to damage."""
    return Path(shutil.copytree(reference("modernbert-single-cls").folder, tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_refused_with_the_way_out_and_never_opened(name: str, folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "opened"
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Trap(trap)}, folder / name)
    message = f"pickle \\({name}\\).*safetensors only. Convert.*save_pretrained\\(DIR, safe_serialization=True\\)"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    assert not trap.exists()


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_beside_safetensors_is_not_in_the_way(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert weight_files(folder) == [folder / "model.safetensors"]


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_truncated_safetensors(kept: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged or cut short.*copy or save it again"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["other.safetensors", "../checkpoint/model.safetensors"])
def test_shard_that_is_not_in_the_folder(name: str, folder: Path) -> None:
    # The second one exists, but a shard's name must not lead out of the folder.
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=f"names the shard '{name}', which is not in"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": []}'])
def test_broken_shard_index(content: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="index.json"):
        load_checkpoint(folder)
