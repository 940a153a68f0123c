"""Every task's answers are those of transformers' own pipelines and models on the same checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nopad.export.parity.samples import SAMPLES
from nopad.model.head import Head
from nopad.runtime import decode, load
from nopad.runtime.errors import TextError, UsageError
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import AnsweredBy, TokenEmbeddings

FAKE = AnsweredBy("fake", "fp32")
Folders = Callable[[str], Path]
TEXTS = list(SAMPLES)
TOKENS = "modernbert-tokens"


def reference(folder: Path, kind: str) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer, getattr(transformers, kind).from_pretrained(folder, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("name", ["modernbert-single-mean", "modernbert-multi-cls", "bert-single"])
def test_text_classification(name: str, bundle: Folders, checkpoint: Folders) -> None:
    tokenizer, model = reference(checkpoint(name), "AutoModelForSequenceClassification")
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    with load(bundle(name), threads=1) as served:
        for answer, want in zip(served.predict(TEXTS), pipe(TEXTS), strict=True):
            assert dict(answer.scores) == pytest.approx({entry["label"]: entry["score"] for entry in want}, abs=1e-5)
            assert answer.label == want[0]["label"]
            if "multi" in name:
                assert set(answer.labels) == {entry["label"] for entry in want if entry["score"] >= 0.5}


def test_regression(bundle: Folders, checkpoint: Folders) -> None:
    tokenizer, model = reference(checkpoint("modernbert-regression-cls"), "AutoModelForSequenceClassification")
    with load(bundle("modernbert-regression-cls"), threads=1) as served, torch.no_grad():
        for text, answer in zip(TEXTS, served.predict(TEXTS), strict=True):
            want = float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0])
            assert answer.score == pytest.approx(want, abs=1e-5 * max(1, abs(want)))


def test_token_classification(bundle: Folders, checkpoint: Folders) -> None:
    tokenizer, model = reference(checkpoint("modernbert-token"), "AutoModelForTokenClassification")
    with load(bundle("modernbert-token"), threads=1) as served, torch.no_grad():
        for text, answer in zip(TEXTS, served.tag(TEXTS, return_logits=True), strict=True):
            encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
            offsets = encoded.pop("offset_mapping")[0].tolist()
            logits = model(**encoded).logits[0]
            assert answer.logits == pytest.approx(logits.numpy(), abs=1e-5 * max(1, float(logits.abs().max())))
            best = logits[1:-1].softmax(-1).max(-1)  # without [CLS] and [SEP]
            assert list(answer.labels) == [model.config.id2label[int(i)] for i in best.indices]
            assert answer.scores == pytest.approx(best.values.tolist(), abs=1e-5)
            # Entities: runs of equal labels, with the text they stand for. A character of several tokens is told once.
            runs: list[list[int]] = []
            for i, label in enumerate(answer.labels):
                if runs and answer.labels[runs[-1][-1]] == label:
                    runs[-1].append(i)
                else:
                    runs.append([i])
            ends = [0]
            for run in runs:
                ends.append(max(ends[-1], offsets[run[-1] + 1][1]))
            runs = [run for run, before, end in zip(runs, ends, ends[1:], strict=False) if before < end]
            assert [entity.label for entity in answer.entities] == [answer.labels[run[0]] for run in runs]
            for entity, run in zip(answer.entities, runs, strict=True):
                assert entity.text == text[entity.start : entity.end]
                assert entity.end == max(offsets[i + 1][1] for i in run) or not text[entity.end].strip()


@pytest.mark.parametrize("texts", [["the [MASK] was long"], ["[MASK] and [MASK], again", "a [MASK]"]])
def test_fill_mask(texts: list[str], bundle: Folders, checkpoint: Folders) -> None:
    tokenizer, model = reference(checkpoint("modernbert-mlm"), "AutoModelForMaskedLM")
    pipe = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=4)
    with load(bundle("modernbert-mlm"), threads=1) as served:
        for text, answer in zip(texts, served.fill(texts, top_k=4), strict=True):
            want = pipe(text)
            for mask, expected in zip(answer.masks, want if isinstance(want[0], list) else [want], strict=True):
                assert [score for _, score in mask] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)
                assert [token for token, _ in mask] == [entry["token_str"].strip() for entry in expected]


def test_a_text_without_a_mask_is_refused(bundle: Folders) -> None:
    with load(bundle("modernbert-mlm"), threads=1) as served, pytest.raises(Exception, match=r"text 1: .*\[MASK\]"):
        served.fill(["a [MASK]", "none"])


def test_embeddings(bundle: Folders, checkpoint: Folders) -> None:
    tokenizer, model = reference(checkpoint("modernbert-embed-mean-unit"), "AutoModel")
    with load(bundle("modernbert-embed-mean-unit"), threads=1) as served, torch.no_grad():
        vectors = served.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), 64) and vectors.dtype == np.float32
        assert served.embed([]).shape == (0, 64)
        for text, vector in zip(TEXTS, vectors, strict=True):
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_token_embeddings(bundle: Folders, checkpoint: Folders) -> None:
    tokenizer, model = reference(checkpoint(TOKENS), "AutoModel")
    texts = [*TEXTS, " ".join(TEXTS) * 6]  # the last is cut at the model's 1,024 tokens
    with load(bundle(TOKENS), threads=1) as served, torch.no_grad():
        found = served.embed_tokens(texts)
        answers = [answer for answer in served.results(texts) if isinstance(answer, TokenEmbeddings)]
        for text, vectors, answer in zip(texts, found, answers, strict=True):
            encoded = tokenizer(text, truncation=True, max_length=1024, return_tensors="pt")
            want = model(**encoded).last_hidden_state[0].numpy()
            assert vectors.dtype == np.float32 and vectors.shape == want.shape
            assert vectors == pytest.approx(want, abs=1e-5 * max(1, float(np.abs(want).max())))
            assert list(answer.tokens_text) == tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
            assert answer.vectors == pytest.approx(vectors, abs=1e-5) and answer.truncated == (text is texts[-1])
        assert served.embed_tokens([]) == []
        again = asyncio.run(served.aembed_tokens(texts[:3]))
        assert all(np.allclose(ours, want, atol=1e-5) for ours, want in zip(again, found, strict=False))


def test_what_becomes_of_long_texts_whose_tokens_are_embedded(bundle: Folders) -> None:
    text = " ".join(TEXTS) * 6
    with load(bundle(TOKENS), threads=1) as served:
        with pytest.raises(TextError, match=r"text 1: .* 1024"):
            served.embed_tokens(["a", text], truncation="error")
        (answer,) = served.results([text], truncation="window", stride=200)
        assert isinstance(answer, TokenEmbeddings) and answer.windows > 1
        assert len(answer.vectors) == len(answer.tokens_text) == answer.tokens > 1024
        (cut,) = served.embed_tokens([text])
        # Of its first 512 tokens the first window decides, which is the text as it is cut, but for its last token.
        assert np.allclose(answer.vectors[:512], cut[:512], atol=1e-4)
        with pytest.raises(UsageError, match="merge='mean' is not for token-embeddings"):
            served.embed_tokens([text], truncation="window", merge="mean")


def test_a_bundle_of_the_other_embeddings_says_how_to_export_these(bundle: Folders) -> None:
    with load(bundle(TOKENS), threads=1) as served, pytest.raises(UsageError) as caught:
        served.embed(["a"])
    assert str(caught.value).endswith("use embed_tokens(), or export its checkpoint with --task embeddings")
    with load(bundle("modernbert-embed-mean-unit"), threads=1) as served, pytest.raises(UsageError) as caught:
        served.embed_tokens(["a"])
    assert str(caught.value).endswith("use embed(), or export its checkpoint with --task token-embeddings")
    with load(threads=1) as served, pytest.raises(UsageError) as caught:
        served.embed_tokens(["a"])
    assert (
        str(caught.value)
        == "embed_tokens() is for token-embeddings, this bundle does text-classification: use predict()"
    )


def test_rerank(bundle: Folders, checkpoint: Folders) -> None:
    tokenizer, model = reference(checkpoint("modernbert-rerank"), "AutoModelForSequenceClassification")
    with load(bundle("modernbert-rerank"), threads=1) as served, torch.no_grad():
        ranked = served.rerank("how long is the film", TEXTS)
        want = [
            float(model(**tokenizer("how long is the film", text, return_tensors="pt")).logits[0, 0].sigmoid())
            for text in TEXTS
        ]
        assert [passage.score for passage in ranked] == pytest.approx(sorted(want, reverse=True), abs=1e-5)
        assert sorted(passage.index for passage in ranked) == list(range(len(TEXTS)))
        for passage in ranked:
            assert passage.text == TEXTS[passage.index]
            assert passage.score == pytest.approx(want[passage.index], abs=1e-5)
        assert served.rerank("query", []) == []
        with pytest.raises(UsageError, match="brackets"):
            served.rerank("query", "passage")


def test_entities_follow_iob2() -> None:
    labels = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    text = "Ada Lovelace met Bob in New York"
    words = [(0, 3), (4, 12), (13, 16), (17, 20), (21, 23), (24, 27), (28, 32)]
    said = ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC", "I-LOC"]
    logits = np.eye(5, dtype=np.float32)[[0, *(labels.index(label) for label in said), 0]] * 9
    tokens = Tokens(
        text=text,
        input_ids=list(range(9)),
        token_type_ids=[0] * 9,
        tokens=9,
        offsets=[(0, 0), *words, (0, 0)],
        special=[1, *[0] * 7, 1],
        pieces=["[CLS]", *(text[a:b] for a, b in words), "[SEP]"],
    )
    answer = decode.tagging(logits, tokens, Head(task="token-classification", labels=labels), FAKE, False)
    assert [(e.label, e.text) for e in answer.entities] == [
        ("PER", "Ada Lovelace"),
        ("PER", "Bob"),
        ("LOC", "New York"),
    ]
    assert answer.labels == tuple(said) and answer.tokens_text[0] == "Ada"


def test_splade_keeps_the_greatest_weight_of_each_entry_and_no_zero() -> None:
    tokens = Tokens(
        text="a",
        input_ids=[1, 5, 2],
        token_type_ids=[0] * 3,
        tokens=4,
        offsets=[(0, 0), (0, 1), (0, 0)],
        special=[1, 0, 1],
        pieces=["", "a", ""],
    )
    logits = np.array([[-1, 0, 2, 1e-4], [-2, 0, 1, -1], [-1, 0, 3, -1]], dtype=np.float32)
    answer = decode.splade(logits, tokens, FAKE)
    assert answer.indices.tolist() == [2, 3] and answer.truncated
    assert answer.values == pytest.approx([np.log(4), np.log1p(1e-4)], rel=1e-6)
