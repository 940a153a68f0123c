"""Files of sentence-transformers: every key is read, has no effect, or is refused with its file and value."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import Reference
from safetensors.torch import save_file

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.sentence_transformers import read_pipeline, transformer_folder
from nopad.model.config import EmbeddingModule
from nopad.model.errors import CheckpointError
from nopad.model.head import Task

GetReference = Callable[[str], Reference]
ABOUT, TRANSFORMER, POOLING = "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"
DENSE: dict[str, Any] = {"in_features": 64, "out_features": 16, "bias": True}


def write(folder: Path, file: str, content: Any) -> None:
    (folder / file).parent.mkdir(exist_ok=True, parents=True)
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))


def modules_json(folder: Path, *kinds: str) -> None:
    paths = ["", *(f"{i}_{kind.rsplit('.', 1)[-1]}" for i, kind in enumerate(kinds[1:], 1))]
    names = (kind if "." in kind else f"sentence_transformers.models.{kind}" for kind in kinds)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(zip(paths, names, strict=True))
    ]
    write(folder, "modules.json", listed)


@pytest.fixture
def embedder(reference: GetReference, tmp_path: Path) -> Path:
    """A ModernBERT embedder of sentence-transformers, and beside it a Dense module that modules.json does not name."""
    folder = Path(shutil.copytree(reference("modernbert-embed-default").folder, tmp_path / "st"))
    modules_json(folder, "Transformer", "Pooling")
    write(folder, POOLING, {"pooling_mode_cls_token": True})
    write(folder, "2_Dense/config.json", DENSE)
    save_file(
        {"linear.weight": torch.ones(16, 64), "linear.bias": torch.ones(16)}, folder / "2_Dense/model.safetensors"
    )
    return folder


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": ["lasttoken", "max"]}, "lasttoken+max"),
        # The flags have an order of their own, whatever theirs is in the file.
        (
            {"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
            "cls+max+lasttoken",
        ),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"word_embedding_dimension": 64}, "mean"),
    ],
)
def test_pooling(pooling: dict[str, Any], expected: str, embedder: Path) -> None:
    write(embedder, POOLING, pooling)
    config = load_checkpoint(embedder).config
    assert (config.pooling, config.normalize, config.modules) == (expected, False, ())
    assert config.embedding_size == 64 * len(expected.split("+"))
    assert load_checkpoint(embedder, pooling="max").config.pooling == "max"


def test_normalisation_is_a_module_unless_it_is_the_end(embedder: Path) -> None:
    modules_json(embedder, "Transformer", "Normalize", "Pooling", "Dropout", "Normalize")
    write(embedder, "2_Pooling/config.json", {"pooling_mode": "mean"})
    config = load_checkpoint(embedder).config  # before the pooling there is nothing to normalise yet
    assert (config.normalize, config.modules) == (True, ())
    assert load_checkpoint(embedder, normalize=False).config.normalize is False
    write(embedder, ABOUT, {"truncate_dim": 8})
    config = load_checkpoint(embedder).config
    assert (config.normalize, config.modules) == (False, (EmbeddingModule(kind="Normalize"),))
    assert config.embedding_size == 8
    config = load_checkpoint(embedder, normalize=False).config
    assert (config.normalize, config.modules, config.truncate_dim) == (False, (), 8)
    assert load_checkpoint(embedder, normalize=True).config.normalize is True  # after the truncation, as encode does


def test_another_task_does_not_ask_them(embedder: Path) -> None:
    modules_json(embedder, "Transformer", "Pooling", "WordEmbeddings")
    with pytest.raises(CheckpointError, match=r"modules\.json: the module WordEmbeddings is not supported"):
        load_checkpoint(embedder)
    tasks: tuple[Task, ...] = ("token-classification", "text-classification")
    for task in tasks:
        assert load_checkpoint(embedder, task=task, new_head=True).config.task == task


# file -> content, telling part of the message
REFUSED: dict[str, tuple[str, Any, str]] = {
    "not JSON": ("modules.json", "[", r"modules\.json is not valid JSON"),
    "no objects": ("modules.json", ["x"], r"modules\.json is not a list of objects"),
    "no modules": ("modules.json", [], r"modules\.json is not a list of objects"),
    "no path": ("modules.json", [{"type": "sentence_transformers.models.Transformer"}], "path None"),
    "absolute": (
        "modules.json",
        [{"type": "sentence_transformers.T", "path": "/etc"}],
        "'/etc' leads out of the folder",
    ),
    "pooling list": (POOLING, '["x"]', r"1_Pooling/config\.json holds a JSON list"),
    "pooling mode": (
        POOLING,
        {"pooling_mode": "median"},
        r"config\.json: pooling \['median'\] is not supported; nopad has cls, max",
    ),
    "no mode": (POOLING, {"pooling_mode": []}, r"pooling \[\] is not supported"),
    "pooling key": (
        POOLING,
        {"pooling_mode": "cls", "alpha": 2},
        r"1_Pooling/config\.json: the key 'alpha' \(value 2\) is unknown",
    ),
    "pooling flag": (POOLING, {"pooling_mode_cls_token": "yes"}, "pooling_mode_cls_token is 'yes', expected a bool"),
    "key": (
        ABOUT,
        {"matryoshka": [1]},
        r"config_sentence_transformers\.json: the key 'matryoshka' \(value \[1\]\) is unknown",
    ),
    "model type": (
        ABOUT,
        {"model_type": "SparseEncoder"},
        "model_type 'SparseEncoder' is not supported: its vectors are sparse",
    ),
    "several vectors": (ABOUT, {"model_type": "MultiVectorEncoder"}, "a vector for each token"),
    "unknown type": (
        ABOUT,
        {"model_type": "Oracle"},
        "model_type 'Oracle' is not supported: nopad has SentenceTransformer",
    ),
    "default prompt": (
        ABOUT,
        {"default_prompt_name": "ask"},
        r"default_prompt_name 'ask' is not one of its prompts \(query, document\)",
    ),
    "prompt": (ABOUT, {"prompts": {"ask": 3}}, "the prompt 'ask' is 3, expected a str"),
    "prompts": (ABOUT, {"prompts": ["ask"]}, r"prompts is \['ask'\], expected a dict"),
    "truncation": (ABOUT, {"truncate_dim": 0}, "truncate_dim 0 keeps nothing"),
    "truncation by text": (ABOUT, {"truncate_dim": "32"}, "truncate_dim is '32', expected a int"),
    "similarity": (ABOUT, {"similarity_fn_name": "maxsim"}, "similarity_fn_name 'maxsim' is not supported"),
    "length": (TRANSFORMER, {"max_seq_length": 2}, "max_seq_length 2 leaves no room"),
    "length by text": (TRANSFORMER, {"max_seq_length": "256"}, "max_seq_length is '256', expected a int"),
    "chat": (
        TRANSFORMER,
        {"modality_config": {"message": {"method": "forward"}}},
        "modality_config .* is not supported",
    ),
    "task": (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask' is not supported"),
    "output": (TRANSFORMER, {"module_output_name": "scores"}, "module_output_name 'scores' is not supported"),
    "queries": (TRANSFORMER, {"query_length": 32}, "query_length 32 is not supported"),
    "processing": (
        TRANSFORMER,
        {"processing_kwargs": {"text": {"max_length": 9}}},
        "processing_kwargs .* is not supported",
    ),
    "tokenizer": (TRANSFORMER, {"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path 'other' is not supported"),
    "config": (
        TRANSFORMER,
        {"config_args": {"num_hidden_layers": 2}},
        r"config_args \{'num_hidden_layers': 2\} is not supported",
    ),
    "transformer key": (TRANSFORMER, {"strip": True}, r"sentence_bert_config\.json: the key 'strip' \(value True\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, embedder: Path) -> None:
    file, content, message = REFUSED[name]
    write(embedder, file, content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(embedder)


REFUSED_DENSE: dict[str, tuple[dict[str, Any], str]] = {
    "activation": (
        {"activation_function": "my.Act"},
        "activation_function 'my.Act' is not supported; nopad has torch.nn's Identity",
    ),
    "no module": ({"activation_function": "torch.nn.functional.gelu"}, "gelu' is not supported"),
    "size": ({"in_features": 63}, "the module Dense takes rows of 63 elements, but gets rows of 64"),
    "no size": ({"out_features": None}, "out_features is None, expected a size"),
    "output": ({"module_output_name": "other"}, "module_output_name 'other' is not supported"),
    "input": ({"module_input_name": "other"}, "module_input_name 'other' is not supported"),
    "of tokens": ({"module_input_name": "token_embeddings"}, "changes tokens after they were pooled"),
    "key": ({"scale": 2}, r"2_Dense/config\.json: the key 'scale' \(value 2\) is unknown"),
    "weights": ({"out_features": 17}, r"2_Dense/model\.safetensors holds .* its config\.json asks for"),
    "bias": ({"bias": False}, r"2_Dense/model\.safetensors holds "),
}


@pytest.mark.parametrize("name", REFUSED_DENSE)
def test_refused_dense(name: str, embedder: Path) -> None:
    changes, message = REFUSED_DENSE[name]
    modules_json(embedder, "Transformer", "Pooling", "Dense")
    assert load_checkpoint(embedder).config.embedding_size == 16
    write(embedder, "2_Dense/config.json", {**DENSE, **changes})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(embedder)


REFUSED_CHAINS: dict[str, tuple[tuple[str, ...], str]] = {
    "no pooling": (("Transformer",), "names no Pooling"),
    "no transformer": (
        ("StaticEmbedding",),
        "the first module is StaticEmbedding, expected Transformer: it has no encoder",
    ),
    "images": (("CLIPModel",), "it reads images"),
    "router": (
        ("sentence_transformers.base.modules.router.Router",),
        "queries and documents through different modules",
    ),
    "router behind": (("Transformer", "Router"), "the module Router is not supported: it sends queries"),
    "sparse": (("Transformer", "sentence_transformers.sparse_encoder.models.SpladePooling"), "SpladePooling.*sparse"),
    "several vectors": (("Transformer", "sentence_transformers.x.MultiVectorMask"), "a vector for each token"),
    "other": (
        ("Transformer", "Pooling", "LSTM"),
        "the module LSTM is not supported; nopad has Transformer, Pooling, Dense",
    ),
    "own code": (
        ("Transformer", "Pooling", "my_code.Pooling"),
        "my_code.Pooling is custom code, which nopad does not run",
    ),
    "own transformer": (("modeling_own.Transformer", "Pooling"), "custom code"),
    "dense first": (("Transformer", "Dense", "Pooling"), "the module Dense stands before the Pooling"),
    "pooled twice": (("Transformer", "Pooling", "Pooling"), "a second Pooling"),
    "missing files": (
        ("Transformer", "Pooling", "LayerNorm"),
        "names the module LayerNorm, but .*config.json is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSED_CHAINS)
def test_refused_chains(name: str, embedder: Path) -> None:
    kinds, message = REFUSED_CHAINS[name]
    modules_json(embedder, *kinds)
    for number, kind in enumerate(kinds[1:], 1):
        if kind in ("Pooling", "Dense"):
            write(embedder, f"{number}_{kind}/config.json", DENSE if kind == "Dense" else {"pooling_mode": "cls"})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(embedder)


def test_weights_as_a_pickle_are_refused(embedder: Path) -> None:
    modules_json(embedder, "Transformer", "Pooling", "Dense")
    (embedder / "2_Dense/model.safetensors").rename(embedder / "2_Dense/pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors is missing.*save_pretrained"):
        load_checkpoint(embedder)
    (embedder / "2_Dense/model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors is damaged"):
        load_checkpoint(embedder)


def test_keys_that_say_nothing_or_have_no_effect(embedder: Path) -> None:
    write(
        embedder,
        ABOUT,
        {"__version__": {"pytorch": "9"}, "prompts": {"query": None}, "default_prompt_name": None, "new": None,
         "similarity_fn_name": None, "requirements": ["x>1"], "model_type": "SentenceTransformer"},
    )  # fmt: skip
    write(
        embedder,
        TRANSFORMER,
        {"max_seq_length": None, "unpad_inputs": True, "query_expansion": None, "processing_kwargs": {},
         "transformer_task": "feature-extraction", "module_output_name": "token_embeddings",
         "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
         "model_args": {"torch_dtype": "float16", "attn_implementation": "eager"}},
    )  # fmt: skip
    pipeline = read_pipeline(embedder)
    assert pipeline is not None
    assert (pipeline.max_seq_length, pipeline.do_lower_case, pipeline.truncate_dim) == (None, False, None)
    assert (pipeline.prompts, pipeline.similarity_fn_name) == ({"query": "", "document": ""}, "cosine")


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]
)
def test_old_names_and_places(architecture: str, embedder: Path, tmp_path: Path) -> None:
    home = tmp_path / "st" / "0_Transformer"
    home.mkdir()
    for name in ("config.json", "model.safetensors"):
        (embedder / name).rename(home / name)
    modules = json.loads((embedder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write(embedder, "modules.json", modules)
    write(home, f"sentence_{architecture}_config.json", {"max_seq_length": 77, "do_lower_case": True})
    assert transformer_folder(embedder) == home
    made = load_checkpoint(embedder)
    assert made.pipeline is not None
    assert (made.pipeline.max_seq_length, made.pipeline.do_lower_case) == (77, True)
    assert made.source is not None and made.source.tokenizer == home


def test_a_plain_folder_has_none(reference: GetReference) -> None:
    folder = reference("bert-embed-default").folder
    assert read_pipeline(folder) is None
    assert transformer_folder(folder) == folder
    assert load_checkpoint(folder).pipeline is None
