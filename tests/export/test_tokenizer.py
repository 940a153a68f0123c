"""A bundle's tokenizer is what transformers makes of the checkpoint's folder, whatever files the folder has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from small_tokenizers import byte_level, gemma, unigram, wordpiece, wordpiece_vocabulary, write
from tokenizers import Tokenizer

from nopad.export.bundle import export_checkpoint
from nopad.export.parity.samples import PAIRS, SAMPLES
from nopad.export.parity.token_ids import ODD
from nopad.export.tokenizer import max_length_of, write_tokenizer
from nopad.model.errors import CheckpointError
from nopad.runtime.errors import TextError, UsageError
from nopad.runtime.predictor import load
from nopad.runtime.tokenizer import open_encoder

V4 = transformers.__version__.startswith("4.")
NEW = ("[E1]", "[/E1]")
TEXTS = (
    *SAMPLES,
    *PAIRS,
    *ODD,
    "[E1] Alice [/E1] works in [e1]Paris[E1][E1]",
    "a [MASK] film <mask> and </s>",
    ("Alice works in Paris " * 20, "the film was good " * 20),
)
BERT = {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")}
ENTRY = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def config(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 1000}))


def base(folder: Path, **keys: Any) -> int:
    """A BERT folder whose tokenizer.json is the base model's. Returns its number of entries."""
    write(folder, wordpiece(), {"tokenizer_class": "BertTokenizer", "do_lower_case": False, **BERT, **keys})
    config(folder, "bert")
    return len(wordpiece_vocabulary())


def added_tokens_json(folder: Path) -> None:
    n = base(folder)
    (folder / "added_tokens.json").write_text(json.dumps({token: n + i for i, token in enumerate(NEW)}))


def added_tokens_decoder(folder: Path) -> None:
    n = len(wordpiece_vocabulary())
    base(folder, added_tokens_decoder={str(n + i): {"content": t, **ENTRY} for i, t in enumerate(NEW)})


def plain_added_tokens(folder: Path) -> None:
    """Added tokens that are not special: they are found in the normalised text."""
    n = len(wordpiece_vocabulary())
    entry = {**ENTRY, "special": False, "normalized": True}
    base(folder, added_tokens_decoder={str(n + i): {"content": t, **entry} for i, t in enumerate(NEW)})


def additional_special_tokens(folder: Path) -> None:
    base(folder, additional_special_tokens=list(NEW))


def special_tokens_map(folder: Path) -> None:
    base(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": list(NEW), **BERT}))


def another_case(folder: Path) -> None:
    """The class applies do_lower_case over a tokenizer.json that keeps case."""
    base(folder, do_lower_case=True)


def accents(folder: Path) -> None:
    base(folder, strip_accents=True, tokenize_chinese_chars=False)


def vocabulary_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(wordpiece_vocabulary()) + "\n", "utf-8")
    config(folder, "bert")


def cased_vocabulary(folder: Path) -> None:
    vocabulary_alone(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 512}')


def vocabulary_of_another_class(folder: Path) -> None:
    """A BERT vocabulary under a ModernBERT: AutoTokenizer of transformers 5 misses it, its BertTokenizer does not."""
    cased_vocabulary(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    config(folder, "modernbert")


def vocabulary_and_merges(folder: Path) -> None:
    folder.mkdir()
    raw = json.loads(byte_level(special=False).to_str())["model"]
    vocab = {token: i for i, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    vocab |= {token: len(vocab) + i for i, token in enumerate(raw["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer", "add_prefix_space": true}')
    config(folder, "roberta")


def plain_class(make: Callable[..., Tokenizer], settings: dict[str, Any] | None, **options: Any) -> Any:
    def build(folder: Path) -> None:
        write(folder, make(**options), settings)
        config(folder, "modernbert")

    return build


def mmbert(folder: Path) -> None:
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write(folder, gemma(), {"tokenizer_class": "GemmaTokenizerFast", **special, "mask_token": "<mask>"})
    config(folder, "modernbert")


def modernbert_ja(folder: Path) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    special |= {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
    flags = {"add_bos_token": True, "add_eos_token": True, "legacy": False}
    write(folder, unigram(), {"tokenizer_class": "LlamaTokenizerFast", **special, **flags})
    config(folder, "modernbert")


def own_code_beside(folder: Path) -> None:
    """auto_map, though transformers has the class: it is taken, and the folder's code is not run."""
    base(folder, auto_map={"AutoTokenizer": ["own.Own", None]})
    (folder / "own.py").write_text("raise SystemExit('run')")


def chat_keys(folder: Path) -> None:
    base(folder, chat_template="{{ messages }}", clean_up_tokenization_spaces=True, unheard_of={"a": [1]})


PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
FOLDERS: dict[str, Callable[[Path], None]] = {
    "added_tokens.json": added_tokens_json,
    "added_tokens_decoder": added_tokens_decoder,
    "added tokens that are not special": plain_added_tokens,
    "additional_special_tokens": additional_special_tokens,
    "special_tokens_map.json": special_tokens_map,
    "do_lower_case over tokenizer.json": another_case,
    "strip_accents over tokenizer.json": accents,
    "vocab.txt alone": vocabulary_alone,
    "vocab.txt that keeps case": cased_vocabulary,
    "vocab.txt of another class": vocabulary_of_another_class,
    "vocab.json and merges.txt": vocabulary_and_merges,
    "byte-level": plain_class(byte_level, PLAIN),
    "byte-level without template": plain_class(byte_level, PLAIN, special=False),
    "byte-level with a prefix space": plain_class(byte_level, {**PLAIN, "add_prefix_space": True}, prefix=True),
    "WordPiece without template": plain_class(wordpiece, PLAIN, special=False),
    "unigram": plain_class(unigram, PLAIN),
    "unigram without template": plain_class(unigram, PLAIN, special=False),
    "no tokenizer_config.json": plain_class(wordpiece, None),
    "empty tokenizer_config.json": plain_class(unigram, {}),
    "a class of transformers 5": plain_class(byte_level, {"tokenizer_class": "TokenizersBackend"}),
    "a class that nobody knows": plain_class(byte_level, {"tokenizer_class": "HouseTokenizer"}),
    "the Gemma kind of mmBERT": mmbert,
    "the Llama kind of ModernBERT-Ja": modernbert_ja,
    "code of its own beside a known class": own_code_beside,
    "keys of chat models and unknown ones": chat_keys,
    "special tokens in a text are text": plain_class(wordpiece, {**PLAIN, "split_special_tokens": True, **BERT}),
    "cut on the left": plain_class(wordpiece, {**PLAIN, "truncation_side": "left", **BERT}),
}


def reference(name: str, folder: Path) -> Any:
    """transformers' own tokenizer, by the call that opens this folder in the installed version."""
    if name == "vocab.txt of another class":
        return (
            transformers.BertTokenizer.from_pretrained(folder)
            if not V4
            else (transformers.BertTokenizerFast.from_pretrained(folder))
        )
    if V4 and name in ("a class of transformers 5", "a class that nobody knows"):
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    FOLDERS[name](folder)
    bundle.mkdir()
    made = write_tokenizer(folder, bundle, 1000)
    theirs = reference(name, folder)
    assert made.pad_token_id == theirs.pad_token_id
    assert made.mask_token == theirs.mask_token or theirs.mask_token is None
    encoder = open_encoder(bundle / "tokenizer.json", 24)
    for text, got in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        parts = text if isinstance(text, tuple) else (text,)
        want = theirs(*parts, truncation=True, max_length=24)
        assert not isinstance(got, TextError), (text, got)
        assert got.input_ids == want["input_ids"], (text, got.pieces, want.tokens())
        assert got.token_type_ids == want.get("token_type_ids", [0] * got.used), text
    # The bundle's own files open in transformers too, to the same ids.
    again = transformers.AutoTokenizer.from_pretrained(bundle)
    assert again(list(SAMPLES))["input_ids"] == theirs(list(SAMPLES))["input_ids"]
    assert again.truncation_side == theirs.truncation_side


def test_special_ids_are_the_tokenizers_not_the_configurations(tmp_path: Path) -> None:
    """ModernBERT-Ja opens a text with <s> (1), not with its cls (6), and pads with 3."""
    folder = tmp_path / "checkpoint"
    modernbert_ja(folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "modernbert", "pad_token_id": 0, "cls_token_id": 50281, "sep_token_id": 50282})
    )
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    made = write_tokenizer(folder, bundle, 1000)
    assert made.pad_token_id == 3 and made.mask_token == "<mask>"
    (tokens,) = open_encoder(bundle / "tokenizer.json", 16).encode(["Alice"])
    assert not isinstance(tokens, TextError)
    assert (tokens.input_ids[0], tokens.input_ids[-1]) == (1, 2) and (tokens.special[0], tokens.special[-1]) == (1, 1)


@pytest.mark.parametrize(
    ("said", "expected"),
    [(512, 512), (512.0, 512), (1e30, None), (int(1e30), None), (None, None), (0, None), (-1, None), (10**9, None)],
)
def test_the_tokenizers_own_limit(said: Any, expected: int | None, tmp_path: Path) -> None:
    keys = {} if said is None else {"model_max_length": said}
    plain_class(wordpiece, {**PLAIN, **keys})(tmp_path / "checkpoint")
    (tmp_path / "bundle").mkdir()
    assert write_tokenizer(tmp_path / "checkpoint", tmp_path / "bundle", 1000).limit == expected


def test_max_length_is_the_smallest_limit() -> None:
    assert max_length_of(None, None, 8192) == 8192
    assert max_length_of(None, 512, 8192) == 512
    assert max_length_of(None, 512, 128) == 128
    assert max_length_of(64, 512, 128) == 64
    with pytest.raises(UsageError, match=r"outside 3\.\.128"):
        max_length_of(129, 512, 128)


def size_of(folder: Path) -> int:
    return len(transformers.AutoTokenizer.from_pretrained(folder))


def test_tokens_without_embeddings_are_refused_by_name(tmp_path: Path) -> None:
    added_tokens_json(tmp_path / "a")
    with pytest.raises(CheckpointError) as caught:
        write_tokenizer(tmp_path / "a", tmp_path, len(wordpiece_vocabulary()))
    for word in ("'[E1]'", "'[/E1]'", "no embedding", "resize_token_embeddings(len(tokenizer))"):
        assert word in str(caught.value)
    base(tmp_path / "b")
    with pytest.raises(CheckpointError, match="not its tokenizer.*'##ing'"):
        write_tokenizer(tmp_path / "b", tmp_path, len(wordpiece_vocabulary()) - 1)


def test_fewer_entries_than_embeddings_are_common(tmp_path: Path) -> None:
    base(tmp_path / "a")
    assert write_tokenizer(tmp_path / "a", tmp_path, 4096).pad_token_id == 0
    assert write_tokenizer(tmp_path / "a", tmp_path, size_of(tmp_path / "a")).pad_token_id == 0


def test_a_padding_token_without_an_embedding_does_no_harm(tmp_path: Path) -> None:
    """Added by hand to a model that has none: no text makes it, and packing does not need it."""
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<added pad>"])
    write(tmp_path / "a", tokenizer, {**PLAIN, "pad_token": "<added pad>"})
    config(tmp_path / "a", "modernbert")
    assert write_tokenizer(tmp_path / "a", tmp_path, size).pad_token_id is None


def damaged(folder: Path) -> None:
    base(folder)
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:500])


def nothing(folder: Path) -> None:
    folder.mkdir()
    config(folder, "bert")


def of_another_kind(folder: Path) -> None:
    """A SentencePiece file, and not even that, under BertTokenizer: transformers 4 reads its lines as tokens."""
    nothing(folder)
    (folder / "tokenizer.model").write_bytes(b"\x0a\x05model")


def no_such_file(folder: Path) -> None:
    nothing(folder)
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "c": 2, "d": 3}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def foreign_code(folder: Path) -> None:
    folder.mkdir()
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    write(folder, byte_level(), settings)
    (folder / "own.py").write_text("raise SystemExit('run')")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')


def python_only(folder: Path) -> None:
    vocabulary_alone(folder)
    keys = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))


def bad_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "sentencepiece.bpe.model").write_bytes(b"garbage")
    config(folder, "xlm-roberta")


REFUSED: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "damaged": (damaged, ("tokenizer.json is damaged",)),
    "nothing": (nothing, ("has no tokenizer", "AutoTokenizer")),
    "a vocabulary of another kind": (
        of_another_kind,
        ("no vocabulary for BertTokenizer" if V4 else "tokenizer.model is damaged",),
    ),
    "a vocabulary that no class looks for": (no_such_file, ("BertTokenizer",)),
    "code of its own": (foreign_code, ("auto_map", "does not run")),
    "Python alone": (python_only, ("BertJapaneseTokenizer", "tokenizer.json", "cannot carry")),
    "a damaged SentencePiece model": (bad_model, ("sentencepiece.bpe.model",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_opened_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    build, words = REFUSED[name]
    build(tmp_path / "checkpoint")
    if V4 and name == "code of its own":
        (tmp_path / "checkpoint" / "config.json").write_text('{"model_type": "modernbert"}')
    with pytest.raises(CheckpointError) as caught:
        write_tokenizer(tmp_path / "checkpoint", tmp_path, 1000)
    for word in words:
        assert word in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_sentencepiece_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_model(tmp_path / "a")
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "sentencepiece" else find(name))
    with pytest.raises(CheckpointError, match="pip install sentencepiece"):
        write_tokenizer(tmp_path / "a", tmp_path, 1000)


@pytest.mark.skipif(V4, reason="sentencepiece belongs to the environment of transformers 5")
@pytest.mark.parametrize(("kind", "file"), [("xlm-roberta", "sentencepiece.bpe.model"), ("albert", "spiece.model")])
def test_a_sentencepiece_model_is_converted_as_transformers_does(kind: str, file: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    lines = [text for text in SAMPLES for _ in range(20)]
    with (folder / file).open("wb") as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=150,
            hard_vocab_limit=False,
            minloglevel=2,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        )
    config(folder, kind)
    write_tokenizer(folder, tmp_path, 1000)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text, got in zip(SAMPLES, open_encoder(tmp_path / "tokenizer.json", 512).encode(SAMPLES), strict=True):
        assert not isinstance(got, TextError) and got.input_ids == theirs(text)["input_ids"]


def checkpoint_of(folder: Path, build: Callable[[Path], None], task: str = "text-classification", **keys: Any) -> Path:
    """A small ModernBERT with the tokenizer that `build` writes, and `keys` laid over its config.json."""
    from reference_models import CASES, make_reference

    build(folder)
    size = len(reference("", folder))
    case = CASES["modernbert-mlm" if task == "fill-mask" else "modernbert-single-cls"]
    case = dataclasses.replace(case, config={**case.config, "vocab_size": size, **keys})
    make_reference(case, folder)
    return folder


def finch(folder: Path) -> None:
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    write(folder, byte_level(), {**PLAIN, **special})
    config(folder, "modernbert")


# Checkpoints that people use, small: what config.json says of special ids is another matter than the tokenizer's.
KNOWN: dict[str, tuple[Callable[[Path], None], dict[str, Any], int, tuple[int, int]]] = {
    "mmBERT": (mmbert, {"cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 2, "eos_token_id": 1}, 0, (2, 1)),
    "ModernBERT-Ja": (
        modernbert_ja,
        {"cls_token_id": 6, "sep_token_id": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
        3,
        (1, 2),
    ),
    "Finch": (
        finch,
        {"cls_token_id": 50281, "sep_token_id": 50282, "bos_token_id": 50281, "rope_theta": 1.0, "pad_token_id": 0},
        3,
        (1, 2),
    ),
}


@pytest.mark.parametrize("task", ["text-classification", pytest.param("fill-mask", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["mmBERT", *(pytest.param(name, marks=pytest.mark.slow) for name in [*KNOWN][1:])])
def test_checkpoints_that_people_use_pass_the_gate(name: str, task: str, tmp_path: Path) -> None:
    build, keys, pad, ends = KNOWN[name]
    folder = checkpoint_of(tmp_path / "checkpoint", build, task, **keys)
    result = export_checkpoint(folder, tmp_path / "bundle")
    assert result.report is not None and result.passed, [row for row in result.report["rows"] if not row["passed"]]
    manifest = result.bundle.manifest
    assert manifest.pad_token_id == pad
    with load(tmp_path / "bundle", threads=1) as model:
        (tokens,) = model.encode(["Alice works in Paris"])
        assert not isinstance(tokens, TextError)
        assert tokens.input_ids == reference("", folder)("Alice works in Paris")["input_ids"]
        if not (V4 and build is mmbert):  # whose class opens a text there, and does not close it
            assert (tokens.input_ids[0], tokens.input_ids[-1]) == ends
        if task == "fill-mask":
            pipe = transformers.pipeline("fill-mask", model=str(folder), top_k=3)
            text = f"a good {manifest.mask_token} film"
            (answer,) = model.fill([text], top_k=3)
            want = pipe(text)
            assert [score for _, score in answer.masks[0]] == pytest.approx([one["score"] for one in want], abs=1e-5)


SCORED: list[tuple[bool, dict[str, Any]]] = [  # whether it is fast
    (True, {"id2label": {"0": False, "1": True}}),
    (True, {"id2label": {"0": "toxic"}, "problem_type": None}),
    (False, {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "multi_label_classification"}),
    (False, {"id2label": {"0": 0, "1": 1, "2": 2}}),
    (False, {"id2label": {"0": 0.5}}),
    (False, {"id2label": {"0": "score"}, "problem_type": "regression"}),
    (False, {"id2label": {"0": "x", "1": "y"}, "problem_type": "regression"}),
    (False, {"id2label": None, "num_labels": 3, "label2id": {"a": 0, "b": 1, "c": 2}}),
]


@pytest.mark.parametrize(
    "keys", [pytest.param(keys, marks=[] if fast else pytest.mark.slow, id=str(keys)) for fast, keys in SCORED]
)
def test_scores_are_those_of_the_pipeline(keys: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path / "checkpoint", finch, **{"label2id": None, "problem_type": None, **keys})
    result = export_checkpoint(folder, tmp_path / "bundle")
    assert result.report is not None and result.passed, [row for row in result.report["rows"] if not row["passed"]]
    pipe = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    with load(tmp_path / "bundle", threads=1) as model:
        for answer, want in zip(model.predict(SAMPLES[:4]), pipe(list(SAMPLES[:4])), strict=True):
            expected = {str(one["label"]): one["score"] for one in want}
            assert dict(answer.scores) == pytest.approx(expected, abs=1e-5 * max(1, *map(abs, expected.values())))
