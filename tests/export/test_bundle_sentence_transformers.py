"""Folders that sentence-transformers saved: their bundles answer as `encode` does, key by key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gate_faults import gate_against
from st_folders import CASES, NEW, PROMPTS, TEXTS, edit, encode, encode_tokens

from nopad.export import bundle as export_bundle
from nopad.export.bundle import ExportOptions, export_checkpoint, write_bundle
from nopad.export.reference.sentence_transformers import Library, Reading, _follows
from nopad.model.checkpoint.load import Checkpoint, load_checkpoint
from nopad.runtime.cli import cli, run
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import Model, load

GetCheckpoint = Callable[[str], Path]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: GetCheckpoint) -> Callable[[str], Path]:
    """A folder for each name of CASES. Tests that change it copy it."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        case = CASES[name]
        if case.new and not NEW:
            pytest.skip("this version of sentence-transformers has no such module")
        if name not in made:
            encoder = checkpoint(f"{case.architecture}-embed-default")
            made[name] = case.build(encoder, tmp_path_factory.mktemp("st") / "folder")
        return made[name]

    return get


def without_tracing(checkpoint: Checkpoint, folder: Path, precision: str, target: str = "onnx") -> Artifact:
    """In the place of `write_graph`: nothing is traced, the torch engine answers."""
    (folder / "model.onnx").write_bytes(b"")
    return Artifact(
        file="model.onnx",
        target=target,
        precision=precision,
        layout="packed",
        inputs={"token_type_ids": ["tokens"]} if checkpoint.config.type_vocab_size else {},
        outputs={"logits": ["sequences", str(checkpoint.config.embedding_size)]},
    )


@pytest.fixture
def torch_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """The bundle of a folder for the torch engine alone, which is written at once."""
    monkeypatch.setattr(export_bundle, "write_graph", without_tracing)

    def make(folder: Path, name: str = "bundle", max_length: int | None = None, **asked: Any) -> Path:
        output = tmp_path / name
        output.mkdir()
        write_bundle(load_checkpoint(folder, **asked), output, torch="fp32", max_length=max_length)
        return output

    return make


def opened(bundle: Path) -> Model:
    return load(bundle, engine="torch", allow_unverified=True)


def difference(model: Model, folder: Path, **asked: Any) -> float:
    got, want = model.embed(TEXTS, **asked), encode(folder, TEXTS, **asked)
    assert got.shape == want.shape
    return float(np.abs(got - want).max())


def check_answers(model: Model, name: str, folder: Path) -> None:
    assert difference(model, folder) <= CLOSE
    assert difference(model, folder, prompt="in a word: ") <= CLOSE
    for prompt_name in CASES[name].model.get("prompts", {}):
        assert difference(model, folder, prompt_name=prompt_name) <= CLOSE


@pytest.mark.parametrize("name", CASES)
def test_embeddings_are_those_of_encode(
    name: str, folder: Callable[[str], Path], torch_bundle: Callable[..., Path]
) -> None:
    checkpoint = folder(name)
    with opened(torch_bundle(checkpoint)) as model:
        check_answers(model, name, checkpoint)
        report = gate_against(model.bundle, checkpoint, engine="torch")
    assert report["passed"], report
    assert {row["check"] for row in report["rows"]} >= {"encode", "max length", "prompts"}
    assert ("sentence-transformers" in report["versions"]) == _follows(checkpoint)


TOKENS = "token-embeddings"


@pytest.mark.parametrize("name", ["lower case, limit of the tokenizer arguments", "prompt not pooled", "oldest layout"])
def test_embeddings_of_tokens_are_those_of_the_transformer(
    name: str, folder: Callable[[str], Path], torch_bundle: Callable[..., Path]
) -> None:
    checkpoint = folder(name)
    with opened(torch_bundle(checkpoint, task=TOKENS)) as model:
        for asked in ({}, *({"prompt_name": prompt} for prompt in CASES[name].model.get("prompts", {}))):
            want = encode_tokens(checkpoint, TEXTS, **asked)
            for ours, theirs in zip(model.embed_tokens(TEXTS, **asked), want, strict=True):
                assert ours == pytest.approx(theirs, abs=CLOSE * max(1, float(np.abs(theirs).max())))
        report = gate_against(model.bundle, checkpoint, engine="torch")
    assert report["passed"], report
    assert {row["check"] for row in report["rows"]} >= {"max length", "prompts", "logits", "token ids"}


def test_what_would_change_each_tokens_vector_is_refused(
    folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for case, asked, words in (
        ("Dense of tokens, residual", [], "Dense changes each token's vector before the pooling"),
        ("oldest layout", ["--pooling", "mean"], "token-embeddings are not pooled"),
        ("oldest layout", ["--no-normalize"], "pooling and normalize are for --task embeddings"),
    ):
        assert run(["export", str(folder(case)), "--task", TOKENS, *asked, "-o", str(tmp_path / "bundle")]) == 3
        assert words in capsys.readouterr().err and not (tmp_path / "bundle").exists()


WHOLE = ("mean, unit, short limit", "prompt not pooled, all modes")  # through the exporter in the fast suite


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in WHOLE else pytest.mark.slow) for name in CASES]
)
def test_the_exported_graph_gives_the_same(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = folder(name)
    result = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert result.passed, result.report
    with load(tmp_path / "bundle") as model:
        check_answers(model, name, checkpoint)
        assert model.embed([]).shape == (0, model.embed(["a"]).shape[1])
        assert ("prompt_lengths" in model.artifact.inputs) == (not model.manifest.include_prompt)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["six poolings, Dense, LayerNorm, cut", "prompt not pooled, all modes"])
def test_every_target_gives_the_same(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Also plain ONNX, and int8, which only rounds."""
    checkpoint = folder(name)
    result = export_checkpoint(checkpoint, tmp_path / "plain", ExportOptions(target="onnx"))
    assert result.passed, result.report
    with load(tmp_path / "plain") as model:
        check_answers(model, name, checkpoint)
    int8 = export_checkpoint(checkpoint, tmp_path / "int8", ExportOptions(precision="int8", parity=False))
    with load(int8.bundle.path, allow_unverified=True) as model:
        assert model.artifact.precision == "int8"
        assert difference(model, checkpoint, prompt_name="query") < 0.5


def test_the_manifest_says_what_the_folder_says(
    folder: Callable[[str], Path], torch_bundle: Callable[..., Path]
) -> None:
    with opened(torch_bundle(folder("six poolings, Dense, LayerNorm, cut"))) as model:
        manifest = model.manifest
        assert manifest.pooling == "cls+max+mean+mean_sqrt_len_tokens+weightedmean+lasttoken"
        assert manifest.similarity_fn_name == "dot"
        assert (manifest.truncate_dim, manifest.normalize, manifest.include_prompt) == (10, False, True)
        assert manifest.prompts == {"query": "query: ", "document": "", **PROMPTS}
        assert manifest.default_prompt_name == "passage"
        assert set(manifest.source["sha256"]) >= {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
        with pytest.raises(UsageError, match="no prompt named 'answer'; it has query, "):
            model.embed(["a"], prompt_name="answer")
        with pytest.raises(UsageError, match="not both"):
            model.embed(["a"], prompt_name="query", prompt="query: ")
        # The prompt of the whole model, as predict --prompt-name sets it.
        with load(model.bundle.path, engine="torch", allow_unverified=True, prompt_name="query") as asked:
            assert np.array_equal(asked.embed(TEXTS), model.embed(TEXTS, prompt_name="query"))
            vectors = [answer.vector for answer in asked.results(iter(TEXTS))]
            assert np.array_equal(np.stack(vectors), asked.embed(TEXTS))


def test_predict_takes_prompts(
    folder: Callable[[str], Path], torch_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = folder("six poolings, Dense, LayerNorm, cut")
    bundle = str(torch_bundle(checkpoint))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def run(*arguments: str) -> list[list[float]]:
        options = ["--engine", "torch", "--allow-unverified", "--input", str(tmp_path / "texts.jsonl"), *arguments]
        result = CliRunner().invoke(cli, ["predict", bundle, *options], standalone_mode=False)
        assert result.exception is None, result.exception
        return [json.loads(line)["vector"] for line in result.stdout.splitlines()]

    for arguments, asked in (
        ((), {}),
        (("--prompt-name", "query"), {"prompt_name": "query"}),
        (("--prompt", "well, "), {"prompt": "well, "}),
        (("--prompt", ""), {"prompt": ""}),
    ):
        assert np.abs(np.array(run(*arguments)) - encode(checkpoint, TEXTS, **asked)).max() <= CLOSE
    with pytest.raises(AssertionError, match="no prompt named 'answer'"):
        run("--prompt-name", "answer")


@pytest.mark.parametrize(
    "asked",
    [{"pooling": "max"}, {"normalize": False}, {"normalize": True}, {"max_length": 12}],
    ids=str,
)
def test_what_export_is_asked_for_overrides_the_folder(
    asked: dict[str, Any], folder: Callable[[str], Path], torch_bundle: Callable[..., Path]
) -> None:
    checkpoint = folder("mean, unit, short limit")
    with opened(torch_bundle(checkpoint, **asked)) as model:
        assert model.manifest.overrides == asked
        norms = np.linalg.norm(model.embed(TEXTS), axis=1)
        assert np.allclose(norms, 1, atol=1e-5) == (asked.get("normalize") is not False)
        report = gate_against(model.bundle, checkpoint, engine="torch")
    assert report["passed"], report


def drop(file: str, *keys: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({key: value for key, value in raw.items() if key not in keys}))

    return change


def put(file: str, **keys: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, **keys)


def without_module(kind: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        kept = [module for module in modules if not module["type"].endswith(f".{kind}")]
        (folder / "modules.json").write_text(json.dumps(kept))

    return change


ABOUT, TRANSFORMER, POOLING = "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"
RICH, SHORT = "six poolings, Dense, LayerNorm, cut", "mean, unit, short limit"
# name -> folder, what the bundle leaves out, which check must say so
LEFT_OUT: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "max_seq_length": (SHORT, drop(TRANSFORMER, "max_seq_length"), "encode"),
    "max_seq_length, by its number": (SHORT, put(TRANSFORMER, max_seq_length=400), "max length"),
    "Normalize": (SHORT, without_module("Normalize"), "encode"),
    "do_lower_case": ("lower case, limit of the tokenizer arguments", drop(TRANSFORMER, "do_lower_case"), "encode"),
    "tokenizer_args": ("lower case, limit of the tokenizer arguments", drop(TRANSFORMER, "tokenizer_args"), "encode"),
    "default_prompt_name": (RICH, drop(ABOUT, "default_prompt_name"), "encode"),
    "a prompt's words": (RICH, put(ABOUT, prompts={**PROMPTS, "query": "query:"}), "encode"),
    "all prompts": (RICH, drop(ABOUT, "prompts", "default_prompt_name"), "prompts"),
    "truncate_dim": (RICH, drop(ABOUT, "truncate_dim"), "encode"),
    "similarity_fn_name": (RICH, drop(ABOUT, "similarity_fn_name"), "similarity"),
    "LayerNorm": (RICH, without_module("LayerNorm"), "encode"),
    "activation": (RICH, put("2_Dense/config.json", activation_function="torch.nn.modules.linear.Identity"), "encode"),
    "include_prompt": ("prompt not pooled", put(POOLING, include_prompt=True), "encode"),
    "pooling": ("prompt not pooled", put(POOLING, pooling_mode="weightedmean"), "logits"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_the_gate_catches_a_key_that_was_left_out(
    name: str, folder: Callable[[str], Path], torch_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    case, leave_out, check = LEFT_OUT[name]
    poorer = Path(shutil.copytree(folder(case), tmp_path / "poorer"))
    leave_out(poorer)
    with opened(torch_bundle(poorer)) as model:
        report = gate_against(model.bundle, folder(case), engine="torch")
    assert not report["passed"]
    assert check in {row["check"] for row in report["rows"] if not row["passed"]}, report


@pytest.mark.parametrize("name", CASES)
def test_the_reading_without_the_library_is_equal_to_it(name: str, folder: Callable[[str], Path]) -> None:
    if not _follows(folder(name)):
        pytest.skip("this version of sentence-transformers does not read all of the folder")
    reading, library = Reading(folder(name), {}), Library(folder(name), {})
    assert reading.max_length == library.max_length
    assert reading.prompts == library.prompts
    assert reading.default_prompt_name == library.default_prompt_name
    assert reading.similarity_fn_name == library.similarity_fn_name
    for asked in ({}, {"prompt_name": "query"}, {"prompt": "so to speak: "}):
        assert np.abs(reading.encode(TEXTS, **asked) - library.encode(TEXTS, **asked)).max() <= CLOSE
    inputs = dict(library.tokenizer(TEXTS[:3], padding=True, return_tensors="pt"))
    assert np.abs((reading.rows(dict(inputs)) - library.rows(dict(inputs))).numpy()).max() <= CLOSE
    for overrides in ({"normalize": True}, {"normalize": False}):
        ours, theirs = Reading(folder(name), overrides), Library(folder(name), overrides)
        assert np.abs(ours.encode(TEXTS) - theirs.encode(TEXTS)).max() <= CLOSE


def test_a_verified_bundle_where_the_library_is_missing(
    folder: Callable[[str], Path], torch_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nopad.export.reference.sentence_transformers._installed", lambda: False)
    with opened(torch_bundle(folder(RICH))) as model:
        report = gate_against(model.bundle, folder(RICH), engine="torch")
    assert report["passed"], report
    assert "encode" in {row["check"] for row in report["rows"]}
    assert "sentence-transformers" not in report["versions"]
