"""Saved states of a run (`checkpoint-STEP` folders): what nopad adds to their files, and which are whole.

The files that transformers goes on from (weights, optimizer, random states) carry no checksum that covers them, so a
list of digests is written last: a folder without it was cut short, one that differs from it is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nopad.runtime.atomic import sha256_of
from nopad.runtime.errors import UsageError

DIGESTS = "SHA256SUMS"  # as `sha256sum -c` reads it
_NOTES = "nopad.json"
_STATE = "trainer_state.json"


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a run knows besides transformers' state, as of one saved state."""

    seconds: float = 0.0  # of all sessions of the run
    cpu_seconds: float = 0.0
    evaluation: dict[str, Any] = field(default_factory=dict)  # of the last evaluation: nopad.training.evaluation
    asked: dict[str, Any] = field(default_factory=dict)  # settings, data and all else that decides what is learned


def seal(folder: Path, notes: Notes) -> None:
    """Complete a saved state: the notes, then the digests of all files."""
    (folder / _NOTES).write_text(json.dumps(asdict(notes)), encoding="utf-8")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != DIGESTS)
    (folder / DIGESTS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files), encoding="utf-8")


def read_notes(folder: Path) -> Notes:
    """The notes of a saved state that is whole."""
    return Notes(**json.loads((folder / _NOTES).read_text("utf-8")))


def check_asked(saved: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `UsageError` where a run was asked for something else `before` it was saved than it is `now`.

    Much of it would be taken from the saved state, unseen, and the rest would be as it is now.
    """
    other = [name for name in {**before, **now} if before and before.get(name) != now.get(name)]
    if other:
        plain = [name for name in other if not isinstance(before.get(name, []), (dict, list))]
        was = {name: "not given" if before[name] is None else str(before[name]) for name in plain}
        names = ", ".join(name.replace("_", "-") + (f" (it was {was[name]})" if name in was else "") for name in other)
        raise UsageError(
            f"{saved} is of a run with other settings: {names}. Go on with --resume and its own, or name another "
            "--output"
        )


def ended(saved: Path) -> bool:
    """Whether a run had nothing left to train when it saved this state, which is whole."""
    state = json.loads((saved / _STATE).read_text("utf-8"))
    return bool(state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


def fault(folder: Path) -> str | None:
    """Why a saved state cannot be gone on from; None where it can."""
    try:
        lines = (folder / DIGESTS).read_text("utf-8").splitlines()
        for line in lines:
            digest, _, name = line.partition("  ")
            if sha256_of(folder / name) != digest:
                return f"{name} is not what was written"
        state = json.loads((folder / _STATE).read_text("utf-8"))
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text, or no JSON
        return str(error)
    best = state["best_model_checkpoint"]
    if best is not None and Path(best).name != folder.name:
        return fault_of_best(folder.with_name(Path(best).name))
    return None


def fault_of_best(best: Path) -> str | None:
    """The same of the best state so far, which a later one refers to."""
    reason = fault(best) if best.is_dir() else "it is gone"
    return f"the best epoch so far was {best.name}, and {reason}" if reason else None


def newest_whole(saved: Sequence[Path]) -> tuple[Path | None, dict[str, str]]:
    """The newest of the saved states (oldest first) that is whole, and the faults of those that are newer, by name."""
    faults: dict[str, str] = {}
    for folder in reversed(saved):
        reason = fault(folder)
        if reason is None:
            return folder, faults
        faults[folder.name] = reason
    return None, faults
