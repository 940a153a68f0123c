"""Two languages from end to end: mmBERT's shape (ModernBERT with Gemma 2's kind of tokenizer), and a unigram one.

Trained, exported through the parity gate and served; transformers reads the same checkpoint beside it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers
from bilingual import TOLD, bilingual_rows
from running_server import Running
from small_tokenizers import gemma, unigram, write
from tokenizers import Tokenizer
from training_samples import CONFIG, write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.errors import TextError
from nopad.runtime.predictor import load

SHAPE = {  # mmBERT's config.json, small
    **CONFIG,
    "global_rope_theta": 160000,
    "local_rope_theta": 160000,
    "position_embedding_type": "sans_pos",
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "cls_token_id": 1,
    "sep_token_id": 1,
    "mask_token_id": 4,
}
GEMMA = {"tokenizer_class": "GemmaTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"}
UNIGRAM = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
PADS = {"pad_token": "<pad>", "unk_token": "<unk>"}
KINDS: dict[str, tuple[Callable[..., Tokenizer], dict[str, Any], dict[str, Any]]] = {
    "mmBERT": (gemma, GEMMA | PADS, {}),
    "unigram": (unigram, UNIGRAM | PADS, {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 5}),
}


def nopad(*arguments: str | Path) -> tuple[str, str]:
    """What a command that succeeds prints, and what it says on stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        code = run([str(argument) for argument in arguments])
    assert code == 0, said.getvalue()
    return out.getvalue(), said.getvalue()


@pytest.mark.parametrize("kind", ["mmBERT", pytest.param("unigram", marks=pytest.mark.slow)])
def test_two_languages_trained_exported_and_served(kind: str, tmp_path: Path) -> None:
    make, settings, ids = KINDS[kind]
    rows = bilingual_rows()
    scratch = write(tmp_path / "scratch", make(corpus=[row["text"] for row in rows], size=400), settings)
    size = len(json.loads((scratch / "tokenizer.json").read_bytes())["model"]["vocab"])
    (scratch / "config.json").write_text(json.dumps({**SHAPE, **ids, "vocab_size": size}))
    data, checkpoint, bundle = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "checkpoint", tmp_path / "bundle"
    options = ["--epochs", "2", "--learning-rate", "5e-3", "--batch-size", "16", "--max-length", "64", "--threads", "1"]
    _, said = nopad("train", "--from-scratch", scratch, "--train", data, "--output", checkpoint, *options)
    assert "no token for" not in said
    exported, _ = nopad("export", checkpoint, "--output", bundle, "--target", "cpu", "--json")
    assert json.loads(exported)["verdict"] == "verified"

    texts = list(TOLD)
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    pipeline = transformers.pipeline("text-classification", model=str(checkpoint))
    with load(bundle, threads=1) as model:
        for text, tokens in zip(texts, model.encode(texts), strict=True):
            assert not isinstance(tokens, TextError) and tokens.input_ids == theirs(text)["input_ids"]
        answers = model.predict(texts)
    assert {text: answer.label for text, answer in zip(texts, answers, strict=True)} == TOLD
    for answer, want in zip(answers, pipeline(texts), strict=True):
        assert (answer.label, answer.score) == (want["label"], pytest.approx(want["score"], abs=1e-5))
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    server = Running({"films": bundle}).start()
    try:
        reply = httpx.post(f"{server.url}/v1/classify", json={"input": texts}, trust_env=False).json()
    finally:
        server.stop()
    assert [answer["label"] for answer in reply["data"]] == list(TOLD.values())
