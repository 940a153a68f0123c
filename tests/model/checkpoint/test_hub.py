"""Names of the Hub: only the files that the folder's own configuration names are downloaded."""

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.errors import CheckpointError

# Other files in real repositories.
OTHERS = (
    "README.md", "pytorch_model.bin", "model_head.pkl", "modeling_own.py", "tf_model.h5", "onnx/model.onnx",
    "openvino/openvino_model.xml", "onnx/model.safetensors", "1_Pooling/pytorch_model.bin", "data.json", "train.txt",
    "2_Dense/pytorch_model.bin", "training_args.bin",
)  # fmt: skip
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


class Hub:
    """Stands in for `huggingface_hub.snapshot_download`, with a repository in a folder."""

    def __init__(self, repository: Path, cache: Path, commit: str = "0123456789" * 4) -> None:
        self.repository, self.folder, self.commit = repository, cache / commit, commit
        self.revisions: list[str | None] = []

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert name == "who/model"
        self.revisions.append(revision)
        self.folder.mkdir(exist_ok=True)
        for file in sorted(path for path in self.repository.rglob("*") if path.is_file()):
            relative = file.relative_to(self.repository)
            if any(fnmatch.fnmatch(relative.as_posix(), pattern) for pattern in allow_patterns):
                (self.folder / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.folder / relative)
        return str(self.folder)

    @property
    def taken(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(**files: object) -> Hub:
        repository = tmp_path / "repository"
        everything: dict[str, object] = {**dict.fromkeys(OTHERS, "x"), **files}
        for name, content in everything.items():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_text(content if isinstance(content, str) else json.dumps(content))
        fake = Hub(repository, tmp_path)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
        monkeypatch.chdir(tmp_path)
        return fake

    return make


def modules(*paths: str) -> list[dict[str, str]]:
    kinds = {"": "Transformer", "0_Transformer": "Transformer"}
    return [
        {"name": str(i), "path": path, "type": f"sentence_transformers.models.{kinds.get(path, path.split('_')[-1])}"}
        for i, path in enumerate(paths)
    ]


def test_a_checkpoint_of_transformers(hub: Callable[..., Hub]) -> None:
    fake = hub(**{"config.json": {}, "model.safetensors": "x", **dict.fromkeys(TOKENIZER, "{}")})
    assert resolve_checkpoint("who/model") == fake.folder
    assert fake.taken == {"config.json", "model.safetensors", *TOKENIZER}
    assert fake.revisions == [None, fake.commit]  # what is named later is of the same commit


def test_shards_are_those_of_the_index(hub: Callable[..., Hub]) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {f"w{i}": shard for i, shard in enumerate(shards * 2)}}
    files = {"config.json": {}, "model.safetensors.index.json": index, **dict.fromkeys(shards, "x")}
    fake = hub(**files, **{"model-00003-of-00003.safetensors": "of another export"})
    resolve_checkpoint("who/model")
    assert fake.taken == set(files)


def test_modules_are_those_of_modules_json(hub: Callable[..., Hub]) -> None:
    files = {
        "modules.json": modules("", "1_Pooling", "2_Dense", "custom/3_LayerNorm"),
        "config_sentence_transformers.json": {},
        "sentence_bert_config.json": {},
        "config.json": {},
        "model.safetensors": "x",
        "1_Pooling/config.json": {},
        **{
            f"{path}/{file}": "{}"
            for path in ("2_Dense", "custom/3_LayerNorm")
            for file in ("config.json", "model.safetensors")
        },
    }
    fake = hub(**files, **{"4_Dense/model.safetensors": "not named", "4_Dense/config.json": {}})
    resolve_checkpoint("who/model")
    assert fake.taken == set(files)


def test_the_transformer_may_lie_in_a_folder(hub: Callable[..., Hub]) -> None:
    own = ["config.json", "model.safetensors", "sentence_roberta_config.json", *TOKENIZER]
    files = {
        "modules.json": modules("0_Transformer", "1_Pooling"),
        "1_Pooling/config.json": {},
        **{f"0_Transformer/{name}": "{}" for name in own},
    }
    fake = hub(**files)
    resolve_checkpoint("who/model")
    assert fake.taken == set(files)


def test_an_adapter_is_fetched_with_its_weights(hub: Callable[..., Hub]) -> None:
    fake = hub(**{"adapter_config.json": {}, "adapter_model.safetensors": "x", "adapter_model.bin": "x"})
    resolve_checkpoint("who/model")
    assert fake.taken == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_path_out_of_the_folder_is_refused(hub: Callable[..., Hub]) -> None:
    hub(**{"config.json": {}, "modules.json": modules("", "../1_Pooling")})
    with pytest.raises(CheckpointError, match=r"the path '\.\./1_Pooling' leads out of the folder"):
        resolve_checkpoint("who/model")


def test_what_the_hub_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **_: object) -> str:
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match="Hub cannot provide 'who/nobody': ConnectionError: no route$"):
        resolve_checkpoint("who/nobody")


def test_resolve_takes_a_folder_and_refuses_what_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve_checkpoint(folder) == folder
    assert resolve_checkpoint(str(folder)) == folder
    with pytest.raises(CheckpointError, match="is a file; give the checkpoint's folder"):
        resolve_checkpoint(folder / "config.json")
    for name in (tmp_path / "none", "./none", "~/none", "a/b/c"):
        with pytest.raises(CheckpointError, match="no checkpoint at .*the folder does not exist"):
            resolve_checkpoint(name)
