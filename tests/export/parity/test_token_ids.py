"""The gate finds what is wrong with a bundle's tokenizer, and names it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import VOCAB_SIZE, make_checkpoint
from gate_faults import gate_against

from nopad.export.bundle import export_checkpoint
from nopad.export.parity.token_ids import added_tokens, compare, sentences_of
from nopad.export.reference.transformers import Reference
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.runtime.bundle import open_bundle, record_files, write_manifest
from nopad.runtime.cli import run
from nopad.runtime.predictor import load

NEW = ("[E1]", "[/E1]")
Raw = dict[str, Any]


def enlarge(folder: Path) -> None:
    """Two marker tokens that tokenizer.json does not have, as fine-tuning with them leaves a folder."""
    size = len(open_tokenizer(folder))
    (folder / "added_tokens.json").write_text(json.dumps({token: size + i for i, token in enumerate(NEW)}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A checkpoint with added tokens, and its bundle."""
    done: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            make_checkpoint(name, root / "checkpoint", vocab_size=VOCAB_SIZE + len(NEW))
            enlarge(root / "checkpoint")
            result = export_checkpoint(root / "checkpoint", root / "bundle")
            assert result.report is not None and result.passed, result.report
            done[name] = (root / "checkpoint", root / "bundle")
        return done[name]

    return get


def token_id_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["check"] == "token ids"]


@pytest.mark.parametrize("name", ["modernbert-single-cls", "bert-single"])
def test_added_tokens_and_odd_texts_are_asked(name: str, made: Callable[[str], tuple[Path, Path]]) -> None:
    checkpoint, bundle = made(name)
    (report,) = open_bundle(bundle).manifest.artifacts[0].parity.values()
    cases = [row["case"] for row in token_id_rows(dict(report))]
    assert any("added tokens" in case for case in cases) and "texts over the max length" in cases
    # Their embeddings are looked at too.
    assert any("[/E1]" in row["case"] for row in report["rows"] if row["check"] == "logits")
    tokenizer = open_tokenizer(checkpoint)
    assert set(NEW) <= set(added_tokens(tokenizer))
    with load(bundle) as model:
        (encoded,) = model.encode(["[E1] a film [/E1]"])
        assert encoded.input_ids[1] == tokenizer.convert_tokens_to_ids("[E1]")  # type: ignore[union-attr]


def test_every_added_token_is_asked_for_in_four_ways() -> None:
    texts = sentences_of(["[E1]", " "])
    assert [text for text in texts if "[E1]" in text] == ["a [E1] b", "[E1][E1]", "word[E1]word [E1] [e1][E1]"]
    assert all(text.strip() for text in texts)


def drop(raw: Raw) -> None:
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "[E1]"]


def swap_ids(raw: Raw) -> None:
    first, second = (token for token in raw["added_tokens"] if token["content"] in NEW)
    first["id"], second["id"] = second["id"], first["id"]
    raw["added_tokens"].sort(key=lambda token: token["id"])


def take_the_space(raw: Raw) -> None:
    for token in raw["added_tokens"]:
        token["lstrip"] = token["content"] == "[E1]"


def invent(raw: Raw) -> None:
    entry = dict(raw["added_tokens"][-1])
    raw["added_tokens"][-1]["content"] = "fil"
    raw["added_tokens"].append({**entry, "id": entry["id"] + 1})


def keep_case(raw: Raw) -> None:
    raw["normalizer"]["lowercase"] = False


def keep_accents(raw: Raw) -> None:
    raw["normalizer"]["strip_accents"] = False


def no_normalizer(raw: Raw) -> None:
    raw["normalizer"] = None


def lower_case(raw: Raw) -> None:
    raw["normalizer"] = {"type": "Lowercase"}


def prefix_space(raw: Raw) -> None:
    raw["pre_tokenizer"]["add_prefix_space"] = True


def no_template(raw: Raw) -> None:
    raw["post_processor"] = None


def another_template(raw: Raw) -> None:
    for part in raw["post_processor"]["single"]:
        if "SpecialToken" in part:
            part["SpecialToken"]["id"] = "[SEP]"


def swap_words(raw: Raw) -> None:
    vocab = raw["model"]["vocab"]
    first, second = ("film", "life") if "film" in vocab and "life" in vocab else ("a", "o")
    vocab[first], vocab[second] = vocab[second], vocab[first]


MODERNBERT, BERT = "modernbert-single-cls", "bert-single"
FAULTS: dict[str, tuple[str, Callable[[Raw], None], str]] = {
    "an added token is dropped": (MODERNBERT, drop, "lacks the added token '[E1]'"),
    "an added token is dropped, WordPiece": (BERT, drop, "lacks the added token '[E1]'"),
    "added tokens change places": (MODERNBERT, swap_ids, "has the id"),
    "an added token takes the space before it": (MODERNBERT, take_the_space, "the added token '[E1]' is AddedToken"),
    "a word is an added token": (BERT, invent, "which transformers' has not"),
    "case is kept": (BERT, keep_case, "the normaliser differs: transformers makes '"),
    "accents are kept": (BERT, keep_accents, "the normaliser differs"),
    "no normaliser": (BERT, no_normalizer, "the normaliser differs"),
    "lower case": (MODERNBERT, lower_case, "the normaliser differs"),
    "a prefix space": (MODERNBERT, prefix_space, "words are split differently"),
    "no template": (MODERNBERT, no_template, "the template differs: of 'a', transformers makes '[CLS] a [SEP]'"),
    "another template": (BERT, another_template, "the template differs"),
    "words change places": (BERT, swap_words, "the vocabulary or its merges differ"),
    "tokens change places": (MODERNBERT, swap_words, "the vocabulary or its merges differ"),
}
CONFIG_FAULTS: dict[str, tuple[Raw, str]] = {
    "the other end is cut": ({"truncation_side": "left"}, "truncation differs: transformers cuts at the right"),
    "special tokens are text": ({"split_special_tokens": True}, "tokenizer_config.json"),
}


def spoiled(bundle: Path, output: Path, name: str, change: Callable[[Raw], Any]) -> Path:
    """A copy of the bundle with one file of the tokenizer changed, and the manifest adapted."""
    shutil.copytree(bundle, output)
    manifest = open_bundle(output).manifest
    raw = json.loads((output / name).read_text("utf-8"))
    change(raw)
    (output / name).write_text(json.dumps(raw), "utf-8")
    write_manifest(output, dataclasses.replace(manifest, files=record_files(output)))
    return output


def notes_of(bundle: Path, checkpoint: Path) -> list[str]:
    reference = Reference(checkpoint, "text-classification")
    with load(bundle, allow_unverified=True) as model:
        return [one.note for one in compare(model, reference) if one.wrong]


@pytest.mark.parametrize("name", FAULTS)
def test_the_gate_says_why_token_ids_differ(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    which, change, reason = FAULTS[name]
    checkpoint, bundle = made(which)
    notes = notes_of(spoiled(bundle, tmp_path / "bundle", "tokenizer.json", change), checkpoint)
    assert any(reason in note for note in notes), notes
    assert all("token " in note and "transformers" in note for note in notes)


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_the_gate_sees_what_the_configuration_says(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    keys, reason = CONFIG_FAULTS[name]
    checkpoint, bundle = made(BERT)
    notes = notes_of(
        spoiled(bundle, tmp_path / "bundle", "tokenizer_config.json", lambda raw: raw.update(keys)), checkpoint
    )
    assert any(reason in note for note in notes), notes


def test_a_bundle_with_such_a_tokenizer_fails_and_the_command_says_why(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = made(MODERNBERT)
    wrong = spoiled(bundle, tmp_path / "bundle", "tokenizer.json", drop)
    report = gate_against(open_bundle(wrong), checkpoint, threads=1)
    assert not report["passed"]
    failed = [row for row in token_id_rows(report) if not row["passed"]]
    assert failed and all(row["note"] for row in failed)
    assert run(["parity", str(wrong), "-r", str(checkpoint)]) != 0
    shown = capsys.readouterr()
    assert "lacks the added token '[E1]'" in shown.out + shown.err
