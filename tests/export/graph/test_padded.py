"""Architectures without a packed encoder: the padded exporter, and how it is chosen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from checkpoints import make_checkpoint
from matrix import SHAPES, make, reference

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.export.errors import ExportError
from nopad.export.graph.padded import load_padded
from nopad.model.checkpoint.source import open_source
from nopad.model.errors import CheckpointError
from nopad.runtime import load
from nopad.runtime.cli import main

ROBERTA = SHAPES["roberta-base"]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A RoBERTa classifier, its bundle, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("roberta")
    model = make(ROBERTA, folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions(parity=False))
    return folder / "checkpoint", folder / "bundle", model


def test_the_command_chooses_it_and_says_so(
    roberta: tuple[Path, Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = roberta
    command = ["export", str(folder), "--output", str(tmp_path / "bundle"), "--json"]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "roberta has no packed encoder in nopad, so the bundle is padded" in " ".join(said.err.split())
    answer = json.loads(said.out)
    assert answer["verdict"] == "verified" and len(answer["remarks"]) == 1
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    (artifact,) = manifest["artifacts"]
    assert (artifact["layout"], artifact["exporter"], artifact["target"]) == ("padded", "padded", "onnx")
    assert artifact["inputs"] == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}
    assert artifact["outputs"] == {"logits": ["batch", "3"]}
    assert manifest["max_length"] == 512  # of 514 rows: RoBERTa counts from the id behind the padding's
    assert manifest["pad_token_id"] == 1


def test_a_packed_architecture_is_not_padded_unless_asked(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("bert-single")
    packed = export_checkpoint(folder, tmp_path / "packed", ExportOptions(parity=False))
    padded = export_checkpoint(folder, tmp_path / "padded", ExportOptions(exporter="padded"))
    assert packed.remarks == padded.remarks == () and padded.passed
    assert packed.bundle.manifest.artifacts[0].layout == "packed"
    assert "token_type_ids" in padded.bundle.manifest.artifacts[0].inputs
    texts = ["ok", "a tender, sharply written film", ("two", "parts")]
    with load(tmp_path / "packed", allow_unverified=True) as one, load(tmp_path / "padded") as other:
        for ours, theirs in zip(one.logits(texts), other.logits(texts), strict=True):
            assert np.abs(ours - theirs).max() <= 1e-5


def test_lengths_and_batches_are_free(roberta: tuple[Path, Path, Any]) -> None:
    """The graph is traced at two texts of seven tokens; every length and mixture must answer as transformers."""
    _, bundle, model = roberta
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 2, 3, 7, 8, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512)
    rows = [torch.randint(4, 300, (length,), generator=generator).tolist() for length in lengths]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in rows]
    with load(bundle, allow_unverified=True, threads=1) as served:
        together = served.run_ids(rows)
        for ids, ours, theirs in zip(rows, together, expected, strict=True):
            assert np.abs(ours - theirs).max() <= 1e-5, len(ids)
            assert np.abs(served.run_ids([ids])[0] - theirs).max() <= 1e-5, len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deberta-v3-small", "all-mpnet-base-v2", "xlm-roberta-base"])
def test_every_length_of_relative_positions(name: str, tmp_path: Path) -> None:
    """Positions in buckets are made by Python code in transformers: its trace must hold for any length."""
    shape = SHAPES[name]
    model = make(shape, tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(parity=False))
    generator = torch.Generator().manual_seed(0)
    with load(tmp_path / "bundle", allow_unverified=True, threads=1) as served, torch.no_grad():
        for length in [*range(1, 40), *range(120, 136), *range(250, 264), 383, 384, 500, 511, 512]:
            ids = torch.randint(5, 200, (1, length), generator=generator)
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
            if shape.task == "embeddings":
                theirs = torch.nn.functional.normalize(out.last_hidden_state.mean(1), dim=-1)[0]
            else:
                theirs = out.logits[0]
            ours = served.run_ids([ids[0].tolist(), [5] * 9])[0]
            scale = max(1.0, float(theirs.abs().max()))
            assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * scale, length


def test_the_longest_text_is_cut_at_the_positions(roberta: tuple[Path, Path, Any]) -> None:
    folder, bundle, model = roberta
    text = "An hour of my life I want back. " * 200
    with load(bundle, allow_unverified=True) as served:
        (answer,) = served.predict([text], return_logits=True)
        assert answer.tokens_used == 512 < answer.tokens
        (expected,) = reference(ROBERTA, folder, model, [text], 512)
        assert answer.logits is not None
        assert np.abs(np.array(answer.logits) - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("task", "pooling"),
    [
        ("embeddings", "cls"),
        ("embeddings", "max+mean"),
        ("token-embeddings", ""),
        ("token-classification", ""),
        ("fill-mask", ""),
    ],
)
def test_tasks_and_poolings(task: str, pooling: str, tmp_path: Path) -> None:
    make_checkpoint("bert-single", tmp_path / "c")  # its tokenizer
    config = transformers.ElectraConfig(
        vocab_size=420, embedding_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    kind = {"token-classification": "ForTokenClassification", "fill-mask": "ForMaskedLM"}.get(task, "Model")
    torch.manual_seed(0)
    model = getattr(transformers, f"Electra{kind}")(config).eval()
    model.save_pretrained(tmp_path / "c")
    options: Any = {"pooling": pooling, "normalize": True} if task == "embeddings" else {}
    options |= {"task": task} if task == "token-embeddings" else {}
    # transformers has no pooling to be the gate's reference for several modes in one.
    result = export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(parity="+" not in pooling, **options))
    assert result.passed
    ids = [[5, 9, 30, 31], [40, 41]]
    with load(tmp_path / "b", allow_unverified=True) as served, torch.no_grad():
        for row, ours in zip(ids, served.run_ids(ids), strict=True):
            out = model(input_ids=torch.tensor([row]))
            if task == "embeddings":
                hidden = out.last_hidden_state[0]
                want = hidden[0] if pooling == "cls" else torch.cat([hidden.amax(0), hidden.mean(0)])
                want = torch.nn.functional.normalize(want, dim=-1)
            elif task == "token-embeddings":
                want = out.last_hidden_state[0]
            else:
                want = out.logits[0]
            assert ours.shape == tuple(want.shape)
            assert np.abs(ours - want.numpy()).max() <= 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], "a padded bundle (--exporter padded) is fp32 ONNX; int8, fp16, bf16 and engines"),
        (
            ["--target", "torch"],
            "need --exporter nopad, for architectures that it packs: modernbert, bert, eurobert, ultrabert",
        ),
        (["--exporter", "nopad"], "model_type 'roberta' has no packed encoder"),
        (["--pooling", "cls"], "pooling 'cls' is for embeddings; a roberta pools in its own way"),
        (["--max-length", "513"], "--max-length 513 is outside 3..512"),
    ],
)
def test_what_a_padded_bundle_cannot_be(
    options: list[str],
    words: str,
    roberta: tuple[Path, Path, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["export", str(roberta[0]), "--output", str(tmp_path / "b"), "--quiet", *options]) != 0
    assert words in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_is_missing_is_not_made_up(roberta: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(roberta[0], tmp_path / "c")
    with pytest.raises(ExportError, match="has no weights for token-classification: classifier"):
        load_padded(open_source(folder), task="token-classification")


def test_remote_code_is_not_run(roberta: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(roberta[0], tmp_path / "c")
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"model_type": "own_encoder", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "own.py").write_text("raise SystemExit('remote code has run')")
    with pytest.raises(CheckpointError, match="nopad does not run remote code"):
        load_padded(open_source(folder))


def test_the_graph_is_plain_onnx(roberta: tuple[Path, Path, Any]) -> None:
    graph = onnx.load(roberta[1] / "model.onnx")
    assert {entry.domain for entry in graph.opset_import} <= {"", "ai.onnx"}
    assert not any(node.metadata_props for node in graph.graph.node)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 under transformers 5.23
def test_an_adapter_is_merged_into_its_base(roberta: tuple[Path, Path, Any], tmp_path: Path) -> None:
    import peft

    base, _, _ = roberta
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    result = export_checkpoint(tmp_path / "adapter", tmp_path / "bundle", ExportOptions(base=base))
    assert result.passed and "roberta has no packed encoder" in result.remarks[0]
    merged = adapted.merge_and_unload().eval()
    ids = [0, 30, 40, 50, 2]
    with load(tmp_path / "bundle", threads=1) as served, torch.no_grad():
        want = merged(input_ids=torch.tensor([ids])).logits[0].numpy()
        assert np.abs(served.run_ids([ids])[0] - want).max() <= 1e-5


@pytest.mark.slow
def test_a_setfit_classifier_on_mpnet(tmp_path: Path) -> None:
    import joblib
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path / "setfit"
    make(SHAPES["all-mpnet-base-v2"], folder)
    texts = ["a dull film", "splendid", "the worst hour of my life", "tender and sharply written"]
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts)
    head = LogisticRegression().fit(vectors, [0, 1, 0, 1])
    joblib.dump(head, folder / "model_head.pkl")
    (folder / "config_setfit.json").write_text('{"normalize_embeddings": false, "labels": ["bad", "good"]}')
    result = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(allow_pickle=True))
    assert result.passed
    with load(tmp_path / "bundle") as served:
        assert served.labels == ("bad", "good")
        scores = np.array([[answer.scores[label] for label in served.labels] for answer in served.predict(texts)])
    assert np.abs(scores - head.predict_proba(vectors)).max() <= 1e-5
