"""Entities by strategy are those of transformers' own `TokenClassificationPipeline` with the same model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from repository import DATA
from small_tokenizers import KINDS, write

from nopad.model.head import Head
from nopad.runtime import decode
from nopad.runtime.errors import UsageError
from nopad.runtime.tokenizer import Tokens, open_encoder
from nopad.runtime.types import STRATEGIES, AnsweredBy, Strategy

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "PLAIN", "B-A-B")
TEXTS = [
    "Alice works in Paris, Bob in London",
    "Xyzzyplugh-Quuxington met Frobnicatorius the Unheardofable in Llanfairpwllgwyngyll.",
    "café naïve 中文 👩‍👩‍👧 straße İstanbul",
    "  two  spaces\tand a tab \n[UNK] and ☃☃ unknown",
    "U.S.-based e-mail, O'Neill's (sic)",
    "x",
]


def sentences() -> list[str]:
    """Ours, and some of CoNLL where the test data are."""
    file = DATA / "conll" / "esp.testa"
    if not file.is_file():
        return TEXTS
    blocks = file.read_text("utf-8", errors="replace").split("\n\n")[:400:8]
    return TEXTS + [" ".join(line.split()[0] for line in block.splitlines() if line.split()) for block in blocks]


class Tagger:
    """A random model behind transformers' pipeline, and our decoding of the same logits."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=KINDS[kind](), unk_token="<unk>" if kind.startswith("unigram") else "[UNK]"
        )
        self.encoder = open_encoder(write(folder, self.tokenizer.backend_tokenizer, {}) / "tokenizer.json", 512)
        torch.manual_seed(3)
        config = transformers.BertConfig(
            vocab_size=len(self.tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_labels=len(LABELS), id2label=dict(enumerate(LABELS)), initializer_range=0.8,
            label2id={label: number for number, label in enumerate(LABELS)},
        )  # fmt: skip
        self.pipeline = transformers.TokenClassificationPipeline(
            model=transformers.BertForTokenClassification(config).eval(), tokenizer=self.tokenizer
        )

    def computed(self, text: str) -> list[Any]:
        """What the pipeline's model says of the text."""
        with torch.no_grad():
            return [
                self.pipeline.forward(inputs)
                for inputs in self.pipeline.preprocess(text, **self.pipeline._preprocess_params)
            ]

    def theirs(self, computed: list[Any], strategy: Strategy, ignored: list[str]) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a tokenizer knows no words
            options = self.pipeline._sanitize_parameters(aggregation_strategy=strategy, ignore_labels=ignored)[2]
            return list(self.pipeline.postprocess(computed, **options))

    def ours(self, text: str, computed: list[Any], strategy: Strategy, ignored: list[str]) -> list[dict[str, Any]]:
        (tokens,) = self.encoder.encode([text])
        assert isinstance(tokens, Tokens) and tokens.input_ids == computed[0]["input_ids"][0].tolist()
        head = Head(task="token-classification", labels=LABELS)
        group = decode.grouping(self.encoder, head, strategy, ignored)
        logits = computed[0]["logits"][0].numpy()
        answer = decode.tagging(logits, tokens, head, AnsweredBy("e", "fp32"), False, group)
        kind = "entity" if strategy == "none" else "entity_group"
        rows = []
        for entity in answer.entities:
            assert entity.text == text[entity.start : entity.end]
            index = {"index": entity.index} if strategy == "none" else {}
            row = {kind: entity.label, "score": entity.score, **index, "word": entity.word}
            rows.append({**row, "start": entity.start, "end": entity.end})
        return rows


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "unigram"])
def test_every_strategy_is_the_pipelines(kind: str, tmp_path: Path) -> None:
    tagger = Tagger(kind, tmp_path)
    found: dict[str, int] = dict.fromkeys(STRATEGIES, 0)
    for text in sentences():
        computed = tagger.computed(text)
        for strategy in STRATEGIES:
            for ignored in (["O"], [], ["PER", "B-LOC"]):
                want = tagger.theirs(computed, strategy, ignored)
                got = tagger.ours(text, computed, strategy, ignored)
                assert [{**row, "score": 0} for row in got] == [{**row, "score": 0} for row in want], (text, strategy)
                assert [row["score"] for row in got] == pytest.approx([float(row["score"]) for row in want], abs=1e-5)
                found[strategy] += len(want)
    assert len(set(found.values())) == len(STRATEGIES)  # no two of them are the same on these texts


def test_a_model_groups_by_its_own_tags_unless_told(bundle: Callable[[str], Path]) -> None:
    from nopad.runtime import load

    text = TEXTS[1]
    with load(bundle("modernbert-token"), threads=1) as model:
        (own,) = model.tag([text])
        (tokens,) = model.tag([text], strategy="none", ignore_labels=[])
        assert [entity.label for entity in tokens.entities] == list(tokens.labels) == list(own.labels)
        assert tokens.entities[0].index == 1 and own.entities[0].index is own.entities[0].word is None
        kinds = {entity.label for entity in own.entities}
        (fewer,) = model.tag([text], ignore_labels=sorted(kinds)[:1])
        assert {entity.label for entity in fewer.entities} == kinds - {min(kinds)}
        with pytest.raises(UsageError, match="one of none, simple, first, average, max, not 'best'"):
            model.tag([text], strategy="best")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="ignore_labels is a list"):
            model.tag([text], ignore_labels="O")
