"""Token lengths for the planner: of the texts in a file, with a model's tokenizer, or from a histogram file."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nopad.model.checkpoint.read_config import LENGTHS, read_config
from nopad.model.config import EncoderConfig, attention_block
from nopad.model.errors import CheckpointError
from nopad.runtime.batching import windows
from nopad.runtime.bundle import MANIFEST, open_bundle
from nopad.runtime.data.records import Row, read_rows
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import BundleError, InputFileError, TextError, UsageError
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.tokenizer import TextEncoder, open_bundle_encoder, open_encoder

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """What the planner needs to know of a bundle, or of a checkpoint that is not exported yet."""

    name: str
    architecture: EncoderConfig | Mapping[str, Any]
    block: int  # tokens of an attention block
    max_length: int  # tokens
    open_encoder: Callable[[], TextEncoder]
    prompt: str = ""  # put before each text
    lengths: Path | None = None  # a histogram of the texts that it was trained on


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A histogram of token lengths."""

    counts: Counter[int]  # length -> number of texts
    cut: int  # texts over the model's max length, counted at that length
    failed: int  # rows without a text
    first_failure: str | None


def open_model(path: str | None) -> PlannedModel:
    """A bundle folder or a checkpoint folder; None: the embedded bundle.

    Raises `BundleError`, `CheckpointError`, `UsageError`.
    """
    folder = None if path is None else Path(path)
    if folder is None or (folder / MANIFEST).is_file() or not (folder / _CONFIG).is_file():
        return _of_bundle(folder)
    try:
        raw = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / _CONFIG} cannot be read ({error}); copy the file again") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder / _CONFIG} is a JSON {type(raw).__name__}, expected an object")
    # The head changes neither lengths nor costs, and an untrained checkpoint may have none: any task will do.
    config = read_config(raw, task="embeddings")
    return PlannedModel(
        name=str(folder),
        architecture=config,
        block=config.block,
        max_length=config.max_position_embeddings,
        open_encoder=lambda: _encoder_of_checkpoint(folder / _TOKENIZER, config),
        lengths=folder / LENGTHS if (folder / LENGTHS).is_file() else None,
    )


def _of_bundle(folder: Path | None) -> PlannedModel:
    bundle = open_bundle(folder, verify=False)
    manifest = bundle.manifest
    if not any(artifact.layout == "packed" for artifact in manifest.artifacts):
        raise UsageError(f"{bundle.path} is a padded bundle: it has no profiles to plan")
    return PlannedModel(
        name=str(bundle.path) if folder else "the embedded model",
        architecture=manifest.architecture,
        block=attention_block(manifest.half_window or 0),  # not from an artifact: CPU graphs have no blocks
        max_length=manifest.max_length,
        open_encoder=lambda: open_bundle_encoder(bundle),
        prompt=resolve_prompt(manifest, None, None),
    )


def _encoder_of_checkpoint(tokenizer: Path, config: EncoderConfig) -> TextEncoder:
    if not tokenizer.is_file():
        raise BundleError(f"{tokenizer} is missing; save the tokenizer there, or give token lengths with --lengths")
    return open_encoder(tokenizer, config.max_position_embeddings, vocab_size=config.vocab_size)


def lengths_of_texts(
    model: PlannedModel,
    source: DataSource | str,
    field: str | None = None,
    second_field: str | None = None,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Lengths:
    """Token lengths of the texts (or pairs, with a second field) of a source, or of its first `limit` rows.

    Rows without a text are counted as failed. Raises `InputFileError` if no row has a text; `BundleError` for a bad
    tokenizer.
    """
    encoder = model.open_encoder()
    counts: Counter[int] = Counter()
    cut = failed = rows = 0
    first_failure: str | None = None
    for window in windows(islice(read_rows(source, field, second_field), limit), lambda row: row.text):
        rows += len(window)
        for line, tokens in sorted(_encode(encoder, window, model.prompt), key=lambda result: result[0]):
            if isinstance(tokens, str):
                failed += 1
                first_failure = first_failure or f"line {line}: {tokens}"
            else:
                counts[min(tokens, model.max_length)] += 1
                cut += tokens > model.max_length
        progress(rows)
    if not counts:
        name = source if isinstance(source, str) else source.path
        raise InputFileError(f"{name} has no text to plan for" + (f" ({first_failure})" if first_failure else ""))
    return Lengths(counts=counts, cut=cut, failed=failed, first_failure=first_failure)


def _encode(encoder: TextEncoder, rows: list[Row], prompt: str) -> Iterator[tuple[int, int | str]]:
    """Each row's line, and its number of tokens or the reason why it has none."""
    good = [row for row in rows if row.error is None]
    yield from ((row.line, row.error) for row in rows if row.error is not None)
    for row, tokens in zip(good, encoder.encode([row.text for row in good], prompt), strict=True):
        yield row.line, str(tokens) if isinstance(tokens, TextError) else tokens.tokens


def read_lengths(source: str) -> Counter[int]:
    """Read a histogram file (`-` for stdin): lines of `length` or `length count`, or one JSON object {"length": count}.

    Raises `InputFileError`, naming the line.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputFileError(f"cannot read {source}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputFileError(f"{source} is not UTF-8 text; give lines of `length` or `length count`") from None
    if text.lstrip().startswith("{"):
        try:
            raw = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise InputFileError(f"{source} is not valid JSON: {error}") from None
        entries = [(f"the entry {key!r}", [key, value]) for key, value in raw]
    else:
        lines = enumerate(text.splitlines(), 1)
        entries = [(f"line {number}", list(line.split())) for number, line in lines if line.strip()]
    counts: Counter[int] = Counter()
    for place, cells in entries:
        numbers = [_count(cell) for cell in cells]
        if len(numbers) > 2 or None in numbers:
            raise InputFileError(f"{source}, {place}: {' '.join(map(str, cells))!r} is not `length` or `length count`")
        length, count = numbers[0] or 0, numbers[1] if len(numbers) == 2 else 1
        if length < 1:
            raise InputFileError(f"{source}, {place}: a length is at least 1 token")
        counts[length] += count or 0
    if not counts.total():
        raise InputFileError(f"{source} has no lengths; give lines of `length` or `length count`")
    return counts


# A length or count with more digits is an error.
_MOST_DIGITS = 15


def _count(cell: Any) -> int | None:
    if isinstance(cell, str) and cell.isascii() and cell.isdigit() and len(cell) <= _MOST_DIGITS:
        return int(cell)
    return cell if type(cell) is int and 0 <= cell < 10**_MOST_DIGITS else None


def parse_bytes(text: str) -> int:
    """Parse `2GiB`, `512 MiB`, `1.5GB` or a number of bytes. Raises `UsageError`."""
    number = text.strip().rstrip("BbIiKkMmGg ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = float(number) * _UNITS[unit]
        if 1 <= size < 1 << 60:
            return int(size)
    except (ValueError, KeyError):
        pass
    raise UsageError(f"{text!r} is not an amount of memory; write it as 2GiB, 512MiB or 1.5GB")
