"""The pipe of spaCy over bundles of its tasks."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository import ROOT

spacy: Any = pytest.importorskip("spacy", reason="pip install 'nopad[spacy]'")
from spacy.tokens import Doc, DocBin

import nopad.adapters.spacy
from nopad.runtime import Model
from nopad.runtime.errors import TextError, UsageError

TEXTS = ["A dull film, all in all.", "Mr. Smith barks at London's dogs", "splendid"]


def pipeline(bundle: Path | None, load_options: dict[str, Any]) -> Any:
    nlp = spacy.blank("en")
    nlp.add_pipe("nopad", config={"bundle": bundle and str(bundle), "load_options": load_options})
    return nlp


def test_categories_are_the_labels_scores() -> None:
    nlp = pipeline(None, {"threads": 1})
    found = nlp("A dull film, all in all.").cats
    assert set(found) == {"negative", "positive"} and found["negative"] > 0.5
    assert [doc.cats for doc in nlp.pipe(TEXTS, batch_size=2)] == [pytest.approx(nlp(text).cats) for text in TEXTS]


def test_entities_are_whole_tokens_around_ours(
    ungated: Callable[[str], Path], unverified: dict[str, Any], opened: Callable[[str], Model]
) -> None:
    nlp = pipeline(ungated("modernbert-token"), unverified)
    docs = list(nlp.pipe(TEXTS))
    taggings = opened("modernbert-token").tag(TEXTS)
    assert sum(len(doc.ents) for doc in docs) > 3
    for doc, tagging in zip(docs, taggings, strict=True):
        for entity in doc.ents:
            inside = [
                each
                for each in tagging.entities
                if each.label == entity.label_ and entity.start_char <= each.start and each.end <= entity.end_char
            ]
            assert inside, entity
            # No wider than the tokens that the entity of ours touches.
            touched = [t for each in inside for t in doc if t.idx < each.end and t.idx + len(t) > each.start]
            assert {entity[0].i, entity[-1].i} <= {token.i for token in touched}
        covered = {i for entity in doc.ents for i in range(entity.start, entity.end)}
        for each in tagging.entities:  # one that shares a token with a longer one gives way
            assert covered & {t.i for t in doc if t.idx < each.end and t.idx + len(t) > each.start}


def test_vectors_are_kept_where_docs_are_stored(
    prompted: Callable[[str], tuple[Path, Path]], unverified: dict[str, Any], embedding_model: Model
) -> None:
    nlp = pipeline(prompted("both")[1], unverified)
    docs = list(nlp.pipe(TEXTS))
    expected = embedding_model.embed(TEXTS)
    np.testing.assert_allclose([doc.vector for doc in docs], expected, atol=1e-6)
    again = list(DocBin(docs=docs, store_user_data=True).get_docs(nlp.vocab))
    np.testing.assert_array_equal([doc.user_data["nopad"] for doc in again], [doc.vector for doc in docs])


def test_texts_that_cannot_be_read_do_not_take_the_others_along() -> None:
    nlp = pipeline(None, {"threads": 1, "truncation": "error"})
    bad = "a dull film " * 400
    with pytest.raises(TextError, match="tokens"):
        list(nlp.pipe(["splendid", bad]))
    failed: list[str] = []
    nlp.set_error_handler(lambda name, pipe, docs, error: failed.append(f"{name}: {error}"))
    found = list(nlp.pipe(["splendid", bad, "", "dull"]))
    assert [max(doc.cats, key=doc.cats.get, default=None) for doc in found] == ["positive", None, "negative"]
    assert len(failed) == 1 and failed[0].startswith("nopad: ") and "1024" in failed[0]
    assert nlp("  ").cats == {}


def test_a_stored_pipeline_opens_its_bundle_again(tmp_path: Path) -> None:
    nlp = pipeline(None, {"threads": 1})
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path)
    assert again.config["components"]["nopad"]["load_options"] == {"threads": 1}
    assert again("splendid").cats == nlp("splendid").cats


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_open_their_own() -> None:
    nlp = pipeline(None, {"threads": 1})
    docs: list[Doc] = list(nlp.pipe(TEXTS, n_process=2, batch_size=1))
    assert [doc.cats for doc in docs] == [pytest.approx(nlp(text).cats) for text in TEXTS]


def test_another_task_is_refused(ungated: Callable[[str], Path], unverified: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the pipe nopad needs a bundle for text-classification or token-classif"):
        pipeline(ungated("modernbert-rerank"), unverified)


def test_spacy_finds_the_pipe_without_an_import_of_ours() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]["spacy_factories"]
    module, _, name = points["nopad"].partition(":")
    assert module == nopad.adapters.spacy.__name__ and getattr(nopad.adapters.spacy, name).__name__ == "make_pipe"
