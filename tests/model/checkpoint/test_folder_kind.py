"""A message about a folder that is not a checkpoint says what it is, and the next step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import Reference
from safetensors.torch import save_file

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.errors import CheckpointError
from nopad.runtime.bundle import DEFAULT_BUNDLE

GetReference = Callable[[str], Reference]


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(resolve_checkpoint(folder))
    return str(caught.value)


def put(folder: Path, *names: str, config: dict[str, Any] | None = None) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


BERT = {"model_type": "bert", "architectures": ["BertModel"]}
FOLDERS: dict[str, tuple[tuple[str, ...], dict[str, Any] | None, str]] = {
    "gguf": (("model-Q4.gguf",), None, "holds GGUF weights (llama.cpp) and no config.json"),
    "gguf, with config": (("model-Q4.gguf",), BERT, "only GGUF weights (llama.cpp) (model-Q4.gguf)"),
    "onnx": (("onnx/model.onnx",), BERT, "only an ONNX graph (onnx/model.onnx)"),
    "onnx, bare": (("model.onnx", "tokenizer.json"), None, "holds an ONNX graph and no config.json"),
    "openvino": (("openvino_model.xml", "openvino_model.bin"), BERT, "only an OpenVINO model"),
    "tensorflow": (("tf_model.h5",), BERT, "only TensorFlow weights (tf_model.h5)"),
    "flax": (("flax_model.msgpack",), BERT, "only Flax weights"),
    "pickle": (("pytorch_model.bin", "tf_model.h5"), BERT, "holds its weights as a pickle (pytorch_model.bin)"),
    "lightning": (("epoch=3.ckpt",), BERT, "holds its weights as a pickle (epoch=3.ckpt)"),
    "pickles beside": (("optimizer.pt", "training_args.bin", "rng_state.pth"), BERT, "has no model.safetensors"),
    "tokenizer": (("tokenizer.json", "tokenizer_config.json"), None, "holds a tokenizer alone"),
    "weights alone": (("model.safetensors",), None, "has weights (model.safetensors) but no config.json"),
    "data set": (
        ("dataset_info.json", "data-00000-of-00001.arrow"),
        None,
        "holds a data set (data-00000-of-00001.arrow)",
    ),
    "csv": (("train.csv",), None, "holds a data set (train.csv), not a checkpoint"),
    "hub data set": (("data/train-0.parquet",), None, "holds a data set (data/train-0.parquet)"),
    "old layout": (
        ("0_Transformer/config.json", "0_Transformer/model.safetensors"),
        None,
        "holds some (0_Transformer)",
    ),
    "nothing": ((), None, "has no config.json: it is not a checkpoint folder"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind: str, tmp_path: Path) -> None:
    names, config, message = FOLDERS[kind]
    assert message in refused(put(tmp_path, *names, config=config))


def test_a_bundle(tmp_path: Path) -> None:
    assert "is a nopad bundle, the result of an export: use it with nopad predict" in refused(DEFAULT_BUNDLE)


def make_trainer_output(folder: Path, checkpoint: Path) -> None:
    for step in (500, 1000, 1500):
        made = Path(shutil.copytree(checkpoint, folder / f"checkpoint-{step}"))
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"):
            (made / name).write_bytes(b"a pickle that nobody opens")
        state = {"best_model_checkpoint": str(folder / "checkpoint-1000"), "global_step": step}
        (made / "trainer_state.json").write_text(json.dumps(state))


def test_output_folder_of_a_trainer_names_its_checkpoints_and_the_best(reference: GetReference, tmp_path: Path) -> None:
    make_trainer_output(tmp_path / "out", reference("modernbert-single-cls").folder)
    message = refused(tmp_path / "out")
    assert "its checkpoints are checkpoint-500, checkpoint-1000, checkpoint-1500" in message
    assert "the best, by trainer_state.json, is checkpoint-1000" in message
    assert load_checkpoint(tmp_path / "out" / "checkpoint-500").config.num_labels == 3
    (tmp_path / "out").rename(tmp_path / "mine.training")
    assert "an unfinished nopad train" in refused(tmp_path / "mine.training")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.zip", "is an archive; unpack it"),
        ("model.tar.gz", "is an archive; unpack it"),
        ("model.safetensors", "is a file of weights; give its folder"),
        ("model.bin", "is a file; give the checkpoint's folder"),
    ],
)
def test_files(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(put(tmp_path, name) / name)


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is a decoder"),
    "a classifier on llama": (
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        "LlamaForSequenceClassification is a decoder",
    ),
    "qwen": ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "Qwen3ForCausalLM is a decoder"),
    "bert as decoder": ({**BERT, "is_decoder": True}, "BertModel is a decoder"),
    "modernbert as decoder": (
        {"model_type": "modernbert-decoder", "architectures": ["ModernBertDecoderForSequenceClassification"]},
        "is a decoder",
    ),
    "t5": ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is an encoder-decoder"),
    "bart": ({"model_type": "bart", "architectures": ["BartModel"]}, "BartModel is an encoder-decoder"),
    "vit": ({"model_type": "vit", "architectures": ["ViTModel"]}, "ViTModel .* does not encode text alone"),
    "clip": ({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPModel .* does not encode text alone"),
    "wav2vec2": ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}, "does not encode text alone"),
    "remote code": (
        {"model_type": "my_bert", "architectures": ["MyBert"], "auto_map": {"AutoModel": "modeling_my.MyBert"}},
        r"model_type 'my_bert' is computed by Python code .*modeling_my\.MyBert.*not run remote code",
    ),
    "roberta": ({"model_type": "roberta", "architectures": ["RobertaModel"]}, "'roberta' has no packed encoder"),
    "unknown": ({"model_type": "no_such", "architectures": ["NoSuch"]}, "'no_such' has no packed encoder"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_are_no_text_encoders(kind: str, tmp_path: Path) -> None:
    raw, message = MODELS[kind]
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(put(tmp_path, "README.md", config=raw))


def test_code_beside_a_native_architecture_is_not_run(reference: GetReference, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference("modernbert-single-cls").folder, tmp_path / "c"))
    raw = json.loads((folder / "config.json").read_text())
    harmless = {
        "auto_map": {"AutoModel": "modeling_trap.Trap", "AutoConfig": "modeling_trap.TrapConfig"},
        "reference_compile": True,
        "attn_implementation": "flash_attention_2",
        "_attn_implementation": "eager",
        "torch_dtype": "bfloat16",
        "dtype": "float16",
        "deterministic_flash_attn": True,
        "use_cache": True,
        "repad_logits_with_grad": True,
        "sparse_prediction": False,
        "somebody_s_own": {"a": [1]},
    }
    (folder / "config.json").write_text(json.dumps({**raw, **harmless}))
    (folder / "modeling_trap.py").write_text("raise RuntimeError('run')")
    ours, true = (load_checkpoint(f).encoder.state_dict() for f in (folder, reference("modernbert-single-cls").folder))
    assert all((ours[name] - true[name]).abs().max() == 0 for name in true)
