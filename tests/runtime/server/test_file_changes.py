"""A changed file is noticed, at most once a second."""

from __future__ import annotations

import os
from pathlib import Path

from nopad.runtime.server.file_changes import FileChanges


def test_a_change_is_seen_once_and_not_within_a_second(tmp_path: Path) -> None:
    now, path = [0.0], tmp_path / "keys"
    path.write_text("a")
    changes = FileChanges(path, clock=lambda: now[0])
    assert not changes.seen()
    path.write_text("ab")
    now[0] = 0.9
    assert not changes.seen()
    now[0] = 1.0
    assert changes.seen()
    now[0] = 2.0
    assert not changes.seen()
    # Replaced by one of the same size and time, as `mv` and mounted secrets do; removed; and there again.
    (tmp_path / "new").write_text("cd")
    os.utime(tmp_path / "new", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "new").replace(path)
    for moment, act in ((3.0, None), (4.0, path.unlink), (5.0, path.touch)):
        now[0] = moment
        if act:
            act()
        assert changes.seen()
    assert not FileChanges(clock=lambda: now[0]).seen()
