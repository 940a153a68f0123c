"""Token ids of a bundle against those of transformers: texts that show differences, and the reasons for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from nopad.export.parity.samples import SAMPLES
from nopad.export.reference.transformers import Reference
from nopad.runtime.errors import TextError
from nopad.runtime.predictor import Model
from nopad.runtime.types import Text

# Each text shows what one part of a normaliser or pre-tokenizer does: case, accents, composed and decomposed letters,
# compatibility forms, control characters, spaces of many kinds, scripts without spaces, digits.
ODD: tuple[Text, ...] = (
    "ÀÉÎÕÜ àéîõü ÅNGSTRÖM straße STRASSE İstanbul ıssız",
    "cafe\u0301 café nai\u0308ve naïve Å A\u030a",
    "ﬁne oﬃce ①② Ｆｕｌｌ ｗｉｄｔｈ ½ ™ ㎏",
    "zero\u200bwidth\u200djoiner\ufeff soft\u00adhyphen nul\x00 bell\x07 line\r\nend\ttab",
    "  leading, trailing,   and inner  spaces  ",
    "no-break\u00a0space thin\u2009space ideographic\u3000space",
    "中文和English混合，没有空格。日本語カタカナ한국어",
    "مرحبا بالعالم שלום עולם नमस्ते",
    "👩‍👩‍👧 🇩🇪 👍🏽 e-mail@example.org http://example.org/a?b=c#d 1,234.56 3/4 snake_case CamelCase",
    "`quotes' “curly” ‘single’ — dash – … ¿? ¡!",
    ("A short first text", "And a Second one, ÜBER it."),
)
_WITH_LOGITS = 4  # added tokens whose embeddings are checked too, by logits


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Texts of one kind through both tokenizers."""

    case: str
    wrong: int  # tokens that differ
    note: str  # what differs first, and why; "" where nothing does


def added_tokens(tokenizer: Any) -> list[str]:
    """Tokens that stand beside the vocabulary of transformers' tokenizer, by id."""
    return [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]


def sentences_of(tokens: Sequence[str]) -> list[str]:
    """Each token with neighbours, doubled, glued to words and in capitals."""
    texts = [text for t in tokens for text in (f"a {t} b", f"{t}{t}", f"word{t}word {t.upper()} {t.lower()}{t}")]
    return [text for text in texts if text.strip()]


def marked_sentences(tokenizer: Any, vocab_size: Any) -> list[str]:
    """Sentences with the last added tokens, whose embeddings are the newest."""
    tokens = [
        token
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if str(token).strip() and not (isinstance(vocab_size, int) and index >= vocab_size)
    ]
    return [f"a film {token} of note" for token in tokens[-_WITH_LOGITS:]]


def compare(model: Model, reference: Reference) -> Iterator[Comparison]:
    """Texts with every added token, odd texts, and truncated texts, through the bundle's tokenizer and transformers'.

    Only ids are compared: that is fast, however many tokens were added.
    """
    tokens = added_tokens(reference.tokenizer)
    cases: dict[str, Sequence[Text]] = {
        f"{len(tokens)} added tokens": sentences_of(tokens),
        f"{len(ODD)} odd texts": ODD,
        "texts over the max length": _too_long(reference, model.manifest.max_length),
    }
    for case, texts in cases.items():
        wrong, note = 0, ""
        for text, got in zip(texts, model.encode(texts), strict=True):
            want, _ = reference.encode(text, model.manifest.max_length)
            if isinstance(got, TextError):
                if _answerable(want, model):
                    wrong, note = wrong + len(want), note or f"{_short(text)}: the bundle refuses it: {got}"
            elif got.input_ids != want:
                note = note or f"{_short(text)}: {explain(model, reference, text, got.input_ids, want)}"
                wrong += differing(got.input_ids, want)
        yield Comparison(case=case, wrong=wrong, note=note)


def _answerable(ids: Sequence[int], model: Model) -> bool:
    """Whether transformers' model takes these ids."""
    size = model.manifest.architecture.get("vocab_size")
    return bool(ids) and len(ids) <= model.manifest.max_length and (size is None or max(ids) < size)


def _too_long(reference: Reference, max_length: int) -> list[Text]:
    text = " ".join(SAMPLES)
    tokens = max(1, len(reference.content_ids(text)))
    long = " ".join([text] * (1 + max_length // tokens))
    return [long, (long, "a short second text"), ("a short first text", long), (long, long)]


def differing(got: Sequence[int], want: Sequence[int]) -> int:
    """Places at which two lists of ids differ."""
    return sum(a != b for a, b in zip(got, want, strict=False)) + abs(len(got) - len(want))


def explain(model: Model, reference: Reference, text: Text, got: Sequence[int], want: Sequence[int]) -> str:
    """Where the bundle's ids first differ from transformers', and which part of the tokenizer causes it."""
    ours = Tokenizer.from_file(str(model.bundle.file(model.manifest.tokenizer)))
    ours.no_truncation()
    ours.no_padding()
    theirs = reference.tokenizer
    ours.encode_special_tokens = getattr(theirs, "split_special_tokens", False)
    first = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
    place = (
        f"token {first}: transformers {_token_at(want, first, theirs.convert_ids_to_tokens)}, "
        f"bundle {_token_at(got, first, ours.id_to_token)}"
    )
    return f"{place}: {_reason(ours, theirs, text, model.manifest.max_length)}"


def _token_at(ids: Sequence[int], place: int, name: Any) -> str:
    return f"{name(ids[place])!r} (id {ids[place]})" if place < len(ids) else "nothing"


def _short(text: Text) -> str:
    shown = repr(text)
    return shown if len(shown) < 60 else shown[:57] + "..."


def _reason(ours: Tokenizer, theirs: Any, text: Text, max_length: int) -> str:
    parts = text if isinstance(text, tuple) else (text,)
    for part in parts:
        if ours.encode(part, add_special_tokens=False).ids != theirs(part, add_special_tokens=False).input_ids:
            return _content_reason(ours, theirs, part)
    whole = theirs(*parts).input_ids
    if ours.encode(*parts).ids != whole:
        frames = " ".join(theirs.convert_ids_to_tokens(theirs("a").input_ids)), " ".join(ours.encode("a").tokens)
        return f"the template differs: of 'a', transformers makes {frames[0]!r}, the bundle {frames[1]!r}"
    if len(whole) > max_length:
        return f"truncation differs: transformers cuts at the {theirs.truncation_side}"
    return "tokenizer.json is the same; what tokenizer_config.json says, or a prompt before the text, differs"


def _content_reason(ours: Tokenizer, theirs: Any, part: str) -> str:
    """Why tokens of a text, without special tokens, differ: the first part of the tokenizers with different results."""
    backend = theirs.backend_tokenizer
    added = {token.content: (index, token) for index, token in ours.get_added_tokens_decoder().items()}
    expected = {token.content: (index, token) for index, token in backend.get_added_tokens_decoder().items()}
    candidates = [t for t in sorted(expected.keys() | added.keys(), key=len, reverse=True) if t.lower() in part.lower()]
    for token in candidates:
        if token not in added:
            return f"the bundle's tokenizer lacks the added token {token!r}"
        if token not in expected:
            return f"the bundle's tokenizer has an added token {token!r}, which transformers' has not"
        if added[token][0] != expected[token][0]:
            return f"the added token {token!r} has the id {expected[token][0]}, in the bundle {added[token][0]}"
        if repr(added[token][1]) != repr(expected[token][1]):
            return f"the added token {token!r} is {expected[token][1]!r}, in the bundle {added[token][1]!r}"
    pair = (backend, ours)
    normal = [tokenizer.normalizer.normalize_str(part) if tokenizer.normalizer else part for tokenizer in pair]
    if normal[0] != normal[1]:
        return f"the normaliser differs: transformers makes {_around(*normal)}, the bundle {_around(*normal[::-1])}"
    splitters = [tokenizer.pre_tokenizer for tokenizer in pair]
    words = [[word for word, _ in s.pre_tokenize_str(normal[0])] if s else normal[:1] for s in splitters]
    if words[0] != words[1]:
        a, b = next(((a, b) for a, b in zip(*words, strict=False) if a != b), (words[0][-1:], words[1][-1:]))
        return f"words are split differently: transformers {a!r}, the bundle {b!r}"
    return "the vocabulary or its merges differ"


def _around(text: str, other: str) -> str:
    """The text near its first difference from the other."""
    first = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return repr(text[max(0, first - 8) : first + 12])
