"""From a path to bytes or lines: compression and kind by the first bytes, encoding checked, lines numbered."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nopad.runtime.data.table import need
from nopad.runtime.errors import InputFileError

# Bytes that are examined first: for the kind, the encoding and the line ends.
_HEAD = 1 << 16
# First bytes of a file -> its kind, as `records` names it.
_KINDS = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow-file",
    b"\xff\xff\xff\xff": "arrow-stream",
    b"PK\x03\x04": "zip",
}
_REFUSED = {
    b"PK\x05\x06": "an empty ZIP archive",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file; save it as .xlsx or CSV",
    b"FEA1": "a Feather file of version 1; write it again with a newer pyarrow, or as Parquet",
    b"ORC": "an ORC file; save it as Parquet",
    b"Obj\x01": "an Avro file; save it as Parquet or JSONL",
    b"SQLite format 3": "an SQLite database; save the table as CSV",
    b"%PDF-": "a PDF; save its text as JSONL, CSV or plain text",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_LONE_CR = re.compile(rb"\r(?!\n)")
# Exceptions from reading a damaged file.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)
# Undecodable bytes, as the error handler `surrogateescape` represents them.
_ESCAPED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file, decompressed. `kind` is a value of `_KINDS`, or `text`; `suffix` its ending in lower case."""

    file: IO[bytes]
    head: bytes
    kind: str
    suffix: str


def open_bytes(path: str, stack: ExitStack) -> Opened:
    """Open a file or stdin; `stack` closes it. Raises `InputFileError`, `EnvironmentProblem` (zstd)."""
    if path == "-" and sys.stdin is None:
        raise InputFileError("cannot read stdin: it is closed; name a file")
    try:
        opened = open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-")  # noqa: SIM115
        again = opened.seekable()
        file, head = _look(stack.enter_context(opened), again)
        for _ in range(3):
            method = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
            if method is None:
                break
            again = again and method != "zstd"
            file, head = _look(stack.enter_context(_decompress(file, method, path)), again)
    except DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputFileError(f"cannot read {path}: {reason}") from None
    for magic, what in _REFUSED.items():
        if head.startswith(magic):
            raise InputFileError(f"{path} is {what}")
    kind = next((name for magic, name in _KINDS.items() if head.startswith(magic)), "text")
    return Opened(file=file, head=head, kind=kind, suffix="" if path == "-" else suffix_of(path))


def suffix_of(path: str | Path) -> str:
    """The ending of a file's name in lower case, ignoring a compression's ending (`.jsonl` for `a.jsonl.gz`)."""
    name = Path(path)
    while name.suffix.lower() in _SUFFIXES:
        name = name.with_suffix("")
    return name.suffix.lower()


def seekable(file: IO[bytes]) -> IO[bytes]:
    """The file itself, or all of it in memory if it cannot seek (a pipe, zstd)."""
    return file if file.seekable() else io.BytesIO(file.read())


def _look(file: Any, again: bool) -> tuple[IO[bytes], bytes]:
    """The file at its beginning, and its first bytes; `again`: whether the file can seek back."""
    head = file.read(_HEAD)
    if again:
        file.seek(0)
        return file, head
    return io.BufferedReader(_Rejoined(head, file)), head


class _Rejoined(io.RawIOBase):
    """A stream with its first bytes put back. `damage` is the exception of a truncated stream."""

    def __init__(self, head: bytes, rest: Any, damage: type[Exception] = EOFError) -> None:
        self._head, self._rest, self._damage = head, rest, damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._head[: len(buffer)] if self._head else self._rest.read(len(buffer))
        except self._damage as error:
            raise EOFError(str(error)) from None
        self._head = self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _decompress(file: IO[bytes], method: str, path: str) -> Any:
    if method == "gzip":
        return gzip.GzipFile(fileobj=file)
    if method == "bzip2":
        return bz2.BZ2File(file)
    if method == "xz":
        return lzma.LZMAFile(file)
    zstandard = need("zstandard", f"{path} (compressed with zstd)")
    return _Rejoined(b"", _Frames(file, zstandard), damage=zstandard.ZstdError)


class _Frames:
    """zstd, frame by frame: the library's own reader takes a truncated frame for the end of the file."""

    def __init__(self, file: Any, zstandard: Any) -> None:
        self._file, self._zstandard = file, zstandard
        self._frame: Any = None
        self._ready = b""

    def read(self, size: int) -> bytes:
        while not self._ready:
            data = self._file.read(_HEAD)
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed file is truncated; copy it again")
                return b""
            while data:
                self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
                self._ready += self._frame.decompress(data)
                data = self._frame.unused_data
                if self._frame.eof:
                    self._frame = None
        out, self._ready = self._ready[:size], self._ready[size:]
        return out


class Lines:
    """Numbered lines of a text, with their line ends; they can be peeked at and put back.

    A line ends in LF or CRLF, or in CR if the first lines of the text do.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._ahead: deque[str] = deque()
        self._first = True
        self.number = 0  # of the last line that was read

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else self._read()
        self.number += 1
        return line

    def put_back(self, lines: list[str]) -> None:
        """Put the last lines back, to be read again."""
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)

    def ahead(self, characters: int) -> tuple[list[str], bool]:
        """Peek at the next lines, of about `characters` in all; and whether the text ends with them."""
        size = sum(map(len, self._ahead))
        while size < characters:
            try:
                self._ahead.append(self._read())
            except StopIteration:
                return list(self._ahead), True
            size += len(self._ahead[-1])
        return list(self._ahead), False

    def first_text(self) -> str:
        """Peek at the next line that is not blank; empty if there is none."""
        while not any(line.strip() for line in self._ahead):
            try:
                self._ahead.append(self._read())
            except StopIteration:
                return ""
        return next(line for line in self._ahead if line.strip())

    def _read(self) -> str:
        line = next(self._lines)
        if self._first:
            self._first = False
            line = line.removeprefix("\ufeff")
        if line.endswith("\x1a"):  # Ctrl-Z, which ends a DOS text; only the last line can have it without a line end
            line = line.rstrip("\x1a")
            if not line:
                raise StopIteration
        return line


def text_lines(opened: Opened, path: str, encoding: str | None, stack: ExitStack) -> Lines:
    """The lines of a text; `stack` closes it. Raises `InputFileError` for UTF-16 or UTF-32 without `encoding`."""
    if encoding is None and (wide := _wide_encoding(opened.head)):
        raise InputFileError(f"{path} is {wide.upper()}, not UTF-8: read it with --encoding {wide}")
    codec = "utf-8-sig" if encoding is None or encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    newline = "\r" if _lines_end_in_cr(opened.head) else "\n"
    # surrogateescape: an undecodable line is recognised later (`undecodable`) and does not end the file.
    stream = io.TextIOWrapper(opened.file, codec, errors="surrogateescape", newline=newline)
    stack.enter_context(stream)
    return Lines(_decoded(stream, path, encoding or "UTF-8"))


def _lines_end_in_cr(head: bytes) -> bool:
    """Whether the first line ends in CR alone (old Mac), and more lines end so than in LF."""
    head = head.replace(b"\0", b"")  # of UTF-16
    first = _LONE_CR.search(head)
    ends = head.count(b"\n") - head.count(b"\r\n")
    return first is not None and b"\n" not in head[: first.start()] and len(_LONE_CR.findall(head)) > ends


def _decoded(stream: Iterator[str], path: str, encoding: str) -> Iterator[str]:
    try:
        yield from stream
    except UnicodeError as error:
        raise InputFileError(f"{path} is not {encoding}: {error}; name another --encoding") from None


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by a byte order mark or by the zero bytes of Latin letters; else None."""
    for mark, name in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
                       (b"\xfe\xff", "utf-16")):  # fmt: skip
        if head.startswith(mark):
            return name
    sample = head[: len(head) // 2 * 2]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if len(sample) >= 8 and max(even, odd) > 0.4 * len(sample) / 2 and min(even, odd) < 0.02 * len(sample):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def undecodable(text: str) -> bool:
    """Whether the text contains undecodable bytes."""
    return not text.isascii() and _ESCAPED.search(text) is not None


def not_decoded(encoding: str | None) -> str:
    """Why a line has no text, and what to do."""
    if encoding is not None:
        return f"the line is not valid {encoding}; name another --encoding"
    return "the line is not valid UTF-8; name its encoding (--encoding cp1252 for most files of Windows)"
