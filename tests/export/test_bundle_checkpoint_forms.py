"""A checkpoint in any form -> a verified bundle that answers as transformers, or PEFT, does with the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import nopad.export.reference.plain
from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.export.reference.plain import plain_folder
from nopad.model.checkpoint.source import open_source
from nopad.runtime.atomic import sha256_of
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import cli
from nopad.runtime.predictor import load

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # that peft brings about
GetFolder = Callable[[str], Path]
TEXTS = ["A dull story, badly told.", "good", "the film is a splendid one and I would see it again at once"]
CLASSES = {
    "modernbert-single-cls": "AutoModelForSequenceClassification",
    "bert-single": "AutoModelForSequenceClassification",
}


def snapshot(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def answers(model: Any, tokenizer_folder: Path) -> list[np.ndarray]:
    """Probabilities of transformers for `TEXTS`, one at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    with torch.inference_mode():
        rows = [model.eval()(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    return [row.float().softmax(-1).numpy() for row in rows]


def assert_answers(bundle: Path, expected: list[np.ndarray]) -> None:
    with load(bundle, threads=1) as model:
        for answer, row in zip(model.predict(TEXTS), expected, strict=True):
            got = np.array([answer.scores[label] for label in model.labels])
            assert np.abs(got - row).max() <= 1e-5


def rewrite(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str = "model.safetensors", **save: Any
) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(change(weights), folder / name, **save)


def sharded(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for i in range(2):
        save_file({name: weights[name] for name in names[i::2]}, folder / f"model-0000{i + 1}-of-00002.safetensors")


def mid_training(folder: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (folder / name).write_bytes(b"nobody opens this")


FORMS: dict[str, Callable[[Path], Any]] = {
    "compiled": lambda folder: rewrite(folder, lambda w: {f"_orig_mod.{n}": t for n, t in w.items()}),
    "data parallel and compiled": lambda folder: rewrite(
        folder, lambda w: {f"module._orig_mod.{n}": t for n, t in w.items()}
    ),
    "lightning": lambda folder: rewrite(folder, lambda w: {f"model.{n}": t for n, t in w.items()}),
    "another wrapper": lambda folder: rewrite(folder, lambda w: {f"encoder.{n}": t for n, t in w.items()}),
    "no metadata": lambda folder: rewrite(folder, lambda w: w),
    "another name": lambda folder: rewrite(folder, lambda w: w, "model.fp16.safetensors", metadata={"format": "pt"}),
    "shards without an index": sharded,
    "mid-training": mid_training,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CLASSES)
def test_the_reference_opens_every_form(form: str, name: str, checkpoint: GetFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "c"))
    FORMS[form](folder)
    before = snapshot(folder)
    true = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint(name)).state_dict()
    with plain_folder(open_source(folder), "text-classification") as (plain, _):
        opened, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            plain, output_loading_info=True
        )
        assert not loading["missing_keys"]
        assert all(torch.equal(tensor, true[key]) for key, tensor in opened.state_dict().items())
        assert transformers.AutoTokenizer.from_pretrained(plain)("good").input_ids
        assert (plain == folder) == (form == "mid-training")
    assert snapshot(folder) == before and (plain == folder or not plain.exists())


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("data parallel and compiled", "modernbert-single-cls"),
        ("another wrapper", "bert-single"),
        ("no metadata", "bert-single"),
    ],
)
def test_forms_export_and_pass_the_gate(form: str, name: str, checkpoint: GetFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "c"))
    FORMS[form](folder)
    result = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(threads=1))
    assert result.passed and result.bundle.manifest.verdict == "verified" and result.remarks == ()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint(name))
    assert_answers(tmp_path / "bundle", answers(model, checkpoint(name)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_reads_other_floats_in_fp32(dtype: torch.dtype, checkpoint: GetFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("bert-single"), tmp_path / "c"))
    rewrite(folder, lambda w: {n: t.to(dtype) for n, t in w.items()}, metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    # a config.json that says less than the weights have: transformers 5 would round them
    (folder / "config.json").write_text(json.dumps({**raw, "torch_dtype": "bfloat16", "dtype": "bfloat16"}))
    result = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(threads=1))
    assert result.passed
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert_answers(tmp_path / "bundle", answers(model, folder))


# --- adapters


def make_adapter(folder: Path, base: Path, **settings: Any) -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules=["Wqkv", "Wi"], **settings)
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.fixture(scope="module")
def adapter(checkpoint: GetFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """An adapter's folder, its base's, and PEFT's model."""
    folder = tmp_path_factory.mktemp("adapter") / "mine"
    base = checkpoint("modernbert-single-cls")
    return folder, base, make_adapter(folder, base)


def test_an_adapter_is_merged_and_both_are_named(adapter: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder, base, adapted = adapter
    before = snapshot(folder)
    result = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(threads=1))
    assert result.passed and snapshot(folder) == before
    assert result.report is not None and result.report["versions"]["peft"] == peft.__version__
    assert_answers(tmp_path / "bundle", answers(adapted, base))
    source = open_bundle(tmp_path / "bundle").manifest.source
    assert source["name"] == "mine" and source["base"]["name"] == base.name
    assert source["sha256"] == {
        name: sha256_of(folder / name) for name in ("adapter_model.safetensors", "adapter_config.json")
    }
    assert source["base"]["sha256"]["model.safetensors"] == sha256_of(base / "model.safetensors")

    arguments = ["parity", str(tmp_path / "bundle"), "--reference", str(folder)]
    asked = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert asked.return_value == 0 and "is not the checkpoint" not in asked.output
    other = Path(shutil.copytree(base, tmp_path / "other"))
    rewrite(other, lambda w: {n: t * 1.5 for n, t in w.items()}, metadata={"format": "pt"})
    asked = CliRunner().invoke(cli, [*arguments, "--base", str(other)], standalone_mode=False)
    assert asked.return_value == 1 and "is not the checkpoint" in asked.output


def test_a_wrong_merge_does_not_pass(
    adapter: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nopad.model.checkpoint.adapter.Adapter.scale", lambda self, module, rank: 3.9)  # not 4
    assert not export_checkpoint(adapter[0], tmp_path / "bundle", ExportOptions(threads=1)).passed


def test_without_peft_the_merged_weights_are_transformers_own(
    adapter: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = nopad.export.reference.plain.importlib.util.find_spec
    monkeypatch.setattr(
        "nopad.export.reference.plain.importlib.util.find_spec", lambda name: None if name == "peft" else find(name)
    )
    with plain_folder(open_source(adapter[0]), "text-classification") as (plain, versions):
        assert versions == {"adapter": "merged by nopad itself"}
        opened = transformers.AutoModelForSequenceClassification.from_pretrained(plain)
        assert np.allclose(answers(opened, adapter[1]), answers(adapter[2], adapter[1]), atol=1e-5)
