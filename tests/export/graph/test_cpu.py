"""The graph in ONNX Runtime's own CPU operators: its answers, its operators, and its place in bundles and commands."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from checkpoints import make_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import GraphProto, NodeProto
from reference_models import CASES, difference, packed_logits, token_ids
from torch import Tensor

from nopad.export.bundle import write_bundle
from nopad.export.graph.onnx import export_graph
from nopad.export.parity.samples import SAMPLES
from nopad.model.attention import sdpa_attention
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.encoder import PackedEncoder
from nopad.model.packing import pack
from nopad.runtime.bundle import open_bundle, write_manifest
from nopad.runtime.cli import run
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import load

NAME = "modernbert-single-mean"
DOMAIN = "com.microsoft"
LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 200, 600)
# One of each task and architecture; the other heads run with the slow tests.
FAST = {"modernbert-single-mean", "modernbert-token", "bert-single"}
Folders = Callable[[str], Path]
Ask = Callable[[Sequence[Sequence[int]], int], list[Tensor]]


def types_of(ids: Sequence[int]) -> list[int]:
    """Token types as of a pair of texts; ModernBERT has none."""
    return [0] * (len(ids) // 2) + [1] * (len(ids) - len(ids) // 2)


def asker(path: Path, artifact: Artifact, *, per_token: bool, types: bool) -> Ask:
    """The graph's answer to each sequence, packed with `filler` tokens behind them."""
    # An artifact of multiples is fed what comes; else the engine takes filler off, and the graph never sees it.
    engine = OnnxCpuEngine(path, dataclasses.replace(artifact, token_multiple=64), EngineOptions(threads=1))

    def ask(sequences: Sequence[Sequence[int]], filler: int) -> list[Tensor]:
        total = sum(map(len, sequences)) + filler
        batch = pack(sequences, [types_of(one) for one in sequences] if types else None, multiple=total)
        assert len(batch.input_ids) == total
        logits = torch.from_numpy(engine.run(batch))
        return list(logits[: batch.num_tokens].split(batch.lengths.tolist()) if per_token else logits)

    return ask


def ask_bundle(bundle: Path, name: str) -> Ask:
    opened = open_bundle(bundle)
    (artifact,) = opened.manifest.artifacts
    case = CASES[name]
    types = case.architecture == "bert"
    return asker(opened.file(artifact.file), artifact, per_token=case.per_token, types=types)


def encoder_of(folder: Path, **options: Any) -> PackedEncoder:
    return load_checkpoint(folder, attention=sdpa_attention, **options).encoder.eval()


def ask_encoder(encoder: PackedEncoder, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """PyTorch's answers, each sequence alone."""
    types = bool(encoder.encoder_config.type_vocab_size)
    return [packed_logits(encoder, [one], [types_of(one)] if types else None)[0] for one in sequences]


def bound(answers: Sequence[Tensor]) -> float:
    """The gate's bound: 1e-5, times the largest logit where that is over 1."""
    return 1e-5 * max(1.0, max(answer.abs().max().item() for answer in answers))


def to_multiple(sequences: Sequence[Sequence[int]], block: int = 64) -> int:
    return -sum(map(len, sequences)) % block


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST), id=n) for n in CASES])
def test_answers_are_the_encoders_and_the_plain_graphs(
    name: str, bundle: Folders, plain_bundle: Folders, checkpoint: Folders
) -> None:
    case = CASES[name]
    cpu, plain = ask_bundle(bundle(name), name), ask_bundle(plain_bundle(name), name)
    lengths = [min(length, 512) for length in LENGTHS] if case.architecture == "bert" else LENGTHS
    sequences = [token_ids(length) for length in lengths]
    want = ask_encoder(encoder_of(checkpoint(name), **case.load), sequences)
    near = bound(want)
    assert difference(plain(sequences, to_multiple(sequences)), want) <= near
    for filler in (0, to_multiple(sequences), 1):
        assert difference(cpu(sequences, filler), want) <= near
        assert difference(cpu(sequences[::-1], filler)[::-1], want) <= near
    for one, answer in zip(sequences, want, strict=True):
        assert difference(cpu([one], 0), [answer]) <= near  # the kernel without a mask
        assert difference(cpu([one], 64), [answer]) <= near  # not alone: filler is beside it
    pairs = [(0, 5), (3, 8), (4, 4), (0, 0)]
    for pair in pairs:
        assert difference(cpu([sequences[i] for i in pair], 0), [want[i] for i in pair]) <= near


@pytest.fixture(scope="module")
def both(bundle: Folders, checkpoint: Folders) -> dict[str, tuple[Ask, PackedEncoder]]:
    names = ("modernbert-single-mean", "modernbert-token", "bert-single")
    return {name: (ask_bundle(bundle(name), name), encoder_of(checkpoint(name), **CASES[name].load)) for name in names}


@settings(max_examples=40, derandomize=True)
@given(
    name=st.sampled_from(["modernbert-single-mean", "modernbert-token", "bert-single"]),
    lengths=st.lists(st.one_of(st.integers(1, 12), st.integers(1, 300)), min_size=1, max_size=7),
    filler=st.one_of(st.just(0), st.integers(1, 130)),
)
@example(name="modernbert-token", lengths=[1], filler=0)
@example(name="modernbert-token", lengths=[64, 64], filler=0)
@example(name="modernbert-token", lengths=[1, 1, 1, 300, 1], filler=0)
@example(name="modernbert-single-mean", lengths=[129], filler=127)
def test_any_stream_is_answered_as_its_texts_alone(
    both: dict[str, tuple[Ask, PackedEncoder]], name: str, lengths: list[int], filler: int
) -> None:
    ask, encoder = both[name]
    sequences = [token_ids(length, seed=place) for place, length in enumerate(lengths)]
    want = ask_encoder(encoder, sequences)
    assert difference(ask(sequences, filler), want) <= bound(want)


@pytest.mark.parametrize(
    "window", [32, 256, pytest.param(130, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.slow)]
)
def test_other_windows_and_blocks(window: int, tmp_path: Path) -> None:
    name = "modernbert-token"
    (tmp_path / "checkpoint").mkdir()
    make_checkpoint(name, tmp_path / "checkpoint", local_attention=window)
    encoder = encoder_of(tmp_path / "checkpoint")
    config = encoder.encoder_config
    assert (config.half_window, config.block) == (window // 2, 128 if window > 128 else 64)
    made = load_checkpoint(tmp_path / "checkpoint").encoder
    graph = export_graph(made, tmp_path / "model.cpu.onnx", target="cpu")
    assert graph.token_multiple == 1 and made.attention is None  # the encoder is as it was
    artifact = Artifact(
        file=graph.file.name,
        target="cpu",
        precision="fp32",
        layout="packed",
        inputs=graph.inputs,
        outputs=graph.outputs,
    )
    ask = asker(graph.file, artifact, per_token=True, types=False)
    edges = {window // 2, window, config.block, 2 * config.block} - {0}
    sequences = [token_ids(edge + step) for edge in sorted(edges) for step in (-1, 0, 1, 2) if edge + step]
    want = ask_encoder(encoder, sequences)
    for filler in (0, 5, to_multiple(sequences, config.block)):
        assert difference(ask(sequences, filler), want) <= bound(want)
    for one, answer in zip(sequences, want, strict=True):
        assert difference(ask([one], 0), [answer]) <= bound(want)
        assert difference(ask([one, one], 3), [answer, answer]) <= bound(want)  # of one window, or one token more


# --- what stands in the graph


def read(bundle: Path) -> GraphProto:
    return onnx.load(bundle / "model.cpu.onnx").graph


def branches(node: NodeProto) -> dict[str, GraphProto]:
    return {attribute.name: attribute.g for attribute in node.attribute if attribute.name.endswith("_branch")}


def everywhere(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, also those inside branches."""
    for node in graph.node:
        yield node
        for branch in branches(node).values():
            yield from everywhere(branch)


def fused(graph: GraphProto) -> list[NodeProto]:
    found = [node for node in graph.node if node.op_type == "MultiHeadAttention"]
    assert {node.domain for node in found} <= {DOMAIN}
    return found


@pytest.mark.parametrize("name", ["modernbert-single-mean", "bert-single"])
def test_attention_is_fused_and_chooses_by_the_sequences_there_are(name: str, bundle: Folders) -> None:
    graph = read(bundle(name))
    manifest = open_bundle(bundle(name)).manifest
    local, layers = len(manifest.architecture["local_layers"]), manifest.architecture["num_layers"]
    assert (local, layers) == ((2, 4) if name.startswith("modernbert") else (0, 3))
    chosen = [node for node in graph.node if node.op_type == "If"]
    conditions = Counter(node.input[0] for node in chosen)  # are sequences alone? are they within the window?
    assert sorted(conditions.values()) == [count for count in (local, layers - local) if count]
    assert not fused(graph)
    kinds: Counter[str] = Counter()
    for node in chosen:
        then, otherwise = (branches(node)[f"{which}_branch"] for which in ("then", "else"))
        (first,), (second,) = fused(then), fused(otherwise)
        if len(first.input) == 3:  # alone: without a mask
            kind, padded = "global", second
            assert "Gather" not in {inner.op_type for inner in then.node}
        else:
            kind, padded = "local", first
            assert second.input[5]  # the window, as a bias
        assert padded.input[4] and not padded.input[3]  # a key mask: lengths
        kinds[kind] += 1
    assert (kinds["global"], kinds["local"]) == (layers - local, local)
    assert not {"Softmax", "MatMul"} & {node.op_type for node in everywhere(graph)}
    rotary = [node for node in graph.node if node.op_type == "RotaryEmbedding"]
    assert len(rotary) == (2 * layers if name.startswith("modernbert") else 0)
    nodes = list(everywhere(graph))
    for names in ([node.name for node in nodes], [name for node in nodes for name in node.output]):
        assert len(set(names)) == len(names) and all(names)


@pytest.mark.parametrize("name", ["modernbert-single-mean", "modernbert-token", "bert-single", "bert-mlm"])
def test_nothing_is_copied_or_kept_in_vain(name: str, bundle: Folders) -> None:
    graph = read(bundle(name))
    assert "Split" not in {node.op_type for node in everywhere(graph)}
    used = {value for node in everywhere(graph) for value in node.input}
    assert {one.name for one in graph.initializer} <= used
    assert not graph.sparse_initializer


def test_residuals_are_added_where_products_are_made(bundle: Folders) -> None:
    graph = read(bundle(NAME))
    weights = {one.name: tuple(one.dims) for one in graph.initializer}
    products = {node.name: node for node in graph.node if node.op_type == "Gemm"}
    made = {output for node in products.values() for output in node.output}
    for node in graph.node:
        assert node.op_type != "Add" or not made & set(node.input), node.name
    for layer in range(4):
        for part, count, residual in (("attn.Wqkv", 3, 0), ("mlp.Wi", 2, 0), ("attn.Wo", 1, 1), ("mlp.Wo", 1, 1)):
            found = [node for key, node in products.items() if key.startswith(f"model.layers.{layer}.{part}/")]
            assert len(found) == count
            for node in found:
                assert len(node.input) == 2 + residual and not set(node.input[2:]) & weights.keys()
                width = {"attn.Wqkv": (64, 64), "mlp.Wi": (96, 64), "attn.Wo": (64, 64), "mlp.Wo": (64, 96)}[part]
                assert weights[node.input[1]] == width


@pytest.mark.parametrize("name", ["modernbert-single-mean", "bert-single"])
def test_the_manifest_asks_for_no_filler(name: str, bundle: Folders) -> None:
    opened = open_bundle(bundle(name))
    (artifact,) = opened.manifest.artifacts
    assert (artifact.target, artifact.precision, artifact.token_multiple) == ("cpu", "fp32", 1)
    assert artifact.file == "model.cpu.onnx"
    engine = OnnxCpuEngine(opened.file(artifact.file), artifact, EngineOptions(threads=1))
    filled, tight = (pack([token_ids(9), token_ids(70)], multiple=multiple) for multiple in (64, 1))
    np.testing.assert_array_equal(engine.run(filled), engine.run(tight))  # filler is taken off before the graph


# --- bundles and the command


@pytest.mark.slow
def test_of_both_graphs_the_one_for_cpus_is_opened_on_cpus(checkpoint: Folders, tmp_path: Path) -> None:
    written = write_bundle(load_checkpoint(checkpoint(NAME)), tmp_path, cpu=["fp32"], graphs=["fp32"])
    artifacts = written.manifest.artifacts
    logits = {}
    for listed in (artifacts, artifacts[::-1]):  # whichever stands first
        write_manifest(tmp_path, dataclasses.replace(written.manifest, artifacts=listed))
        for target, file in (("cpu", None), ("cpu", "model.cpu.onnx"), ("onnx", "model.onnx")):
            with load(tmp_path, engine="onnx-cpu", file=file, allow_unverified=True, threads=1) as model:
                assert model.artifact.target == target and model.status().engine == "onnx-cpu"
                assert [one.name for one in model.status().engines] == ["onnx-cpu"] * (1 if file else 2)
                logits[target, file] = np.stack(model.logits(list(SAMPLES[:3])))
    np.testing.assert_array_equal(logits["cpu", None], logits["cpu", "model.cpu.onnx"])
    np.testing.assert_allclose(logits["cpu", None], logits["onnx", "model.onnx"], atol=1e-5)


def test_fp16_is_refused(checkpoint: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bundle"
    folder = str(checkpoint(NAME))
    assert run(["export", folder, "--output", str(output), "--target", "cpu", "--precision", "fp32,fp16"]) == 2
    assert "--precision fp16 is for GPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("calibrated", [False, True], ids=["samples", "own texts"])
def test_int8_for_cpus_through_the_command(
    calibrated: bool, checkpoint: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, texts = tmp_path / "bundle", tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in SAMPLES * 4))
    command = ["export", str(checkpoint(NAME)), "--output", str(output), "--precision", "int8", "--target", "cpu"]
    code = run([*command, *(["--calibrate", str(texts)] if calibrated else []), "--threads", "1", "--json", "--quiet"])
    report = json.loads(capsys.readouterr().out)
    manifest = open_bundle(output).manifest
    (artifact,) = manifest.artifacts
    assert (artifact.file, artifact.target, artifact.precision) == ("model.cpu.int8.onnx", "cpu", "int8")
    assert code == (0 if report["parity"]["passed"] else 1) and (manifest.verdict == "verified") == (code == 0)
    told = artifact.quantized
    assert told is not None and told["scales"] == "per token"
    layers = {f"model.layers.{i}.{part}" for i in range(4) for part in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")}
    assert set(told["int8"]) | set(told["kept"]) == layers and not set(told["int8"]) & set(told["kept"])
    graph = onnx.load(output / artifact.file).graph
    integer = {node.name.split("/")[0] for node in graph.node if node.op_type == "MatMulIntegerToFloat"}
    exact = {node.name.split("/")[0] for node in graph.node if node.op_type == "Gemm"}
    assert integer == set(told["int8"]) and exact & layers == set(told["kept"])
    assert {path.name for path in output.iterdir()} == {*manifest.files, "manifest.json"}  # nothing of the fp32 graph
    with load(output, allow_unverified=True, threads=1) as model:
        assert model.artifact.file == artifact.file and len(model.predict(list(SAMPLES[:3]))) == 3
