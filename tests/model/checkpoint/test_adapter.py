"""LoRA adapters merged into their base: the same weights as PEFT's own merge makes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from reference_models import BERT, MODERNBERT, labels
from safetensors.torch import load_file, save_file

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.source import open_source
from nopad.model.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own

FAMILY = {
    "modernbert": (MODERNBERT, transformers.ModernBertConfig, ["Wqkv", "attn.Wo", "Wi", "mlp.Wo"]),
    "bert": (BERT, transformers.BertConfig, ["query", "key", "value", "dense"]),
}
AUTO = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "FEATURE_EXTRACTION": transformers.AutoModel,
    None: transformers.AutoModelForMaskedLM,
}
# arguments of LoraConfig, architecture
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("modernbert", {"r": 4, "lora_alpha": 16}),
    "bert": ("bert", {"r": 4, "lora_alpha": 16}),
    "rank-stabilised": ("modernbert", {"r": 4, "lora_alpha": 16, "use_rslora": True}),
    "patterns": (
        "bert",
        {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"query": 2, "layer.1.attention.self.key": 6},
            "alpha_pattern": {"value": 32},
        },
    ),
    "a pattern that is a regular expression": ("modernbert", {"r": 4, "alpha_pattern": {r"layers\.[12]\.mlp\.Wi": 40}}),
    "biases": ("bert", {"r": 4, "bias": "all"}),
    "biases of lora layers": ("bert", {"r": 4, "bias": "lora_only"}),
    "fan in, fan out": ("bert", {"r": 4, "fan_in_fan_out": True}),
    "dora": ("modernbert", {"r": 4, "lora_alpha": 16, "use_dora": True}),
    "bias of B": ("bert", {"r": 4, "lora_bias": True}),
    "some layers": ("modernbert", {"r": 4, "layers_to_transform": [1, 3]}),
    "saved modules": ("modernbert", {"r": 4, "modules_to_save": ["head", "classifier"]}),
    "embeddings": ("modernbert", {"r": 4, "target_modules": ["tok_embeddings", "Wi"]}),
    "embeddings of bert": ("bert", {"r": 4, "target_modules": ["word_embeddings", "query"]}),
    "all linear": ("modernbert", {"r": 4, "target_modules": "all-linear"}),
}


def make_base(folder: Path, architecture: str, auto: Any = transformers.AutoModelForMaskedLM, **config: Any) -> Path:
    raw, kind, _ = FAMILY[architecture]
    torch.manual_seed(5)
    settings = kind(**{**{k: v for k, v in raw.items() if k != "model_type"}, "initializer_range": 0.2, **config})
    auto.from_config(settings).save_pretrained(folder)
    return folder


def make_adapter(
    folder: Path,
    base: Path,
    architecture: str,
    task: str | None,
    *,
    resize: int = 0,
    num_labels: int = 3,
    **settings: Any,
) -> Any:
    """Attach a LoRA adapter with random weights to the base, save it alone, and return PEFT's model."""
    options = {"num_labels": num_labels} if task in ("SEQ_CLS", "TOKEN_CLS") else {}
    model = AUTO[task].from_pretrained(base, **options)
    if resize:
        model.resize_token_embeddings(resize, mean_resizing=False)
    config = peft.LoraConfig(task_type=task, **{"target_modules": FAMILY[architecture][2], **settings})
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(6)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            elif parameter.requires_grad:
                parameter.mul_(1.3)
    adapted.save_pretrained(folder)
    return adapted.eval()


def worst(folder: Path, merged: Any, base: Path | None = None) -> float:
    """Largest difference between our weights and those of a transformers model, by name."""
    ours, theirs = load_checkpoint(open_source(folder, base)).encoder.state_dict(), merged.state_dict()
    assert set(ours) <= set(theirs)
    return max((tensor - theirs[name]).abs().max().item() for name, tensor in ours.items())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp(f"base-{architecture}") / "base"
            auto = transformers.AutoModelForSequenceClassification  # so that BERT has a pooler
            make_base(made[architecture], architecture, auto, **labels(3))
        return made[architecture]

    return get


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_are_those_of_pefts_merge(name: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    architecture, settings = SETTINGS[name]
    adapted = make_adapter(tmp_path / "adapter", base(architecture), architecture, "SEQ_CLS", **settings)
    untouched = load_checkpoint(base(architecture)).encoder.state_dict()
    merged = adapted.merge_and_unload()
    assert worst(tmp_path / "adapter", merged) <= 1e-6
    changed = load_checkpoint(tmp_path / "adapter").encoder.state_dict()
    assert any((changed[key] - untouched[key]).abs().max() > 1e-2 for key in changed)


@pytest.mark.parametrize("architecture", FAMILY)
@pytest.mark.parametrize(
    ("task_type", "task"),
    [("TOKEN_CLS", "token-classification"), ("FEATURE_EXTRACTION", "embeddings"), (None, "fill-mask")],
)
def test_task_types(architecture: str, task_type: str | None, task: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", architecture)
    targets = FAMILY[architecture][2] if task_type else ["Wqkv", "query"]
    adapted = make_adapter(tmp_path / "adapter", base, architecture, task_type, r=4, target_modules=targets)
    loaded = load_checkpoint(tmp_path / "adapter")
    assert loaded.config.task == task
    assert worst(tmp_path / "adapter", adapted.merge_and_unload()) <= 1e-6


def test_vocabulary_that_was_enlarged(base: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = make_adapter(tmp_path / "adapter", base("modernbert"), "modernbert", "SEQ_CLS", resize=208, r=4)
    assert load_checkpoint(tmp_path / "adapter").config.vocab_size == 208
    assert worst(tmp_path / "adapter", adapted.merge_and_unload()) <= 1e-6


def test_half_precision_base_and_adapter_are_merged_in_fp32(base: Callable[[str], Path], tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", base("modernbert"), "modernbert", "SEQ_CLS", r=4, lora_alpha=16)
    half = tmp_path / "half"
    transformers.AutoModelForSequenceClassification.from_pretrained(base("modernbert")).bfloat16().save_pretrained(half)
    stored = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(stored).items()}, stored)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(half, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    assert worst(tmp_path / "adapter", merged, half) <= 1e-6


def test_a_new_head_on_an_adapter(base: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = make_adapter(tmp_path / "adapter", base("modernbert"), "modernbert", "SEQ_CLS", r=4)
    loaded = load_checkpoint(tmp_path / "adapter", config_changes=labels(5), new_head=True)
    assert loaded.missing == ("classifier.weight", "classifier.bias")
    true = adapted.merge_and_unload().state_dict()
    ours = loaded.encoder.state_dict()
    assert all(torch.allclose(ours[name], true[name], atol=1e-6) for name in ours if not name.startswith("classifier"))


# --- labels, base


def test_labels_are_the_bases_or_of_a_config_beside_or_numbered(base: Callable[[str], Path], tmp_path: Path) -> None:
    make_adapter(tmp_path / "three", base("modernbert"), "modernbert", "SEQ_CLS", r=4)
    loaded = load_checkpoint(tmp_path / "three")
    assert loaded.config.labels == ("class 0", "class 1", "class 2") and loaded.remarks == ()
    five = make_base(tmp_path / "base", "modernbert")  # of a masked language model: no labels
    make_adapter(tmp_path / "five", five, "modernbert", "SEQ_CLS", r=4, num_labels=5)
    loaded = load_checkpoint(tmp_path / "five")
    assert loaded.config.labels == tuple(f"LABEL_{i}" for i in range(5))
    assert "5 outputs" in loaded.remarks[0] and "config.json with id2label" in loaded.remarks[0]
    (tmp_path / "five" / "config.json").write_text(json.dumps(labels(5)))
    loaded = load_checkpoint(tmp_path / "five")
    assert loaded.config.labels == tuple(f"class {i}" for i in range(5)) and loaded.remarks == ()


@pytest.mark.parametrize("where", ["absolute", "beside the adapter", "in the current folder", "given"])
def test_base_is_found(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "models" / "base", "bert")
    adapter = tmp_path / ("models" if where.startswith("beside") else "elsewhere") / "adapter"
    make_adapter(adapter, base, "bert", "FEATURE_EXTRACTION", r=4)
    named = {"absolute": str(base), "given": "who/knows"}.get(
        where, "base" if where.startswith("beside") else "models/base"
    )
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": named}))
    monkeypatch.chdir(tmp_path if where.startswith("in the") else "/")
    source = load_checkpoint(open_source(adapter, base if where == "given" else None)).source
    assert source is not None and source.base is not None and source.base.resolve() == base


@pytest.fixture
def adapter(base: Callable[[str], Path], tmp_path: Path) -> Path:
    """A good adapter to damage."""
    make_adapter(tmp_path / "adapter", base("modernbert"), "modernbert", "SEQ_CLS", r=4)
    return tmp_path / "adapter"


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_base_that_is_not_at_hand_is_named_with_the_way_on(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **_: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    change(adapter, base_model_name_or_path="answerdotai/ModernBERT-base")
    with pytest.raises(
        CheckpointError, match="LoRA adapter of answerdotai/ModernBERT-base, which cannot be found"
    ) as caught:
        load_checkpoint(adapter)
    for part in ("no route", "--base DIR", "merge_and_unload().save_pretrained(OUT)"):
        assert part in str(caught.value)
    change(adapter, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="does not name its base; name it with --base DIR"):
        load_checkpoint(adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "PEFT adapter of .* of the kind IA3; nopad merges LORA.*merge_and_unload"),
        ({"peft_type": "PREFIX_TUNING"}, "of the kind PREFIX_TUNING: it puts learned vectors before every text"),
        ({"peft_type": "LOHA"}, "of the kind LOHA; nopad merges LORA.*merge_and_unload"),
        ({"peft_type": None, "model_name": "bert-base"}, r"adapter_config.json of bert-base\), but not PEFT's"),
        ({"init_lora_weights": "pissa_niter_4"}, r"changes its base \(pissa_niter_4\)"),
        ({"layer_replication": [[0, 2]]}, "does not merge layer_replication"),
        ({"trainable_token_indices": [1, 2]}, "does not merge trainable_token_indices"),
        ({"use_something_new": True}, "does not merge use_something_new"),
        ({"task_type": "CAUSAL_LM"}, "for CAUSAL_LM; nopad has SEQ_CLS, TOKEN_CLS"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(settings: dict[str, Any], message: str, adapter: Path) -> None:
    change(adapter, **settings)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(adapter)


def test_weights_that_do_not_fit(adapter: Path, tmp_path: Path) -> None:
    narrow = make_base(tmp_path / "narrow", "modernbert", intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"does not fit 'model\.layers\.0\.mlp\.W.* trained on another base"):
        load_checkpoint(open_source(adapter, narrow))
    short = make_base(tmp_path / "short", "modernbert", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"holds '.*layers\.3\..*', which is not part of the model"):
        load_checkpoint(open_source(adapter, short))
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: tensor for name, tensor in stored.items() if "layers.1.attn.Wqkv.lora_B" not in name},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"does not fit 'model\.layers\.1\.attn\.Wqkv\.weight'.*cut short"):
        load_checkpoint(adapter)


def test_base_option_is_for_adapters(base: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match="--base is for LoRA adapters, and .* has no adapter_model.safetensors"):
        open_source(base("bert"), base("bert"))


def test_adapter_as_a_pickle_or_without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="its adapter as a pickle"):
        load_checkpoint(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="is a LoRA adapter .*without its adapter_model.safetensors"):
        load_checkpoint(adapter)


# --- PEFT's own state dict as model.safetensors


def test_pefts_own_state_dict(base: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = make_adapter(tmp_path / "adapter", base("modernbert"), "modernbert", "SEQ_CLS", r=4, lora_alpha=16)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "config.json").write_bytes((base("modernbert") / "config.json").read_bytes())
    state = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    save_file(state, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"PEFT's own state dict .*not merged.*lora_alpha is unknown"):
        load_checkpoint(whole)
    (whole / "adapter_config.json").write_bytes((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert worst(whole, adapted.merge_and_unload()) <= 1e-6
    second = {
        name.replace(".default.", ".second."): tensor.clone() for name, tensor in state.items() if "lora_" in name
    }
    save_file({**state, **second}, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="holds several adapters"):
        load_checkpoint(whole)


def test_a_merged_folder_that_keeps_its_adapter_config_is_plain(base: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = make_adapter(tmp_path / "adapter", base("bert"), "bert", "SEQ_CLS", r=4)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    (tmp_path / "merged" / "adapter_config.json").write_bytes(
        (tmp_path / "adapter" / "adapter_config.json").read_bytes()
    )
    assert worst(tmp_path / "merged", merged) == 0
