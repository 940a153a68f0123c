"""The matrix: the shapes of checkpoints that people use, small and with random weights. Helpers, no tests.

A shape keeps what makes its checkpoint different from others: head size, thetas, layer pattern, activations, keys and
spelling of config.json, declared length, kind of tokenizer and special ids, dtype and shards of the weights, and the
files beside them. Width, depth and vocabulary are small. `scripts/checkpoint_table.py` makes
`docs/checkpoints.md` from the same shapes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from matrix_tokenizers import TOKENIZERS
from reference_models import TRANSFORMERS_4, disturb, labels

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.runtime import load

_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "rerank": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "embeddings": "AutoModel",
}
# Longer than every window and block, and than what BERT reads.
LONG = " ".join(SAMPLES)
TOLERANCE = 1e-5  # the gate's own: absolute, on logits and vectors, times the largest where that is over 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One row of the table."""

    name: str
    exercises: str
    tokenizer: str  # of TOKENIZERS
    task: str
    config: Mapping[str, Any]  # config.json without vocab_size and architectures
    padded: bool = False  # no packed encoder: one graph
    dtype: str = "float32"  # of the stored weights
    shards: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)  # further files of the folder: path -> JSON
    vocab_multiple: int = 64
    since: int = 4  # transformers that can be its reference
    fast: bool = False  # part of the fast suite: one of each architecture, none with many positions


def _modernbert(heads: int = 2, size: int = 64, layers: int = 3, **more: Any) -> dict[str, Any]:
    """ModernBERT's base as its config.json has it, with the sizes cut."""
    return {
        "model_type": "modernbert",
        "hidden_size": heads * size,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 8192,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "local_attention": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "cls_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "classifier_pooling": "mean",
        "norm_eps": 1e-05,
        "tie_word_embeddings": True,
        **more,
    }


def _encoder(model_type: str, heads: int = 2, size: int = 32, layers: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": heads * size,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


def _sentence_transformers(pooling: str, width: int, *, normalize: bool = False, **more: Any) -> dict[str, Any]:
    """The files that sentence-transformers writes beside the model."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    modes = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens")}
    modes[f"pooling_mode_{pooling}"] = True
    return {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False, **more},
    }


_FLAN = {"position_embedding_type": "sans_pos", "causal_mask": False, "is_causal": False, "layer_norm_eps": 1e-5}
_GEMMA_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
_GEMMA_IDS |= {"mask_token_id": 4}
_JA_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "sep_token_id": 4, "cls_token_id": 6}
_ROBERTA_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 514}
_NEW = {
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
_PROMPTS = {"query": "検索クエリ: ", "document": "検索文書: ", "topic": "トピック: "}
_CLASSES, _TOKENS, _MASKS = "text-classification", "token-classification", "fill-mask"
_BIO = {
    "id2label": {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC", "4": "I-LOC"},
    "label2id": {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3, "I-LOC": 4},
}


def _packed() -> list[Shape]:
    return [
        Shape(
            name="ModernBERT-base", exercises="transformers 4's keys; `layer_norm_eps` beside `norm_eps`; mean pooling",
            tokenizer="byte-level BPE", task=_CLASSES, config=_modernbert(layer_norm_eps=1e-3, **labels(3)),
        ),
        Shape(
            name="ModernBERT-large", exercises="transformers 5's keys; sharded weights; several labels at once",
            tokenizer="byte-level BPE", task=_CLASSES, shards=True,
            config=_modernbert(layers=4, **_NEW, **labels(4), problem_type="multi_label_classification"),
        ),
        Shape(
            name="ModernBERT-base, MLM", exercises="a tied decoder that is missing from the file; `sparse_prediction`",
            tokenizer="byte-level BPE", task=_MASKS, config=_modernbert(sparse_prediction=True),
        ),
        Shape(
            name="modernbert-embed-base", exercises="sentence-transformers folder, mean pooling, prompts",
            tokenizer="byte-level BPE", task="embeddings", config=_modernbert(),
            files={
                **_sentence_transformers("mean_tokens", 128, normalize=True),
                "config_sentence_transformers.json": {
                    "prompts": {"query": "search_query: ", "document": "search_document: "},
                    "default_prompt_name": None, "similarity_fn_name": "cosine",
                },
            },
        ),
        Shape(
            name="gte-modernbert-base", exercises="pools [CLS] by 1_Pooling, though config.json says mean",
            tokenizer="byte-level BPE", task="embeddings", config=_modernbert(),
            files=_sentence_transformers("cls_token", 128),
        ),
        Shape(
            name="gte-reranker-modernbert-base", exercises="cross-encoder of one label",
            tokenizer="byte-level BPE", task="rerank",
            config=_modernbert(**labels(1), sentence_transformers={"version": "4.1.0"}),
        ),
        Shape(
            name="ettin-encoder-17m", exercises="true width; one theta of 160 k for all layers; 7,999 positions",
            tokenizer="byte-level BPE", task=_CLASSES,
            config=_modernbert(
                4, layers=4, **_FLAN, local_rope_theta=160000.0, max_position_embeddings=7999, **labels(2),
            ),
        ),
        Shape(
            name="ettin-encoder-1b", exercises="sharded bf16 weights; masked LM",
            tokenizer="byte-level BPE", task=_MASKS, dtype="bfloat16", shards=True,
            config=_modernbert(**_FLAN, local_rope_theta=160000.0, max_position_embeddings=7999, dtype="bfloat16"),
        ),
        Shape(
            name="mmBERT-base", exercises="<bos> x <eos> where cls, eos and sep are one token; thetas as integers",
            tokenizer="Gemma 2 BPE", task=_MASKS,
            config=_modernbert(**_FLAN, **_GEMMA_IDS, global_rope_theta=160000, local_rope_theta=160000),
        ),
        Shape(
            name="mmBERT-small, NER", exercises="token classification",
            tokenizer="Gemma 2 BPE", task=_TOKENS,
            config=_modernbert(**_FLAN, **_GEMMA_IDS, global_rope_theta=160000, local_rope_theta=160000, **_BIO),
        ),
        Shape(
            name="mmBERT-32k", exercises="YaRN in every layer; 32,768 positions", since=5,
            tokenizer="Gemma 2 BPE", task=_CLASSES,
            config=_modernbert(
                **_FLAN, **_GEMMA_IDS, **labels(3), global_rope_theta=160000, local_rope_theta=160000,
                max_position_embeddings=32768,
                rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
            ),
        ),
        Shape(
            name="mmBERT-32k, global layers", exercises="YaRN in global layers alone, as transformers 5 spells it",
            tokenizer="Gemma 2 BPE", task=_TOKENS, since=5,
            config=_modernbert(
                **_FLAN, **_GEMMA_IDS, **_BIO, max_position_embeddings=32768,
                rope_parameters={
                    "full_attention": {
                        "rope_type": "yarn", "rope_theta": 160000, "factor": 4.0, "attention_factor": 1.1,
                        "original_max_position_embeddings": 8192, "beta_fast": 32, "beta_slow": 1,
                    },
                    "sliding_attention": {"rope_type": "default", "rope_theta": 160000},
                },
            ),
        ),
        Shape(
            name="modernbert-ja-130m", exercises="special ids 6 and 4; CLS pooling; no length limit (1e30)",
            tokenizer="unigram", task=_CLASSES,
            config=_modernbert(**_JA_IDS, **labels(3), classifier_pooling="cls"),
        ),
        Shape(
            name="ruri-v3-130m", exercises="mean pooling over Japanese text, prompts",
            tokenizer="unigram", task="embeddings", config=_modernbert(**_JA_IDS),
            files={
                **_sentence_transformers("mean_tokens", 128),
                "config_sentence_transformers.json": {"prompts": _PROMPTS, "default_prompt_name": None},
            },
        ),
        Shape(
            name="AMBER-large", exercises="bf16 weights; masked LM", dtype="bfloat16",
            tokenizer="unigram", task=_MASKS, config=_modernbert(**_JA_IDS, torch_dtype="bfloat16"),
        ),
        Shape(
            name="granite-embedding-english-r2", exercises="CLS pooling, unit length",
            tokenizer="byte-level BPE", task="embeddings", config=_modernbert(classifier_pooling="cls"),
            files=_sentence_transformers("cls_token", 128, normalize=True),
        ),
        Shape(
            name="granite-embedding-small-english-r2", exercises="heads of 32",
            tokenizer="byte-level BPE", task="embeddings", config=_modernbert(3, 32, classifier_pooling="cls"),
            files=_sentence_transformers("cls_token", 96, normalize=True),
        ),
        Shape(
            name="granite-embedding-97m-multilingual-r2", exercises="SiLU in layers; 32,768 positions; bf16 weights",
            tokenizer="Gemma 2 BPE", task="embeddings", dtype="bfloat16",
            config=_modernbert(
                **_GEMMA_IDS, hidden_activation="silu", max_position_embeddings=32768, dtype="bfloat16",
            ),
            files=_sentence_transformers("cls_token", 128, normalize=True),
        ),
        Shape(
            name="finnish-modernbert-base", exercises="theta 1 M; 16,000 positions; eos and sep one id",
            tokenizer="byte-level BPE", task=_CLASSES,
            config=_modernbert(global_rope_theta=1000000.0, max_position_embeddings=16000, **labels(2)),
        ),
        Shape(
            name="Mursit-Base", exercises="theta 10 k in all layers; SiLU in the head; 1,024 positions; bf16 weights",
            tokenizer="byte-level BPE", task=_CLASSES, dtype="bfloat16", fast=True,
            config=_modernbert(
                global_rope_theta=10000, local_rope_theta=10000, classifier_activation="silu",
                max_position_embeddings=1024, **labels(3),
            ),
        ),
        Shape(
            name="bert-tiny-hf", exercises="heads of 32; a regression", tokenizer="byte-level BPE", task=_CLASSES,
            config=_modernbert(
                3, 32, global_rope_theta=10000, max_position_embeddings=1024, problem_type="regression", **labels(1),
            ),
        ),
        Shape(
            name="CodeSearch-ModernBERT-Finch", exercises="`cls_token_id` outside the vocabulary; keys nobody reads",
            tokenizer="byte-level BPE", task="embeddings", vocab_multiple=1,
            config=_modernbert(
                cls_token_id=50281, sep_token_id=50282, rope_theta=10000.0, local_attention_window=256,
                reference_compile=False,
            ),
        ),
        Shape(
            name="lv-mbert-base", exercises="no special ids and no dtype in config.json",
            tokenizer="byte-level BPE", task=_MASKS, vocab_multiple=1,
            config={
                key: value for key, value in _modernbert(local_rope_theta=160000.0).items()
                if not key.endswith("token_id") or key == "pad_token_id"
            },
        ),
        Shape(
            name="trainer (chemistry)", exercises="every layer global; 61 entries; 502 positions",
            tokenizer="characters", task=_MASKS, vocab_multiple=1,
            config=_modernbert(global_attn_every_n_layers=1, max_position_embeddings=502),
        ),
        Shape(
            name="modernbert-base-japanese-aozora", exercises="`auto_map` to remote code, which is not run",
            tokenizer="unigram", task=_TOKENS,
            config=_modernbert(
                **_JA_IDS, **_BIO, auto_map={"AutoModelForTokenClassification": "modeling_own.Own"},
            ),
        ),
        Shape(
            name="ModernBERT, other switches", exercises="biases everywhere, untied decoder without one; window of 101",
            tokenizer="byte-level BPE", task=_MASKS,
            config=_modernbert(
                attention_bias=True, mlp_bias=True, norm_bias=True, decoder_bias=False, classifier_bias=True,
                tie_word_embeddings=False, local_attention=101, global_attn_every_n_layers=2, layers=4,
            ),
        ),
        Shape(
            name="all-MiniLM-L6-v2", exercises="BERT with heads of 32; mean pooling, unit length; lengths cut at 256",
            tokenizer="WordPiece", task="embeddings", fast=True,
            config=_encoder("bert", 3, 32, max_position_embeddings=512, type_vocab_size=2, pad_token_id=0),
            files=_sentence_transformers("mean_tokens", 96, normalize=True, max_seq_length=256),
        ),
        Shape(
            name="ms-marco-MiniLM-L6-v2", exercises="BERT cross-encoder of one label, Identity activation",
            tokenizer="WordPiece", task="rerank",
            config=_encoder(
                "bert", 3, 32, max_position_embeddings=512, type_vocab_size=2, pad_token_id=0, **labels(1),
                sbert_ce_default_activation_function="torch.nn.modules.linear.Identity",
            ),
        ),
        Shape(
            name="paraphrase-multilingual-MiniLM-L12-v2", exercises="BERT with XLM-R's tokenizer",
            tokenizer="XLM-R unigram", task="embeddings",
            config=_encoder("bert", 3, 32, max_position_embeddings=512, type_vocab_size=2, pad_token_id=0),
            files=_sentence_transformers("mean_tokens", 96, max_seq_length=128),
        ),
        Shape(
            name="EuroBERT-210m", exercises="RMS norm, SwiGLU, theta 250 k, late pooling; `auto_map`", since=5,
            tokenizer="Llama 3 BPE", task=_CLASSES, dtype="bfloat16",
            config=_encoder(
                "eurobert", 2, 64, layers=3, num_key_value_heads=2, head_dim=64, rope_theta=250000, rope_scaling=None,
                max_position_embeddings=8192, pad_token_id=1, bos_token_id=0, eos_token_id=1, mask_token_id=2,
                auto_map={"AutoModelForSequenceClassification": "modeling_eurobert.EuroBertForSequenceClassification"},
                **labels(3),
            ),
        ),
        Shape(
            name="EuroBERT-610m", exercises="three heads of queries to one of keys; masked LM", since=5,
            tokenizer="Llama 3 BPE", task=_MASKS, shards=True,
            config=_encoder(
                "eurobert", 6, 32, num_key_value_heads=2,
                rope_parameters={"rope_theta": 250000, "rope_type": "default"},
                max_position_embeddings=8192, pad_token_id=1, bos_token_id=0, eos_token_id=1, mask_token_id=2,
            ),
        ),
        Shape(
            name="UltraBERT-150M", exercises="windows of 128 on either side, the global layer last of three", since=5,
            tokenizer="byte-level BPE", task=_MASKS,
            config=_encoder(
                "ultrabert", 2, 64, layers=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, prediction_head_size=48,
                max_position_embeddings=32768,
            ),
        ),
        Shape(
            name="UltraBERT-150M, classifier", exercises="its first checkpoints' keys; mean pooling", since=5,
            tokenizer="byte-level BPE", task=_CLASSES,
            config=_encoder(
                "ultrabert", 2, 64, layers=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, classifier_pooling="mean",
                max_position_embeddings=32768, attention_windows=[128, 128, None], rope_theta=[1e4, 1e4, 2.56e6],
                **labels(3),
            ),
        ),
    ]  # fmt: skip


def _padded() -> list[Shape]:
    roberta = {**_ROBERTA_IDS, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return [
        Shape(
            name="roberta-base", exercises="positions behind the padding id: 512 of 514", padded=True, fast=True,
            tokenizer="RoBERTa BPE", task=_CLASSES, config=_encoder("roberta", **roberta, **labels(3)),
        ),
        Shape(
            name="xlm-roberta-base", exercises="masked LM over a unigram vocabulary", padded=True,
            tokenizer="XLM-R unigram", task=_MASKS, config=_encoder("xlm-roberta", **roberta),
        ),
        Shape(
            name="multilingual-e5-small", exercises="XLM-R in a sentence-transformers folder, mean pooling",
            padded=True, tokenizer="XLM-R unigram", task="embeddings", config=_encoder("xlm-roberta", **roberta),
            files=_sentence_transformers("mean_tokens", 64, normalize=True),
        ),
        Shape(
            name="bge-reranker-v2-m3", exercises="XLM-R cross-encoder of one label", padded=True,
            tokenizer="XLM-R unigram", task="rerank",
            config=_encoder(
                "xlm-roberta", **{**roberta, "max_position_embeddings": 1026}, **labels(1),
                sentence_transformers={"version": "4.1.0"},
            ),
        ),
        Shape(
            name="camembert-ner", exercises="token classification; bos 5 and eos 6", padded=True,
            tokenizer="CamemBERT unigram", task=_TOKENS,
            config=_encoder("camembert", **{**roberta, "bos_token_id": 5, "eos_token_id": 6}, **_BIO),
        ),
        Shape(
            name="distilbert-base-uncased-sst2", exercises="no token types, keys of its own", padded=True,
            tokenizer="WordPiece, no types", task=_CLASSES,
            config={
                "model_type": "distilbert", "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 2, "pad_token_id": 0,
                "max_position_embeddings": 512, **labels(2),
            },
        ),
        Shape(
            name="msmarco-distilbert-base-v4", exercises="DistilBERT in a sentence-transformers folder", padded=True,
            tokenizer="WordPiece, no types", task="embeddings",
            config={
                "model_type": "distilbert", "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 2, "pad_token_id": 0,
                "max_position_embeddings": 512,
            },
            files=_sentence_transformers("mean_tokens", 64),
        ),
        Shape(
            name="electra-small-discriminator", exercises="embeddings narrower than the layers; pairs", padded=True,
            tokenizer="WordPiece", task=_CLASSES,
            config=_encoder("electra", embedding_size=48, max_position_embeddings=512, type_vocab_size=2, **labels(3)),
        ),
        Shape(
            name="deberta-v3-small", exercises="relative positions in buckets; pairs", padded=True,
            tokenizer="DeBERTa unigram", task=_CLASSES,
            config=_encoder(
                "deberta-v2", max_position_embeddings=512, relative_attention=True, position_buckets=256,
                norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
                type_vocab_size=0, max_relative_positions=-1, layer_norm_eps=1e-7, pad_token_id=0, **labels(3),
            ),
        ),
        Shape(
            name="deberta-v3-base, NER", exercises="token classification", padded=True,
            tokenizer="DeBERTa unigram", task=_TOKENS,
            config=_encoder(
                "deberta-v2", max_position_embeddings=512, relative_attention=True, position_buckets=256,
                norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
                type_vocab_size=0, max_relative_positions=-1, layer_norm_eps=1e-7, pad_token_id=0, **_BIO,
            ),
        ),
        Shape(
            name="all-mpnet-base-v2", exercises="relative positions beside absolute ones; unit length", padded=True,
            tokenizer="MPNet WordPiece", task="embeddings",
            config=_encoder("mpnet", **_ROBERTA_IDS, layer_norm_eps=1e-5),
            files=_sentence_transformers("mean_tokens", 64, normalize=True, max_seq_length=384),
        ),
        Shape(
            name="albert-base-v2", exercises="layers that share their weights; masked LM", padded=True,
            tokenizer="WordPiece", task=_MASKS,
            config=_encoder(
                "albert", embedding_size=48, max_position_embeddings=512, pad_token_id=0, type_vocab_size=2,
            ),
        ),
        Shape(
            name="nomic-embed-text-v1.5", exercises="rotary positions; native in transformers 5", padded=True, since=5,
            tokenizer="WordPiece", task="embeddings",
            config=_encoder("nomic_bert", max_position_embeddings=2048, pad_token_id=0),
            files=_sentence_transformers("mean_tokens", 64, max_seq_length=2048),
        ),
    ]  # fmt: skip


SHAPES = {shape.name: shape for shape in [*_packed(), *_padded()]}


def make(shape: Shape, folder: Path) -> Any:
    """Write the checkpoint; returns transformers' model of it, as fp32."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    TOKENIZERS[shape.tokenizer](folder)
    entries = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    step = shape.vocab_multiple
    raw = {**shape.config, "vocab_size": -(-entries // step) * step}
    config = folder / "config.json"
    native = {key: value for key, value in raw.items() if key != "auto_map"}
    config.write_text(json.dumps(native), "utf-8")
    torch.manual_seed(3)
    auto = getattr(transformers, _AUTO[shape.task])
    model = auto.from_config(transformers.AutoConfig.from_pretrained(folder))
    disturb(model, 2.0)
    if TRANSFORMERS_4 or shape.dtype != "float32":
        model = model.to(getattr(torch, shape.dtype))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **({"max_shard_size": "60KB"} if shape.shards else {}))
    assert shape.shards == (folder / "model.safetensors.index.json").is_file()
    config.write_text(json.dumps({**raw, "architectures": [type(model).__name__]}), "utf-8")
    for name, content in shape.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), "utf-8")
    # Opened again: a model that was cast to bf16 keeps rotary frequencies of that precision.
    exact = {"torch_dtype" if TRANSFORMERS_4 else "dtype": torch.float32}
    return auto.from_pretrained(folder, trust_remote_code=False, **exact).eval()


def reference(shape: Shape, folder: Path, model: Any, texts: list[Any], limit: int) -> list[np.ndarray[Any, Any]]:
    """The outputs of transformers, or of sentence-transformers, for the folder, text by text."""
    if shape.task == "embeddings" and shape.files:
        from sentence_transformers import SentenceTransformer

        opened = SentenceTransformer(str(folder), device="cpu", local_files_only=True).float()
        return [np.asarray(opened.encode(text)) for text in texts]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    takes = inspect.signature(model.forward).parameters
    answers = []
    for text in texts:
        parts = text if isinstance(text, tuple) else (text,)
        inputs = tokenizer(*parts, truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            out = model(**{name: value for name, value in inputs.items() if name in takes})
        answers.append((out.last_hidden_state.mean(1) if shape.task == "embeddings" else out.logits)[0].numpy())
    return answers


def texts_of(shape: Shape, mask: str | None) -> list[Any]:
    if shape.task == "rerank":
        return [*PAIRS, (PAIRS[0][0], LONG)]
    if shape.task == _MASKS:
        return [f"{text} {mask}" for text in SAMPLES]
    return [*SAMPLES, LONG, *(PAIRS if shape.task == _CLASSES else ())]


def check(shape: Shape, folder: Path, output: Path) -> dict[str, float]:
    """Export every graph of the shape, gate, predict; returns each graph's worst difference to the reference.

    Differences are of logits or vectors, divided by the largest of the reference where that is over 1.
    """
    model = make(shape, folder)
    worst = {}
    for target in ("onnx",) if shape.padded else ("cpu", "onnx"):
        result = export_checkpoint(folder, output / target, ExportOptions(target=target, threads=1))
        assert result.passed, [row for report in result.reports.values() for row in report["rows"] if not row["passed"]]
        assert bool(result.remarks) == shape.padded
        with load(output / target, threads=1) as served:
            assert served.artifact.layout == ("padded" if shape.padded else "packed")
            assert served.task == shape.task
            texts = texts_of(shape, served.manifest.mask_token)
            expected = reference(shape, folder, model, texts, served.manifest.max_length)
            gaps = [
                float(np.abs(ours - theirs).max()) / max(1.0, float(np.abs(theirs).max()))
                for ours, theirs in zip(served.logits(texts), expected, strict=True)
            ]
            worst[target] = max(gaps)
            _answers(shape, served, texts, expected)
    return worst


def _answers(shape: Shape, served: Any, texts: list[Any], expected: list[Any]) -> None:
    """The user's answers are those that the reference's logits mean."""
    if shape.task == _CLASSES and shape.config.get("problem_type") is None:
        best = [answer.label for answer in served.predict(texts)]
        assert best == [served.labels[int(row.argmax())] for row in expected]
    elif shape.task == _TOKENS:
        for answer, rows in zip(served.tag(texts), expected, strict=True):
            labels_of = [served.labels[i] for i in rows.argmax(-1)]
            assert 1 <= len(labels_of) - len(answer.labels) <= 2  # special tokens
            assert list(answer.labels) == labels_of[1 : 1 + len(answer.labels)]
    elif shape.task == "rerank":
        passages = [passage for _, passage in texts[:2]]
        order = [ranked.index for ranked in served.rerank(texts[0][0], passages)]
        assert order == sorted(range(2), key=lambda i: -float(expected[i][0]))
    elif shape.task == "embeddings":
        assert served.embed(texts[:2]).shape == (2, expected[0].shape[0])
