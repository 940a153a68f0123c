"""API keys: the file, and who is let in."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nopad.runtime.errors import UsageError
from nopad.runtime.server import file_changes
from nopad.runtime.server.keys import Keys, read_keys


def test_a_file_has_a_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst\n\n  second  \n")
    assert read_keys(path) == ("first", "second")


def test_a_file_without_keys_would_open_the_server_and_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for content in (b"", b"# nobody\n\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UsageError):
            read_keys(path)
    with pytest.raises(UsageError, match="cannot read the API keys"):
        read_keys(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        (b"Bearer first", True),
        (b"bearer second", True),
        (b"Bearer  first ", True),
        (b"Bearer firs", False),
        (b"Bearer first2", False),
        (b"Bearer ", False),
        (b"Basic first", False),
        (b"first", False),
        (b"", False),
        (None, False),
    ],
)
def test_one_of_the_keys_as_a_bearer_is_let_in(header: bytes | None, allowed: bool) -> None:
    assert Keys(["first", "second"]).allow(header) is allowed
    assert Keys([]).allow(header)


def test_a_file_that_changes_is_read_again_and_a_broken_one_leaves_the_old_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_changes, "SECONDS", 0.0)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("nopad.server").addHandler(handler)
    path = tmp_path / "keys"
    path.write_text("old\n")
    keys = Keys(["given"], path)
    assert keys.allow(b"Bearer old") and not keys.allow(b"Bearer new") and lines == []
    path.write_text("new\nother\n")
    assert not keys.allow(b"Bearer old") and keys.allow(b"Bearer new") and keys.allow(b"Bearer given")
    for broken in (lambda: path.write_text("# nobody\n"), path.unlink):
        broken()
        assert keys.allow(b"Bearer new") and keys.allow(b"Bearer other") and not keys.allow(b"Bearer nobody")
        assert "still good" in lines[-1]
    said = len(lines)
    assert keys.allow(b"Bearer new") and len(lines) == said  # once for each change
    path.write_text("third\n")
    assert keys.allow(b"Bearer third") and not keys.allow(b"Bearer new")
    logging.getLogger("nopad.server").removeHandler(handler)
    assert not any(key in line for line in lines for key in ("other", "third"))


def test_a_file_that_cannot_be_read_at_first_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the API keys"):
        Keys([], tmp_path / "nowhere")
