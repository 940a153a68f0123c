"""API keys: the file, and who is let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from nopad.runtime.errors import UsageError
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
