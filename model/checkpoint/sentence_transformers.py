"""The files of a sentence-transformers folder: every key is followed, known to have no effect, or refused by name.

Files: `modules.json`; `sentence_bert_config.json` beside the transformer's own files (or its older names, see
`_TRANSFORMER_CONFIGS`); `config_sentence_transformers.json`; `config.json` of every other module. A cross-encoder may
have none of them, but keys of its own in the transformer's `config.json`. The keys' meaning is that of
sentence-transformers 6.2 (`base/model.py`, `base/modules/*.py`, `sentence_transformer/modules/*.py`). No code named in
these files is ever imported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nopad.model.checkpoint.json_files import read_json
from nopad.model.checkpoint.read_head import CROSS_ENCODER_KEYS
from nopad.model.config import DENSE_ACTIVATIONS, POOLING_MODES, EmbeddingModule, Pooling
from nopad.model.errors import CheckpointError
from nopad.model.head import BARE, SCORE_ACTIVATIONS

MODULES = "modules.json"
MODEL_CONFIG = "config_sentence_transformers.json"
# The first of these that is not empty counts, as in the library.
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_OTHER_MODELS = {
    "SparseEncoder": "its vectors are sparse (SPLADE); export it with --task fill-mask and pool its logits yourself",
    "MultiVectorEncoder": "it answers a vector for each token (ColBERT), through modules that nopad does not have",
}
_OTHER_MODULES = {
    "Router": "it sends queries and documents through different modules: save the one that you serve as a model of its "
    "own, SentenceTransformer(modules=list(router.sub_modules['document'])).save_pretrained(DIR)",
    "Asym": "it sends texts through different modules: save the one that you serve as a model of its own",
    "CLIPModel": "it reads images, too; nopad reads texts",
    "StaticEmbedding": "it has no encoder: its rows are looked up and averaged, which needs no nopad",
    "SpladePooling": _OTHER_MODELS["SparseEncoder"],
    "MLMTransformer": _OTHER_MODELS["SparseEncoder"],
    "MultiVectorMask": _OTHER_MODELS["MultiVectorEncoder"],
    "LogitScore": "it reads a decoder's scores of 'yes' and 'no'; nopad serves encoders",
}
_LEGACY_MODES = {  # in the order in which their rows are concatenated
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TEXT_ONLY = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
}
_SENTENCE, _TOKENS = "sentence_embedding", "token_embeddings"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A folder of sentence-transformers: what its `encode` (or a CrossEncoder's `predict`) does with a text."""

    model_type: str = "SentenceTransformer"  # or CrossEncoder
    transformer: str = ""  # the transformer's folder in the checkpoint: weights, config.json and tokenizer
    max_seq_length: int | None = None  # tokens; None: the tokenizer's and the model's own limits
    do_lower_case: bool = False
    pooling: Pooling = "mean"
    include_prompt: bool = True
    modules: tuple[EmbeddingModule, ...] = ()
    weights: tuple[str, ...] = ()  # the folder of each module's weights, "" where it has none
    truncate_dim: int | None = None
    normalize: bool = False  # the last module is Normalize, and nothing is cut off after it
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    activation: str | None = None  # of a cross-encoder's scores; None: by the number of labels


def transformer_folder(folder: Path) -> Path:
    """Where a checkpoint's config.json, weights and tokenizer lie. Raises `CheckpointError`."""
    if not (folder / MODULES).is_file():
        return folder
    return folder / _entries(folder)[0][1]


def module_files(folder: Path) -> list[str]:
    """Files that shape the checkpoint's answers, relative to its folder, whether they exist or not.

    The transformer's weights, config.json and tokenizer are not among them.
    """
    if not (folder / MODULES).is_file():
        return []
    (_, transformer), *others = _entries(folder)
    names = [MODULES, MODEL_CONFIG, *((PurePosixPath(transformer) / name).as_posix() for name in _TRANSFORMER_CONFIGS)]
    return names + [
        (PurePosixPath(path) / name).as_posix() for _, path in others for name in ("config.json", "model.safetensors")
    ]


def read_pipeline(folder: Path) -> Pipeline | None:
    """What a checkpoint's files of sentence-transformers say; None where it has no `modules.json`.

    Raises `CheckpointError` for a key that nopad cannot follow, with its file and value.
    """
    if not (folder / MODULES).is_file():
        return None
    about = _read_model_config(folder)
    entries = _entries(folder)
    kind, transformer = entries[0]
    if kind != "Transformer":
        raise CheckpointError(f"{folder / MODULES}: the first module is {kind}, expected Transformer{_why(kind)}")
    task = "feature-extraction" if about["model_type"] == "SentenceTransformer" else "sequence-classification"
    limits = _read_transformer(folder / transformer, task)
    if about["model_type"] == "CrossEncoder":
        if len(entries) > 1:
            raise CheckpointError(
                f"{folder / MODULES}: a cross-encoder with the module {entries[1][0]} is not supported, only a "
                f"Transformer with a head of its own{_why(entries[1][0])}"
            )
        return Pipeline(transformer=transformer, **limits, **about)
    chain = _read_chain(folder, entries[1:])
    normalizes = chain["modules"][-1:] == (EmbeddingModule(kind="Normalize"),) and about["truncate_dim"] is None
    if normalizes:
        chain |= {"modules": chain["modules"][:-1], "weights": chain["weights"][:-1]}
    return Pipeline(transformer=transformer, normalize=normalizes, **limits, **about, **chain)


def pipeline_for(folder: Path, task: str | None) -> Pipeline | None:
    """`read_pipeline` where the task uses the modules; other tasks use the transformer alone."""
    uses_modules = task in (None, *BARE) or is_cross_encoder(folder)
    return read_pipeline(folder) if uses_modules else None


def is_cross_encoder(folder: Path) -> bool:
    """Whether the folder is a cross-encoder saved by version 6. Raises `CheckpointError`."""
    return (folder / MODULES).is_file() and _read_optional(folder / MODEL_CONFIG).get("model_type") == "CrossEncoder"


def read_activation(config: Mapping[str, Any], file: Path) -> tuple[bool, str | None]:
    """Whether a transformer's config.json is a cross-encoder's, and its activation. Raises `CheckpointError`."""
    new, old = CROSS_ENCODER_KEYS
    own = config.get(new)
    if own is not None:
        if not isinstance(own, Mapping):
            raise CheckpointError(f"{file}: {new} is {own!r}, expected an object")
        _refuse_unknown(file, own, "activation_fn", "version")
        if "activation_fn" in own:
            return True, score_activation(file, own["activation_fn"])
    return own is not None or old in config, score_activation(file, config.get(old))


def _why(kind: str) -> str:
    return f": {_OTHER_MODULES[kind]}" if kind in _OTHER_MODULES else ""


def _entries(folder: Path) -> list[tuple[str, str]]:
    """Class and folder of each module in modules.json, in order."""
    file = folder / MODULES
    listed = read_json(file, list)
    if not listed or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"{file} is not a list of objects; copy the file again")
    entries = []
    for module in listed:
        # kwargs: names of further arguments of encode.
        _refuse_unknown(file, module, "idx", "name", "path", "type", "kwargs")
        kind, path = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise CheckpointError(f"{file}: a module has type {kind!r} and path {path!r}; copy the file again")
        if not kind.startswith("sentence_transformers."):
            raise CheckpointError(
                f"{file}: the module {kind} is custom code, which nopad does not run; nopad has the modules "
                "Transformer, Pooling, Dense, Normalize, LayerNorm and Dropout of sentence-transformers"
            )
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path or "\0" in path:
            raise CheckpointError(f"{file}: the path {path!r} leads out of the folder")
        entries.append((kind.rsplit(".", 1)[-1], path))
    names = [module.get("name") for module in listed]
    if len(set(map(str, names))) < len(names):
        raise CheckpointError(f"{file}: two modules have the same name, {names}; the library keeps only one of them")
    return entries


def _refuse_unknown(file: Path, raw: Mapping[str, Any], *keys: str) -> None:
    """Refuse a key that is not among `keys`, unless its value is null."""
    for key, value in raw.items():
        if key not in keys and value is not None:
            raise CheckpointError(
                f"{file}: the key {key!r} (value {value!r}) is unknown to nopad, which cannot tell what it does to the "
                "answers; remove it, if you know that it has no effect"
            )


def _refuse_unless(file: Path, raw: Mapping[str, Any], key: str, *harmless: Any) -> None:
    """Refuse a known key whose value nopad does not follow."""
    if raw.get(key) is not None and raw[key] not in harmless:
        raise CheckpointError(f"{file}: {key} {raw[key]!r} is not supported; without it the answers would differ")


def _value(file: Path, raw: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f"{file}: {key} is {value!r}, expected a {kind.__name__}")
    return value


def _read_optional(file: Path) -> dict[str, Any]:
    raw: dict[str, Any] = read_json(file, dict) if file.is_file() else {}
    return raw


def _read_model_config(folder: Path) -> dict[str, Any]:
    """`config_sentence_transformers.json`: prompts, truncation, what kind of model it is."""
    file = folder / MODEL_CONFIG
    raw = _read_optional(file)
    model_type = _value(file, raw, "model_type", str, "SentenceTransformer")
    if model_type not in ("SentenceTransformer", "CrossEncoder"):
        raise CheckpointError(
            f"{file}: model_type {model_type!r} is not supported: "
            f"{_OTHER_MODELS.get(model_type, 'nopad has SentenceTransformer and CrossEncoder')}"
        )
    embeds = model_type == "SentenceTransformer"
    # requirements are packages' versions; at fp32, keep_in_fp32_modules has no effect.
    common = ("model_type", "__version__", "requirements", "prompts", "default_prompt_name")
    _refuse_unknown(
        file,
        raw,
        *common,
        *(("similarity_fn_name", "truncate_dim") if embeds else ("activation_fn", "keep_in_fp32_modules")),
    )
    prompts = {"query": "", "document": ""} if embeds else {}
    for name, prompt in _value(file, raw, "prompts", dict, {}).items():
        if prompt is not None and not isinstance(prompt, str):
            raise CheckpointError(f"{file}: the prompt {name!r} is {prompt!r}, expected a str")
        prompts[name] = prompt or ""
    default = _value(file, raw, "default_prompt_name", str, None)
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{file}: default_prompt_name {default!r} is not one of its prompts ({', '.join(prompts)})"
        )
    about = {"model_type": model_type, "prompts": prompts, "default_prompt_name": default}
    if not embeds:
        return {**about, "activation": score_activation(file, raw.get("activation_fn"))}
    _refuse_unless(file, raw, "similarity_fn_name", "cosine", "dot", "euclidean", "manhattan")
    truncate_dim = _value(file, raw, "truncate_dim", int, None)
    if truncate_dim is not None and truncate_dim < 1:
        raise CheckpointError(f"{file}: truncate_dim {truncate_dim} keeps nothing of an embedding")
    return {**about, "similarity_fn_name": raw.get("similarity_fn_name") or "cosine", "truncate_dim": truncate_dim}


def _read_transformer(folder: Path, task: str) -> dict[str, Any]:
    """A Transformer module's limit of tokens, and whether it lower-cases texts."""
    files = ((folder / name, _read_optional(folder / name)) for name in _TRANSFORMER_CONFIGS)
    file, raw = next(((file, raw) for file, raw in files if raw), (folder / _TRANSFORMER_CONFIGS[0], {}))
    arguments = ("model", "config", "tokenizer", "processor")
    _refuse_unknown(
        file, raw, "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name",
        "processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion",
        "tokenizer_name_or_path", *(f"{name}_{end}" for name in arguments for end in ("args", "kwargs")),
    )  # fmt: skip
    # unpad_inputs changes how a GPU computes, not the result.
    _refuse_unless(file, raw, "transformer_task", task)
    output, name = _TEXT_ONLY[task]
    _refuse_unless(file, raw, "modality_config", {"text": {"method": "forward", "method_output_name": output}})
    _refuse_unless(file, raw, "module_output_name", name)
    for key in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        _refuse_unless(file, raw, key)
    _refuse_unless(file, raw, "processing_kwargs", {})
    limit = _value(file, raw, "max_seq_length", int, None)
    for key in (f"{name}_{end}" for name in arguments for end in ("args", "kwargs")):
        # Arguments that say where and how to compute do not change the result in fp32.
        options = {k: v for k, v in _value(file, raw, key, dict, {}).items() if k not in _HOW}
        if key.startswith(("tokenizer", "processor")):
            limit = _value(file, options, "model_max_length", int, limit)
            options.pop("model_max_length", None)
        if options:
            raise CheckpointError(f"{file}: {key} {options!r} is not supported; without it the answers would differ")
    if limit is not None and limit < 3:
        raise CheckpointError(f"{file}: max_seq_length {limit} leaves no room for a text beside the special tokens")
    return {"max_seq_length": limit, "do_lower_case": _value(file, raw, "do_lower_case", bool, False)}


_HOW = ("trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "low_cpu_mem_usage", "device_map",
        "use_safetensors", "add_pooling_layer", "padding_side", "use_fast")  # fmt: skip


def _read_chain(folder: Path, entries: list[tuple[str, str]]) -> dict[str, Any]:
    """The modules after the transformer."""
    pooled: dict[str, Any] | None = None
    modules: list[EmbeddingModule] = []
    weights: list[str] = []
    for kind, path in entries:
        file = folder / path / "config.json"
        if kind == "Pooling":
            if pooled is not None:
                raise CheckpointError(f"{folder / MODULES}: a second Pooling is not supported")
            pooled = _read_pooling(file)
        elif kind == "Dropout":  # has no effect outside of training
            _refuse_unknown(file, _read_optional(file), "dropout")
        elif kind in ("Dense", "LayerNorm", "Normalize"):
            module = _read_module(kind, file)
            if module.of_tokens and pooled is not None:
                raise CheckpointError(f"{file}: the module {kind} changes tokens after they were pooled")
            if not module.of_tokens and pooled is None:
                if kind != "Normalize":  # nothing to normalise yet: the library skips it
                    raise CheckpointError(f"{folder / MODULES}: the module {kind} stands before the Pooling")
                continue
            modules.append(module)
            weights.append("" if kind == "Normalize" else path)
        else:
            raise CheckpointError(
                f"{folder / MODULES}: the module {kind} is not supported"
                + (_why(kind) or "; nopad has Transformer, Pooling, Dense, Normalize, LayerNorm and Dropout")
            )
    if pooled is None:
        raise CheckpointError(f"{folder / MODULES} names no Pooling: its answer would be a vector for each token")
    return {**pooled, "modules": tuple(modules), "weights": tuple(weights)}


def _read_pooling(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent.parent / MODULES} names the module Pooling, but {file} is missing; copy it, too"
        )
    raw = read_json(file, dict)
    # Its input's size has no effect on what it computes.
    _refuse_unknown(
        file, raw, "embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_LEGACY_MODES
    )
    modes = raw.get("pooling_mode")
    if modes is None:  # as in versions before 6
        modes = [mode for key, mode in _LEGACY_MODES.items() if _value(file, raw, key, bool, False)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown or not modes:
        raise CheckpointError(
            f"{file}: pooling {unknown or modes} is not supported; nopad has {', '.join(POOLING_MODES)}"
        )
    return {"pooling": "+".join(modes), "include_prompt": _value(file, raw, "include_prompt", bool, True)}


def _read_module(kind: Any, file: Path) -> EmbeddingModule:
    raw = _read_optional(file) if kind == "Normalize" else read_json(file, dict) if file.is_file() else None
    if raw is None:
        raise CheckpointError(
            f"{file.parent.parent / MODULES} names the module {kind}, but {file} is missing; copy it, too"
        )
    if kind == "LayerNorm":
        _refuse_unknown(file, raw, "dimension")
        size = _size(file, raw, "dimension")
        return EmbeddingModule(kind=kind, in_features=size, out_features=size)
    names = ("module_input_name", "module_output_name")
    source = _value(file, raw, names[0], str, _SENTENCE)
    if source not in (_SENTENCE, _TOKENS):
        raise CheckpointError(f"{file}: {names[0]} {source!r} is not supported, only {_SENTENCE} and {_TOKENS}")
    _refuse_unless(file, raw, names[1], source)
    if kind == "Normalize":
        _refuse_unknown(file, raw, *names)
        return EmbeddingModule(kind=kind, of_tokens=source == _TOKENS)
    _refuse_unknown(file, raw, "in_features", "out_features", "bias", "activation_function", "use_residual", *names)
    activation = _torch_class(file, "activation_function", raw.get("activation_function"), DENSE_ACTIVATIONS)
    return EmbeddingModule(
        kind=kind,
        of_tokens=source == _TOKENS,
        in_features=_size(file, raw, "in_features"),
        out_features=_size(file, raw, "out_features"),
        bias=_value(file, raw, "bias", bool, True),
        activation=activation or "Tanh",
        residual=_value(file, raw, "use_residual", bool, False),
    )


def _size(file: Path, raw: Mapping[str, Any], key: str) -> int:
    size: int = _value(file, raw, key, int, 0)
    if not 0 < size <= 2**24:
        raise CheckpointError(f"{file}: {key} is {raw.get(key)!r}, expected a size")
    return size


def score_activation(file: Path, name: Any) -> str | None:
    """The activation of a cross-encoder's scores, by its class name; None where the folder names none."""
    return _torch_class(file, "activation_fn", name, SCORE_ACTIVATIONS)


def _torch_class(file: Path, key: str, name: Any, known: Collection[str]) -> str | None:
    """`torch.nn.modules.activation.Tanh` -> `Tanh`. The name is compared, never imported."""
    if name is None:
        return None
    short = str(name).rsplit(".", 1)[-1]
    if not str(name).startswith("torch.nn.") or short not in known:
        raise CheckpointError(
            f"{file}: {key} {name!r} is not supported; nopad has torch.nn's {', '.join(known)}, and imports no code "
            "that a file names"
        )
    return short
