"""Folders of sentence-transformers, saved by the installed library around a small random encoder. Helpers, no tests."""

from __future__ import annotations

import importlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_models import disturb

from nopad.export.parity.samples import SAMPLES

HIDDEN = 64
# Upper case, short, other scripts, and more tokens than any limit below.
TEXTS = [*SAMPLES, "NO", SAMPLES[0].upper(), " ".join(SAMPLES)]


@contextmanager
def quiet() -> Iterator[None]:
    """The library warns about itself, and our tests turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def library() -> Any:
    with quiet():
        return importlib.import_module("sentence_transformers")


def st_modules() -> Any:
    """Pooling, Dense and so on, wherever the installed version has them."""
    with quiet():
        try:
            return importlib.import_module("sentence_transformers.sentence_transformer.modules")
        except ImportError:
            return importlib.import_module("sentence_transformers.models")


NEW = int(library().__version__.split(".")[0]) >= 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder to save: modules after the transformer, the model's own settings, and keys laid over its files."""

    modules: Callable[[Any], list[Any]] = lambda m: [m.Pooling(HIDDEN, pooling_mode="mean")]
    model: dict[str, Any] = field(default_factory=dict)
    transformer: dict[str, Any] = field(default_factory=dict)  # keys of sentence_bert_config.json
    edit: Callable[[Path], None] = lambda folder: None
    architecture: str = "bert"
    new: bool = False  # version 5 lacks it, or does something else

    def build(self, encoder: Path, folder: Path) -> Path:
        classes = st_modules()
        torch.manual_seed(5)
        with quiet():
            modules = [classes.Transformer(str(encoder)), *self.modules(classes)]
            for module in modules[1:]:
                disturb(module, 1.0)
            library().SentenceTransformer(modules=modules, device="cpu", **self.model).save_pretrained(
                str(folder), create_model_card=False
            )
        edit(folder / "sentence_bert_config.json", **self.transformer)
        if "truncate_dim" in self.model:  # version 5 does not save it
            edit(folder / "config_sentence_transformers.json", truncate_dim=self.model["truncate_dim"])
        self.edit(folder)
        return folder


def edit(file: Path, **changes: Any) -> None:
    """Lay keys over a JSON object."""
    raw = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**raw, **changes}), "utf-8")


def encode(folder: Path, texts: Sequence[str], **options: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The library's own answer."""
    with quiet():
        model = library().SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        model.float()
        if not NEW and (folder / "config_sentence_transformers.json").is_file():  # which version 6 reads itself
            about = json.loads((folder / "config_sentence_transformers.json").read_text())
            options = {"truncate_dim": about.get("truncate_dim"), **options}
        return np.asarray(model.encode(list(texts), show_progress_bar=False, **options), dtype=np.float32)


def encode_tokens(folder: Path, texts: Sequence[str], **options: Any) -> list[np.ndarray[Any, Any]]:
    """The library's vectors of each text's tokens."""
    with quiet():
        model = library().SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        model.float()
        rows = model.encode(list(texts), show_progress_bar=False, output_value="token_embeddings", **options)
    return [row.numpy() for row in rows]


def as_of_2020(folder: Path) -> None:
    """The oldest layout: the transformer in a folder of its own, with a settings file named after the architecture."""
    home = folder / "0_Transformer"
    home.mkdir()
    for file in [path for path in folder.iterdir() if path.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(file, home / file.name)
    (home / "sentence_bert_config.json").unlink()
    (home / "sentence_roberta_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    (folder / "config_sentence_transformers.json").unlink()
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rsplit('.', 1)[-1]}"
    (folder / "modules.json").write_text(json.dumps(modules))
    flags = {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
             "pooling_mode_max_tokens": True, "pooling_mode_mean_sqrt_len_tokens": False}  # fmt: skip
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))


def _not_pooled(folder: Path) -> None:
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)


def _without(folder: Path) -> None:
    shutil.rmtree(folder / "2_Normalize")  # git keeps no empty folder


PROMPTS = {"query": "query: ", "passage": "Represent the passage, please: ", "none": ""}
SIX = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def _flags(folder: Path, modes: Sequence[str]) -> None:
    """Several modes, as versions before 6 store them and 6 reads them."""
    ends = {"cls": "_token", "lasttoken": "", "mean_sqrt_len_tokens": ""}
    flags = {f"pooling_mode_{mode}{ends.get(mode, '_tokens')}": mode in modes for mode in SIX}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN, **flags}))


def _six_without_prompt(folder: Path) -> None:
    _flags(folder, SIX)
    _not_pooled(folder)


CASES: dict[str, Case] = {
    "mean, unit, short limit": Case(
        modules=lambda m: [m.Pooling(HIDDEN, pooling_mode="mean"), m.Normalize()],
        transformer={"max_seq_length": 24, "do_lower_case": False},
        edit=_without,
    ),
    "lower case, limit of the tokenizer arguments": Case(
        architecture="modernbert",
        modules=lambda m: [m.Pooling(HIDDEN, pooling_mode="cls")],
        transformer={"do_lower_case": True, "tokenizer_args": {"model_max_length": 40}, "max_seq_length": None},
    ),
    "six poolings, Dense, LayerNorm, cut": Case(
        architecture="modernbert",
        modules=lambda m: [
            m.Pooling(HIDDEN, pooling_mode="mean"),
            m.Dense(6 * HIDDEN, 24, activation_function=torch.nn.GELU()),
            m.LayerNorm(24),
            m.Normalize(),
        ],
        model={"prompts": PROMPTS, "default_prompt_name": "passage", "truncate_dim": 10, "similarity_fn_name": "dot"},
        edit=lambda folder: _flags(folder, SIX),
    ),
    "prompt not pooled": Case(
        new=True,
        architecture="modernbert",
        model={"prompts": PROMPTS, "default_prompt_name": "query"},
        modules=lambda m: [m.Pooling(HIDDEN, pooling_mode="mean"), m.Dropout(0.4)],
        edit=_not_pooled,
    ),
    "prompt not pooled, all modes": Case(
        new=True,
        model={"prompts": PROMPTS},
        transformer={"max_seq_length": 30},
        edit=_six_without_prompt,
    ),
    "two Dense, norm between": Case(
        modules=lambda m: [
            m.Pooling(HIDDEN, pooling_mode="weightedmean"),
            m.Dense(HIDDEN, 32, bias=False, activation_function=torch.nn.Identity()),
            m.Normalize(),
            m.Dense(32, 48),
        ],
        model={"truncate_dim": 4096},
    ),
    "oldest layout": Case(edit=as_of_2020),
    "Dense of tokens, residual": Case(
        new=True,
        modules=lambda m: [
            m.Dense(HIDDEN, 32, module_input_name="token_embeddings", activation_function=torch.nn.SiLU()),
            m.Pooling(32, pooling_mode="lasttoken"),
            m.Dense(32, 16, use_residual=True),
            m.Dense(16, 16, use_residual=True, activation_function=torch.nn.Sigmoid()),
        ],
    ),
}
