"""Texts of a benchmark: real texts cut to tokens, generated texts said to be so; and the work in them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from nopad.bench.workloads import GENERATED, OwnTexts, Source, check_names, flops_of, grid_size
from nopad.runtime.bundle import open_bundle
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError, UsageError
from nopad.runtime.planning.cost_model import cost_model
from nopad.runtime.tokenizer import TextEncoder

EMBEDDED = open_bundle(verify=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Real texts, as the command looks for them."""
    for name in ("imdb", "sst2", "longdocs"):
        (tmp_path / name).mkdir()
    reviews = [
        {"text": f"Review {number}. " + "It was a fine film, really. " * 40 * number, "label": number % 2}
        for number in range(1, 41)
    ]
    (tmp_path / "imdb" / "test.jsonl").write_text("\n".join(map(json.dumps, reviews)))
    phrases = [f'{number % 2}\tphrase number {number} is "odd"' for number in range(80)]
    (tmp_path / "sst2" / "train.tsv").write_text("\n".join(["label\tsentence", *phrases]))
    (tmp_path / "longdocs" / "a.txt").write_text("Four score and seven years ago, our fathers brought forth. " * 500)
    return tmp_path


def lengths(texts: tuple[str, ...]) -> list[int]:
    encoder = TextEncoder(EMBEDDED.file("tokenizer.json"), 10**6)
    return [item.used for item in encoder.encode(texts)]  # type: ignore[union-attr]


def test_real_texts_are_taken_in_order_with_their_labels(folder: Path) -> None:
    texts = Source(EMBEDDED, folder).named("sst2-64")
    assert texts.texts[:2] == ('phrase number 0 is "odd"', 'phrase number 1 is "odd"')
    assert texts.workload.source == "sst2/train.tsv" and texts.workload.labelled
    assert texts.targets is not None and texts.targets[:2].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert texts.workload.texts == texts.workload.batch == len(texts.texts) == 64


def test_reviews_are_cut_to_512_tokens_and_counted(folder: Path) -> None:
    texts = Source(EMBEDDED, folder).named("imdb-32")
    token_counts = lengths(texts.texts)
    assert max(token_counts) == texts.workload.longest == 512
    assert tuple(token_counts) == texts.workload.lengths and sum(token_counts) == texts.workload.tokens
    assert texts.workload.padded_tokens == 32 * 512


@pytest.mark.parametrize("name", ["1x3", "1x64", "7x129", "2x1024"])
def test_fixed_texts_have_exactly_that_many_tokens(name: str, folder: Path) -> None:
    for source in (Source(EMBEDDED, folder), Source(EMBEDDED, None)):
        texts = source.named(name)
        count, tokens = grid_size(name) or (0, 0)
        assert lengths(texts.texts) == [tokens] * count
        assert texts.workload.kind == "fixed" and texts.workload.padded_tokens == count * tokens


def test_generated_texts_say_so_and_stay_the_same(tmp_path: Path) -> None:
    for source in (Source(EMBEDDED, None), Source(EMBEDDED, tmp_path)):
        texts = source.named("imdb-32")
        assert texts.workload.source == GENERATED and texts.targets is None
        assert len(source.remarks) == 1 and GENERATED in source.remarks[0]
        assert texts == Source(EMBEDDED, None).named("imdb-32")
    assert 100 < texts.workload.tokens / 32 < 400 and texts.workload.longest <= 512


def test_own_texts_go_in_calls(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"t": "a film " * (1 + n), "label": "positive"}) for n in range(10)))
    texts = Source(EMBEDDED, None).own(OwnTexts(source=DataSource(path=str(path)), text_field="t", limit=7), 3)
    assert texts.workload.texts == 7 and texts.workload.batch == 3 and texts.workload.name == "mine-3"
    assert texts.targets is not None and texts.targets.shape == (7, 2)
    first, second, third = (max(texts.workload.lengths[at : at + 3]) for at in (0, 3, 6))
    assert texts.workload.padded_tokens == 3 * first + 3 * second + third
    with pytest.raises(InputFileError, match=r"field text or sentence .* is missing \(found: label, t\)"):
        Source(EMBEDDED, None).own(OwnTexts(source=DataSource(path=str(path))), 3)


def test_own_pairs_are_read_as_one_text_each(tmp_path: Path) -> None:
    rows = [{"a": "a dull film", "b": "she said" + " so" * n, "label": n % 2} for n in range(4)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    own = OwnTexts(source=DataSource(path=str(path)), text_field="a", second_field="b")
    texts = Source(EMBEDDED, None).own(own, 2)
    assert texts.texts == tuple((row["a"], row["b"]) for row in rows)
    assert texts.targets is not None and texts.targets[:, 1].tolist() == [0, 1, 0, 1]
    encoded = TextEncoder(EMBEDDED.file("tokenizer.json"), 10**6).encode(texts.texts)
    assert list(texts.workload.lengths) == [item.used for item in encoded]  # type: ignore[union-attr]
    assert texts.workload.longest > max(lengths(("a dull film", rows[-1]["b"])))
    joined = OwnTexts(source=DataSource(path=str(path)), text_field="a")
    assert Source(EMBEDDED, None).own(joined, 2).workload.sha256 != texts.workload.sha256


@pytest.mark.parametrize(
    ("task", "second", "message"),
    [
        ("rerank", None, "a reranker reads pairs: name the query with --text-field"),
        ("embeddings", "b", "--second-field: a model of embeddings reads no pairs"),
        ("fill-mask", "b", "--second-field: a model of fill-mask reads no pairs"),
    ],
)
def test_pairs_are_for_models_that_read_them(task: Any, second: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "b": "b"}\n')
    other = dataclasses.replace(EMBEDDED, manifest=dataclasses.replace(EMBEDDED.manifest, task=task))
    with pytest.raises(UsageError, match=message):
        Source(other, None).own(OwnTexts(source=DataSource(path=str(tmp_path / "rows.jsonl")), second_field=second), 2)


def test_names_that_mean_nothing_are_refused_with_those_that_do() -> None:
    check_names(["sst2-64", "8x128"], 1024)
    for name in ("imdb", "x512", "0x5", "8x", "1x2x3", "1x0512"):
        with pytest.raises(UsageError, match="unknown workload.*sst2-64, imdb-32, 1x512"):
            check_names([name], 1024)
    with pytest.raises(UsageError, match="1024 tokens at most"):
        check_names(["1x2048"], 1024)
    with pytest.raises(UsageError, match="at least 3"):
        check_names(["1x2"], 1024)


def test_the_work_is_told_of_packed_encoders_alone() -> None:
    assert flops_of(EMBEDDED.manifest.architecture, [5, 7]) == cost_model(EMBEDDED.manifest.architecture).text_flops(
        [5, 7]
    )
    assert flops_of({"model_type": "distilbert"}, [5]) is None
