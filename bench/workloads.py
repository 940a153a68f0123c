"""The texts of a benchmark: real ones where there are any, else generated words. Knows the tokenizer, but no engine.

Every subject gets the same strings. A limit in tokens is applied to the strings themselves, under the bundle's
tokenizer, so that all subjects read the same part of a text.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.bench.schema import Workload
from nopad.runtime.bundle import Bundle
from nopad.runtime.data.labelled import Targets, check_pairs, read_labelled, read_texts
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError, TextError, UsageError
from nopad.runtime.planning.cost_model import cost_model
from nopad.runtime.tokenizer import open_bundle_encoder
from nopad.runtime.types import Text, in_one

# name -> number of texts, and the most tokens of each (None: no limit)
RAGGED = {"sst2-64": (64, None), "imdb-32": (32, 512)}
DEFAULTS = ("sst2-64", "imdb-32", "1x512", "1x2048", "1x8192")
FILES = {"sst2": "sst2/train.tsv", "imdb": "imdb/test.jsonl", "long": "longdocs"}
GENERATED = "generated words"
SEED = 11
_GRID = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,5})")
_WORDS = (
    "the a this that film story scene actor music ending camera is was feels seems moves holds little very often never "
    "slow bright dull warm strange good bad long short and but or while because with without of in on for to"
)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A workload and its texts; `targets` (0 and 1 of each label, [texts, labels]) where they have labels."""

    workload: Workload
    texts: tuple[Text, ...]
    targets: Targets | None = None


@dataclass(frozen=True, kw_only=True)
class OwnTexts:
    """A file of the user's."""

    source: DataSource
    text_field: str | None = None
    second_field: str | None = None  # of pairs
    label_field: str | None = None
    limit: int = 256


def grid_size(name: str) -> tuple[int, int] | None:
    """(texts, tokens of each) of a name like `8x512`; None for any other."""
    match = _GRID.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def check_names(names: Sequence[str], longest: int) -> None:
    """Raises `UsageError` for an unknown name, or texts over the model's `longest` tokens."""
    for name in names:
        size = grid_size(name)
        if size is None and name not in RAGGED:
            raise UsageError(
                f"unknown workload {name!r}; there are {', '.join(DEFAULTS)}, and TEXTSxTOKENS for any fixed length"
            )
        if size is not None and size[1] > longest:
            raise UsageError(f"workload {name}: this bundle takes {longest} tokens at most")
        if size is not None and size[1] < 3:
            raise UsageError(f"workload {name}: a text has at least 3 tokens, two of them special")


class Source:
    """Real texts below a folder, generated texts for the files that it lacks. `remarks` says which, and why."""

    def __init__(self, bundle: Bundle, folder: Path | None) -> None:
        self.bundle = bundle
        self.folder = folder
        self.remarks: list[str] = []
        self._encoder = open_bundle_encoder(bundle)
        self._specials = sum(self._tokens("a")[1])
        if folder is None:
            self.remarks.append(f"no folder of real texts (--data-folder): {GENERATED} of like lengths stand in")

    def named(self, name: str) -> Texts:
        """The texts of a name that `check_names` accepts."""
        size = grid_size(name)
        if size is not None:
            texts, source = self._fixed(*size)
            return self._texts(name, "fixed", texts, source)
        count, most = RAGGED[name]
        real = self._ragged(name.split("-")[0], count)
        texts, targets, source = (_generated(name, count), None, GENERATED) if real is None else real
        return self._texts(name, "ragged", [self._cut(text, most) for text in texts], source, targets)

    def own(self, data: OwnTexts, batch: int) -> Texts:
        """The first `limit` rows of a file, in calls of `batch`. Raises `InputFileError`, `UsageError`."""
        manifest = self.bundle.manifest
        check_pairs(manifest.task, data.second_field)
        texts: Sequence[Text]
        if manifest.task in ("text-classification", "rerank"):
            rows = read_labelled(
                data.source,
                manifest,
                text_field=data.text_field,
                second_field=data.second_field,
                label_field=data.label_field,
                limit=data.limit,
            )
            texts, targets = rows.inputs, rows.targets
        else:
            texts, targets = read_texts(data.source, text_field=data.text_field, limit=data.limit), None
        path = Path(data.source.path)
        name = f"{path.stem}-{batch}"
        name = f"own-{name}" if name in RAGGED else name
        return self._texts(name, "ragged", texts, path.name, targets, batch)

    def _texts(
        self, name: str, kind: Any, texts: Sequence[Text], source: str, targets: Targets | None = None, batch: int = 0
    ) -> Texts:
        lengths = []
        for index, item in enumerate(self._encoder.encode(texts)):
            if isinstance(item, TextError):
                raise InputFileError(f"{source}, text {index + 1}: {item}")
            lengths.append(item.used)
        batch = min(batch or len(texts), len(texts))
        padded = sum(
            max(lengths[at : at + batch]) * len(lengths[at : at + batch]) for at in range(0, len(lengths), batch)
        )
        workload = Workload(
            name=name,
            kind=kind,
            texts=len(texts),
            tokens=sum(lengths),
            padded_tokens=padded,
            longest=max(lengths),
            source=source,
            batch=batch,
            lengths=tuple(lengths),
            flops=flops_of(self.bundle.manifest.architecture, lengths),
            labelled=targets is not None,
            sha256=hashlib.sha256("\0".join(map(in_one, texts)).encode()).hexdigest(),
        )
        return Texts(workload=workload, texts=tuple(texts), targets=targets)

    def _tokens(self, text: str) -> tuple[list[tuple[int, int]], list[int]]:
        """Character positions of the tokens, and which of them are special."""
        (item,) = self._encoder.encode([text])
        if isinstance(item, TextError):
            raise InputFileError(f"{item}: {text[:40]!r}")
        return item.offsets, item.special

    def _cut(self, text: str, most: int | None) -> str:
        """The text, cut to at most `most` tokens."""
        while most is not None:
            offsets, special = self._tokens(text)
            if len(offsets) <= most:
                break
            ends = [end for (_, end), is_special in zip(offsets, special, strict=True) if not is_special]
            text = text[: ends[most - self._specials - 1]]
            most -= 1 if not text else 0
        return text

    def _exactly(self, text: str, tokens: int) -> str | None:
        """The beginning of the text that has exactly `tokens` tokens; None if there is none."""
        offsets, special = self._tokens(text)
        ends = [end for (_, end), is_special in zip(offsets, special, strict=True) if not is_special]
        count = tokens - self._specials
        # A word that is cut off may be split into other tokens.
        for place in [*range(count, min(count + 8, len(ends) + 1)), *range(count - 1, max(count - 8, 0), -1)]:
            if 0 < place <= len(ends):
                piece = text[: ends[place - 1]]
                if piece.strip() and len(self._tokens(piece)[0]) == tokens:
                    return piece
        return None

    def _fixed(self, count: int, tokens: int) -> tuple[list[str], str]:
        """`count` texts of exactly `tokens` tokens, and where they come from."""
        whole, source = self._long_text(), FILES["long"]
        if whole is None:
            whole, source = " ".join(_generated("long", 1 + count * tokens // 200)), GENERATED
        starts = [match.end() for match in re.finditer(r"\s+", whole)]
        choose = random.Random(SEED)
        texts: list[str] = []
        for _ in range(50 * count):
            start = choose.choice(starts) if texts or len(starts) > 1 else 0
            piece = whole[start : start + 8 * tokens]
            if len(piece) < 8 * tokens:
                piece += " " + whole[: 8 * tokens - len(piece)]
            text = self._exactly(piece, tokens) if piece.strip() else None
            if text is not None:
                texts.append(text)
            if len(texts) == count:
                return texts, source
        raise InputFileError(f"the texts of {source} cannot be cut to {tokens} tokens under this bundle's tokenizer")

    def _long_text(self) -> str | None:
        folder = None if self.folder is None else self.folder / FILES["long"]
        files = sorted(folder.glob("*.txt")) if folder else []
        if not files:
            self._remark_missing(FILES["long"])
            return None
        return " ".join(file.read_text("utf-8", errors="replace") for file in files)

    def _ragged(self, kind: str, count: int) -> tuple[list[str], Targets | None, str] | None:
        path = None if self.folder is None else self.folder / FILES[kind]
        if path is None or not path.is_file():
            self._remark_missing(FILES[kind])
            return None
        manifest = self.bundle.manifest
        head = manifest.head
        if head.task == "text-classification" and head.has_labels and len(head.labels) == 2:
            rows = read_labelled(path, manifest, limit=count)
            return rows.texts, rows.targets, FILES[kind]
        return read_texts(str(path), limit=count), None, FILES[kind]

    def _remark_missing(self, name: str) -> None:
        if self.folder is not None:
            remark = f"{self.folder} has no {name}: {GENERATED} of like lengths stand in"
            self.remarks += [] if remark in self.remarks else [remark]


def flops_of(architecture: Mapping[str, Any], lengths: Sequence[int]) -> float | None:
    """FLOPs that the texts need; None if the architecture is not a packed encoder's."""
    try:
        return cost_model(architecture).text_flops(lengths)
    except UsageError:
        return None


def _generated(kind: str, count: int) -> list[str]:
    """Sentences of common words; about as many words as SST-2's phrases and IMDb's reviews have."""
    choose = random.Random(f"{SEED} {kind}")
    known, texts = _WORDS.split(), []
    for _ in range(count):
        typical = 240 if kind.startswith(("imdb", "long")) else 9
        words = max(2, round(choose.lognormvariate(0, 0.7) * typical))
        texts.append(" ".join(choose.choice(known) for _ in range(words)) + ".")
    return texts
