"""Small transformers models as references, and nopad's answers in the same shape. Helpers, no tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from nopad.model.attention import AttentionFactory, graph_attention
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.encoder import PackedEncoder
from nopad.model.head import BARE, PER_TOKEN
from nopad.model.packing import pack

TRANSFORMERS_4 = transformers.__version__.startswith("4.")
TOLERANCE = 1e-5  # absolute, on logits
LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 511, 512)
ATTENTIONS: dict[str, AttentionFactory | None] = {"default": None, "graph": graph_attention}

MODERNBERT: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
EUROBERT: dict[str, Any] = {
    "model_type": "eurobert",
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_theta": 250000,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ULTRABERT: dict[str, Any] = {
    **{key: value for key, value in EUROBERT.items() if key not in ("rope_theta", "num_key_value_heads")},
    "model_type": "ultrabert",
    "num_hidden_layers": 4,
    "prediction_head_size": 48,
}
_FAMILY = {"modernbert": MODERNBERT, "bert": BERT, "eurobert": EUROBERT, "ultrabert": ULTRABERT}
_AUTO = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "rerank": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "fill-mask": transformers.AutoModelForMaskedLM,
    "embeddings": transformers.AutoModel,
    "token-embeddings": transformers.AutoModel,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One head of one architecture: its config.json, and further arguments of load_checkpoint."""

    name: str
    architecture: str
    task: str
    config: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # keys of config.json to leave out
    scale: float = 3.0  # of the matrices, over transformers' own initialisation

    @property
    def per_token(self) -> bool:
        return self.task in PER_TOKEN


def labels(count: int) -> dict[str, Any]:
    names = [f"class {i}" for i in range(count)]
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


_POOLING = {
    "modernbert": ("cls", "mean"),
    "bert": ("",),
    "eurobert": ("bos", "mean", "late"),
    "ultrabert": ("cls", "mean"),
}


def _cases(architecture: str) -> list[Case]:
    def case(name: str, head: str, config: dict[str, Any], **load: Any) -> Case:
        return Case(name=f"{architecture}-{name}", architecture=architecture, task=head, config=config, load=load)

    classes = "text-classification"
    cases = [
        case("token", "token-classification", labels(5)),
        case("mlm", "fill-mask", {}),
        case("mlm-untied", "fill-mask", {"tie_word_embeddings": False}),
        case("rerank", "rerank", labels(1), task="rerank"),
        case("tokens", "token-embeddings", {}, task="token-embeddings"),
        case("embed-default", "embeddings", {}),
        case("embed-cls", "embeddings", {}, pooling="cls"),
        case("embed-mean-unit", "embeddings", {}, pooling="mean", normalize=True),
        case("embed-cls-unit", "embeddings", {}, pooling="cls", normalize=True),
    ]
    for pooling in _POOLING[architecture]:
        extra = {"classifier_pooling": pooling} if pooling else {}
        end = f"-{pooling}" if pooling else ""
        single, several = "single_label_classification", "multi_label_classification"
        cases += [
            case(f"single{end}", classes, {**labels(3), "problem_type": single, **extra}),
            case(f"multi{end}", classes, {**labels(4), "problem_type": several, **extra}),
            case(f"regression{end}", classes, {**labels(1), "problem_type": "regression", **extra}),
        ]
    return cases


CASES = {case.name: case for architecture in ("modernbert", "bert") for case in _cases(architecture)}
EURO_CASES = {case.name: case for architecture in ("eurobert", "ultrabert") for case in _cases(architecture)}


def disturb(model: torch.nn.Module, scale: float = 3.0) -> None:
    """Move every parameter away from values that hide it (zero biases, unit norms, tiny matrices)."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            else:
                parameter.mul_(scale)


@dataclass(frozen=True)
class Reference:
    """A transformers model in evaluation mode and the checkpoint folder that holds the same weights."""

    case: Case
    model: Any
    folder: Path

    def encoder(self, attention: AttentionFactory | None = None) -> PackedEncoder:
        return load_checkpoint(self.folder, attention=attention, **self.case.load).encoder

    def logits(self, ids: Sequence[int], types: Sequence[int] | None = None) -> Tensor:
        """transformers' answer for one sequence: its row, or its tokens' rows."""
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        if types is not None:
            inputs["token_type_ids"] = torch.tensor([types])
        with torch.no_grad():
            out = self.model(**inputs)
        if self.case.task not in BARE:
            return out.logits[0]
        hidden = out.last_hidden_state[0]
        if self.case.task == "token-embeddings":
            return hidden
        row = hidden[0] if self.case.load.get("pooling") == "cls" else hidden.mean(0)
        return F.normalize(row, dim=-1) if self.case.load.get("normalize") else row


def make_reference(case: Case, folder: Path, *, keep_config: bool = True, **save: Any) -> Reference:
    """Build the model from `case`'s config.json, and save its weights beside that file.

    `keep_config=False` leaves the config.json that transformers itself writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = {**_FAMILY[case.architecture], **case.config}
    raw = {key: value for key, value in raw.items() if key not in case.without}
    (folder / "config.json").write_text(json.dumps(raw))
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = _AUTO[case.task].from_config(config)
    disturb(model, case.scale)
    model.eval()
    transformers.utils.logging.disable_progress_bar()  # some tests read what stands on stderr
    model.save_pretrained(folder, **save)
    if keep_config:
        raw["architectures"] = [type(model).__name__]
        (folder / "config.json").write_text(json.dumps(raw))
    return Reference(case, model, folder)


def token_ids(length: int, vocab_size: int = 200, seed: int = 0) -> list[int]:
    """Random ids without the padding id, whose meaning is not under test."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(1, vocab_size, (length,), generator=generator).tolist()


def packed_logits(
    encoder: PackedEncoder,
    sequences: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None = None,
    *,
    multiple: int | None = None,
    filler_id: int = 0,
) -> list[Tensor]:
    """nopad's answer for each sequence of one packed batch."""
    block = encoder.encoder_config.block
    batch = pack(sequences, types, multiple=multiple or block, filler_id=filler_id)
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids")
    with torch.no_grad():
        out = encoder(**{name: torch.from_numpy(getattr(batch, name)) for name in names})
    if encoder.encoder_config.task in PER_TOKEN:
        return list(out[: batch.num_tokens].split(batch.lengths.tolist()))
    return list(out)


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest absolute difference; shapes must agree, and a NaN counts as infinity."""
    assert len(ours) == len(theirs)
    worst = 0.0
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape, f"shape {tuple(our.shape)} instead of {tuple(their.shape)}"
        gap = (our - their).abs().max().item()
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst
