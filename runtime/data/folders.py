"""Folders of data -> splits: by file or folder names, by class folders, or saved by `save_to_disk`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nopad.runtime.data import column_lines
from nopad.runtime.data.columnar import is_saved_dataset, saved_files, saved_splits
from nopad.runtime.data.opening import suffix_of
from nopad.runtime.data.table import DataSource, Item, Table, unreadable
from nopad.runtime.errors import InputFileError

# Endings of files that are data wherever they are in a folder.
SUFFIXES = (
    *(".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather", ".xlsx"),
    *column_lines.SUFFIXES,
)
# JSON files that describe a data set or a model and hold no rows.
_METADATA = {
    "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "config.json", "metadata.json",
    "croissant.json", "package.json", "tokenizer.json", "tokenizer_config.json", "schema.json",
}  # fmt: skip
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    "test": "test",
}
# Names of class folders whose texts have no class.
_UNLABELLED = ("unsup", "unsupervised", "unlabeled", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split: files of rows, in order; or, with `classes`, files of one text each."""

    files: tuple[Path, ...]
    classes: tuple[str, ...] = ()  # of each file
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def find_parts(folder: Path) -> dict[str, Part]:
    """The splits of a folder, `train`, `validation`, `test` first; only `train` if no name in it names a split.

    Raises `InputFileError`.
    """
    parts = _parts(folder, 0)
    if not parts:
        raise InputFileError(
            f"{folder} holds no data: expected one kind of {', '.join(SUFFIXES)}, a folder for each split or "
            "class, or what save_to_disk wrote; found 0 file(s) to read"
        )
    order = [name for name in dict.fromkeys(_SPLITS.values()) if name in parts]
    return {name: parts[name] for name in dict.fromkeys([*order, *parts])}


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name contains, if any."""
    return next((_SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLITS), None)


def _parts(folder: Path, depth: int) -> dict[str, Part]:
    splits = saved_splits(folder)
    if splits is not None:
        return {split_of(name) or name: _saved_part(folder / name) for name in splits}
    if is_saved_dataset(folder):
        return {"train": _saved_part(folder)}
    files = _data_files(folder)
    if files:
        return _by_name(folder, files)
    below = [path for path in _entries(folder) if path.is_dir()]
    named = {path: split for path in below if (split := split_of(path.name))}
    parts: dict[str, Part] = {}
    for path, split in named.items():
        part = _whole_part(path)
        if part is not None and split in parts:
            raise InputFileError(f"{folder} has several folders of split {split}; name a single one")
        if part is not None:
            parts[split] = part
    if parts or depth > 2:
        return parts
    # The data set may be a folder deeper: data/ and configurations on the Hub, an unpacked archive.
    data_sets = {path: found_parts for path in below if path not in named and (found_parts := _parts(path, depth + 1))}
    if len(data_sets) > 1:
        raise InputFileError(
            f"{folder} holds several data sets ({', '.join(path.name for path in data_sets)}); name one"
        )
    if data_sets:
        return next(iter(data_sets.values()))
    classes = _classes(folder)
    return {"train": classes} if classes is not None else {}


def _whole_part(folder: Path) -> Part | None:
    """The folder as a single split; None if it holds no data."""
    if is_saved_dataset(folder):
        return _saved_part(folder)
    files = _data_files(folder)
    if files:
        _check_one_kind(folder, files)
        return Part(files=tuple(files))
    return _classes(folder)


def _saved_part(folder: Path) -> Part:
    if not is_saved_dataset(folder):
        raise InputFileError(f"{folder} is not what save_to_disk writes, or incomplete; copy the whole folder again")
    files, names = saved_files(folder)
    return Part(files=tuple(files), class_names=names)


def _by_name(folder: Path, files: list[Path]) -> dict[str, Part]:
    _check_one_kind(folder, files)
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(split_of(file.stem) or "", []).append(file)
    unknown = groups.pop("", [])
    if not groups:
        return {"train": Part(files=tuple(unknown))}
    if unknown:
        raise InputFileError(
            f"{folder}: by its name {unknown[0].name} is neither training nor evaluation data ({', '.join(_SPLITS)}); "
            "rename it, or name single files"
        )
    return {split: Part(files=tuple(group)) for split, group in groups.items()}


def _check_one_kind(folder: Path, files: list[Path]) -> None:
    kinds = sorted({suffix_of(file) for file in files})
    if len(kinds) > 1:
        raise InputFileError(
            f"{folder}: expected one kind of {', '.join(SUFFIXES)}, found {len(files)} file(s) to read, of "
            f"{' and '.join(kinds)}; name a single file, or move the others away"
        )


def _classes(folder: Path) -> Part | None:
    """The split of a folder with a folder per class and a text per file, as in IMDb; None for another folder."""
    found = {path.name: _entries(path) for path in _entries(folder) if path.is_dir()}
    texts = {name: [file for file in files if file.suffix.lower() == ".txt"] for name, files in found.items()}
    others = [name for name, files in texts.items() if found[name] and not files]
    texts = {name: files for name, files in texts.items() if files}
    left = [name for name in texts if name.lower() in _UNLABELLED]
    if len(texts) > len(left):
        for name in left:
            del texts[name]
    else:
        left = []
    if not texts:
        return None
    return Part(
        files=tuple(file for files in texts.values() for file in files),
        classes=tuple(name for name, files in texts.items() for _ in files),
        remarks=(
            *(f"{folder / name} is left out: its texts have no class" for name in left),
            *(f"{folder / name} is left out: it has no .txt file" for name in others),
        ),
    )


def _data_files(folder: Path) -> list[Path]:
    return [
        file
        for file in _entries(folder)
        if suffix_of(file) in SUFFIXES and file.name.lower() not in _METADATA and file.is_file()
    ]


def _entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, without hidden entries; part-2 comes before part-10."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith((".", "_", "~$"))]
    except OSError as error:
        raise InputFileError(f"cannot read {folder}: {error.strerror}") from None
    return sorted(entries, key=lambda path: [(int(n), "") if n.isdigit() else (-1, n) for n in _pieces(path.name)])


def _pieces(name: str) -> list[str]:
    return [piece for piece in re.split(r"([0-9]+)", name) if piece]


def class_table(part: Part, source: DataSource) -> Table:
    """The texts of class folders: columns `text`, `label` (the folder's name) and `file`."""
    return Table(
        name=source.path,
        kind="a folder of texts",
        items=_texts(part, source.encoding),
        columns=("text", "label", "file"),
        unit="file",
        remarks=part.remarks,
        where=lambda number: str(part.files[number - 1]),
    )


def _texts(part: Part, encoding: str | None) -> Iterator[Item]:
    for number, (file, name) in enumerate(zip(part.files, part.classes, strict=True), 1):
        try:
            text = file.read_bytes().decode(encoding or "utf-8-sig")
        except OSError as error:
            raise unreadable(str(file), error) from None
        except UnicodeError:
            yield number, f"{file} is not valid {encoding or 'UTF-8'}; name its encoding (--encoding latin-1)"
            continue
        yield number, {"text": text.removeprefix("\ufeff"), "label": name, "file": str(file)}
