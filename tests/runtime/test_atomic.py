"""Folders and files that are written completely or not at all."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nopad.runtime.atomic import check_output, replace_folder, sha256_of, write_file
from nopad.runtime.errors import OutputError


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def made(output: Path, text: str) -> None:
    with replace_folder(output, marker="marker") as folder:
        (folder / "marker").write_text(text)


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with replace_folder(output, marker="marker") as folder:
        assert not output.exists() and folder.parent == output.parent
        (folder / "marker").write_text("1")
    assert listing(tmp_path) == {"deep/out/marker": b"1"}
    assert output.stat().st_mode & 0o777 == 0o755


def test_the_old_folder_stands_until_the_end(tmp_path: Path) -> None:
    output = tmp_path / "out"
    made(output, "old")
    (output / "extra").write_text("old")
    with replace_folder(output, marker="marker") as folder:
        (folder / "marker").write_text("new")
        assert listing(output) == {"extra": b"old", "marker": b"old"}
    assert listing(tmp_path) == {"out/marker": b"new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [True, False])
def test_an_exception_leaves_nothing_half_written(error: type[BaseException], before: bool, tmp_path: Path) -> None:
    output = tmp_path / "out"
    if before:
        made(output, "old")
    with pytest.raises(error), replace_folder(output, marker="marker") as folder:
        (folder / "marker").write_text("half")
        raise error
    assert listing(tmp_path) == ({"out/marker": b"old"} if before else {})
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if before else [])
    made(output, "new")  # and the lock is free again
    assert listing(tmp_path) == {"out/marker": b"new"}


def test_foreign_outputs_are_refused_untouched(tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter").write_text("1")
    (tmp_path / "file").write_text("x")
    made(tmp_path / "ours", "1")
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    before = listing(tmp_path)
    for name, message in (
        ("thesis", "has no marker, so it is left alone"),
        ("file", "is not a folder"),
        ("link", "is not a folder"),
    ):
        with pytest.raises(OutputError, match=message):
            check_output(tmp_path / name, "marker")
        with pytest.raises(OutputError, match=message), replace_folder(tmp_path / name, marker="marker"):
            raise AssertionError("entered")
    assert listing(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made(tmp_path / "out", "1")
    assert listing(tmp_path) == {"out/marker": b"1"}


def test_a_folder_that_came_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(OutputError, match="left alone"), replace_folder(output, marker="marker") as folder:
        (folder / "marker").write_text("ours")
        output.mkdir()
        (output / "chapter").write_text("theirs")
    assert listing(tmp_path) == {"out/chapter": b"theirs"}


HOLD = """
import sys
from pathlib import Path
from nopad.runtime.atomic import replace_folder
with replace_folder(Path(sys.argv[1]), marker="marker") as folder:
    (folder / "marker").write_text("first")
    print("inside", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin and first.stdout
        assert first.stdout.readline() == "inside\n"
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert f"another process is writing {output}" in second.stderr
        made(tmp_path / "elsewhere", "1")  # another output is free
        first.stdin.write("go\n")
        first.stdin.flush()
        assert first.wait(timeout=60) == 0
    assert listing(tmp_path) == {"elsewhere/marker": b"1", "out/marker": b"first"}
    made(output, "third")
    assert listing(output) == {"marker": b"third"}


def test_a_killed_writer_does_not_block_the_next(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout and first.stdout.readline() == "inside\n"
        first.kill()
    assert not output.exists()
    made(output, "next")
    assert listing(output) == {"marker": b"next"}


def test_write_file_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old, new = b"a" * 200_000, b"b" * 200_000
    write_file(path, old)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        write_file(path, new)
        write_file(path, old)
    stop.set()
    reader.join()
    assert seen and seen <= {old, new}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_file_keeps_the_old_bytes_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert listing(tmp_path) == {"file": b"old"}


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_killed_process_left_is_swept_and_nobody_elses(tmp_path: Path) -> None:
    for name in (".out.k1ll_ed0.partial", ".out.b.k1ll_ed0.partial", ".out.notes.partial"):
        (tmp_path / name).mkdir()
    made(tmp_path / "out", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.b.k1ll_ed0.partial", ".out.notes.partial"}


def test_only_known_files_are_replaced(tmp_path: Path) -> None:
    made(tmp_path / "out", "old")
    (tmp_path / "out" / "mine").write_text("x")
    with (
        pytest.raises(OutputError, match=r"holds files that nopad does not replace \(mine\)"),
        replace_folder(tmp_path / "out", marker="marker", known={"marker"}),
    ):
        pytest.fail("it was entered")
    assert listing(tmp_path) == {"out/marker": b"old", "out/mine": b"x"}


def test_a_folder_inside_is_replaced_only_if_all_its_files_are_known(tmp_path: Path) -> None:
    inside = tmp_path / "out" / "inside"
    inside.mkdir(parents=True)
    for file in (tmp_path / "out" / "marker", inside / "ours.json"):
        file.write_text("{}")
    known = {"marker", "inside/ours.json"}
    check_output(tmp_path / "out", "marker", known)
    with pytest.raises(OutputError, match=r"does not replace \(inside, inside/ours.json\)"):
        check_output(tmp_path / "out", "marker", {"marker"})
    (inside / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"does not replace \(inside/notes.txt\)"):
        check_output(tmp_path / "out", "marker", known)
