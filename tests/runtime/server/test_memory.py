"""Free memory: the machine's, each control group's and the operator's, whichever is least."""

from __future__ import annotations

from pathlib import Path

from nopad.runtime.server.memory import available, give_back, resident


def system(folder: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, groups = folder / "proc", folder / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self/statm").write_text("2000 1000 3 4 0 6 0\n")  # pages
    (proc / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    9000 kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, groups


def test_the_least_of_all_limits_counts(tmp_path: Path) -> None:
    proc, groups = system(tmp_path, "0::/a/b\n", {})
    assert available(proc=proc, cgroups=groups) == 9000 * 1024
    own = resident(proc)
    assert own is not None and available(own + 5, proc=proc, cgroups=groups) == 5
    assert available(own - 5, proc=proc, cgroups=groups) == 0


def test_version_2_groups_from_the_own_one_up(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "5000000\n",
        "a/memory.current": "4000000\n",
        "a/memory.stat": "anon 1\ninactive_file 250000\n",
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "4000000\n",
        "a/b/memory.stat": "inactive_file 0\n",
    }
    proc, groups = system(tmp_path, "0::/a/b\n", files)
    assert available(proc=proc, cgroups=groups) == 1_250_000


def test_version_1_groups(tmp_path: Path) -> None:
    files = {
        "memory/x/memory.limit_in_bytes": "3000000\n",
        "memory/x/memory.usage_in_bytes": "2000000\n",
        "memory/x/memory.stat": "total_inactive_file 500000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "2000000\n",
        "memory/memory.stat": "total_inactive_file 0\n",
    }
    proc, groups = system(tmp_path, "3:cpu,cpuacct:/x\n2:memory:/x\n", files)
    assert available(proc=proc, cgroups=groups) == 1_500_000


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    assert available(10, proc=tmp_path, cgroups=tmp_path) is None and resident(tmp_path) is None
    give_back()


def test_this_machine_says_something() -> None:
    assert (resident() or 0) > 1_000_000 and (available() or 0) > 0
