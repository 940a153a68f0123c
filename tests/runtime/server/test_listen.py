"""Unix sockets: who may connect, what is replaced, what is removed; a port beside one."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from nopad.runtime.errors import UsageError
from nopad.runtime.server.listen import bind_unix, listening_on, url_of


def test_a_socket_is_for_its_owner_and_group_and_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "nopad.sock"
    with listening_on(("127.0.0.1", 0), path) as (port, unix):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        for listening in (port, unix):
            with socket.socket(listening.family) as client:
                client.connect(listening.getsockname())
        assert url_of(port, True) == f"https://127.0.0.1:{port.getsockname()[1]}"
        assert url_of(unix, False) == f"unix:{path}"
    assert not path.exists()


def test_a_socket_is_replaced_only_if_nobody_listens_on_it(tmp_path: Path) -> None:
    path = tmp_path / "nopad.sock"
    with bind_unix(path), pytest.raises(UsageError, match="another server listens on"):
        bind_unix(path)
    assert path.exists()  # as a server leaves it that was killed
    with listening_on(None, path) as (unix,):
        path.unlink()
        bind_unix(path).close()  # by now of another server
        assert unix.getsockname() == str(path)
    assert path.exists()
    path.unlink()
    path.write_text("not a socket")
    with pytest.raises(UsageError, match="is there already and is no socket"):
        bind_unix(path)
    with pytest.raises(UsageError, match="cannot listen on --uds"):
        bind_unix(tmp_path / "nowhere" / "nopad.sock")
    with pytest.raises(UsageError, match="too long"):
        bind_unix(tmp_path / ("x" * 200))
