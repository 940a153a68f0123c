"""What a run writes: the checkpoint folder at the end, and beside it a work folder that keeps epochs until then."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError

from nopad.model.checkpoint.adapter import HEAD_FILE, SETTINGS_FILE
from nopad.model.checkpoint.read_config import LENGTHS
from nopad.model.checkpoint.save_pooling import POOLING_FILES
from nopad.model.checkpoint.weights import ADAPTER_FILE
from nopad.model.errors import CheckpointError
from nopad.model.products import cpu_has_bf16
from nopad.runtime.atomic import check_output, locked, sha256_of
from nopad.runtime.errors import EnvironmentProblem, OutputError, UsageError
from nopad.training.errors import DivergedError
from nopad.training.processes import first_process
from nopad.training.recipe import Recipe
from nopad.training.saved import newest_whole

MARKER = "model.safetensors"
CARD, CURVES, CURVES_PAGE = "README.md", "curves.svg", "curves.html"
SWEEP_PAGE, STUDY = "sweep.html", "study.db"  # of a sweep
KEPT = "teacher.safetensors"  # of the work folder: a teacher's answers
ADAPTER = "adapter"  # a folder, of a run with LoRA
RECORD = "nopad_training"  # of config.json: what the run was
# What a run writes, in any version of transformers: a folder with anything else in it is not replaced.
_CONFIGURED = {"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_CONFIGURED |= {"vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja"}
CHECKPOINT_FILES = frozenset(
    {MARKER, CURVES, CURVES_PAGE, LENGTHS, SWEEP_PAGE, STUDY}
    | _CONFIGURED
    | POOLING_FILES
    | {f"{ADAPTER}/{name}" for name in (SETTINGS_FILE, ADAPTER_FILE, HEAD_FILE, *_CONFIGURED, *POOLING_FILES)}
)
ANSWERS = rf"{re.escape(KEPT)}|\.{re.escape(KEPT)}\..*"  # the latter left by a process that was killed as it wrote them
_EPOCH = re.compile(r"checkpoint-\d+")


def check_run(
    output: Path,
    *,
    model: str | None,
    from_scratch: Path | None,
    tokenizer: str | None,
    recipe: Recipe,
    resume: bool,
) -> None:
    """Refuse impossible arguments and outputs before anything is read.

    Raises `UsageError`, `EnvironmentProblem`, `OutputError`, or `CheckpointError` if there is nothing to resume.
    """
    if (model is None) == (from_scratch is None):
        raise UsageError("give one of --model (a checkpoint folder or Hub name) and --from-scratch CONFIG")
    if recipe.lora is not None and model is None:
        raise UsageError("--lora needs --model: its updates are small changes of trained weights")
    if recipe.bf16 and not (torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_has_bf16()):
        raise EnvironmentProblem("--bf16 needs a GPU or a CPU that has bfloat16, and there is none; leave it out")
    check_output(output, MARKER, replaceable(output))
    work = _work_folder(output)
    starts = (model, from_scratch, tokenizer)
    for source in (*starts, recipe.teacher):
        if source is None:
            continue
        folder = Path(source).parent if Path(source).is_file() else Path(source)
        if source in starts and folder.is_dir() and folder.resolve() == output.resolve():
            raise OutputError(f"{output} is what the model is read from; name another --output")
        if folder.resolve().parent == work.resolve() and not resume:
            raise OutputError(f"{folder} would be removed with {work}; name another --output, or move it away")
    if work.exists() and not work.is_dir():
        raise OutputError(f"{work}, where epochs are kept, is not a folder; move it away, or name another output")
    ours = re.compile(rf"{_EPOCH.pattern}|{ANSWERS}")
    foreign = [path.name for path in sorted(work.glob("*")) if not ours.fullmatch(path.name)]
    if foreign:
        raise OutputError(f"{work}, where epochs are kept, holds {foreign[0]}; move it away, or name another output")
    if resume and not saved_epochs(output):
        raise CheckpointError(f"nothing to resume: {work} holds no saved epoch; run without --resume")


def name_of(source: str | Path | None) -> str | None:
    """A folder or file by its last name, since a run goes on where all was moved to; a name of the Hub as it is."""
    if source is None:
        return None
    return Path(source).resolve().name if Path(source).exists() else str(source)


def replaceable(output: Path) -> frozenset[str]:
    """The files of a checkpoint folder that a run may replace: its model card only as long as nobody has edited it."""
    try:
        record = json.loads((output / "config.json").read_text("utf-8"))[RECORD]
        own = record["card_sha256"] == sha256_of(output / CARD)
    except (OSError, ValueError, KeyError, TypeError):  # no checkpoint, or not one with a card
        own = False
    return CHECKPOINT_FILES | {CARD} if own else CHECKPOINT_FILES


def saved_epochs(output: Path) -> list[Path]:
    """The epochs that an interrupted run of `output` has saved, oldest first."""
    # trainer_state.json is the last file of a saved epoch: a folder without it was cut short.
    saved = [path.parent for path in _work_folder(output).glob("checkpoint-*/trainer_state.json")]
    return sorted(saved, key=_step)


def _step(saved: Path) -> int:
    return int(saved.name.rsplit("-", 1)[1])


def _work_folder(output: Path) -> Path:
    path = Path(os.path.abspath(output))
    return path.with_name(path.name + ".training")


def _clean(work: Path, keep: Sequence[Path]) -> None:
    """Remove the epochs in `work` but those in `keep`, and `work` if nothing is left."""
    for path in work.glob("checkpoint-*"):
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # not there, or not empty
        work.rmdir()


@contextmanager
def epochs_kept(output: Path, resume: bool, console: Console) -> Iterator[tuple[Path, Path | None]]:
    """The work folder of `output`, and the saved state to go on from; no other process trains to `output` meanwhile.

    Saved states stay after an error, and a `DivergedError` names the last; at the end they are removed. One that is
    damaged is passed over, and `console` told so. Of several processes of this run, the first does all that. Raises
    `OutputError`, and `CheckpointError` where all are damaged.
    """
    work = _work_folder(output)
    if not first_process():
        yield work, newest_whole(saved_epochs(output))[0] if resume else None
        return
    with locked(work, f"training to {output}"):
        last = _state_to_resume(output, console) if resume else None
        # An older run's would be taken for this one's, and so would what is newer than the one to go on from.
        keep = [path for path in saved_epochs(output) if last is not None and _step(path) <= _step(last)]
        _clean(work, keep)
        keep = []
        try:
            yield work, last
            for path in work.glob("*"):
                if re.fullmatch(ANSWERS, path.name):  # stays after an error: the next run need not ask again
                    path.unlink()
        except DivergedError as error:
            keep = saved_epochs(output)
            raise DivergedError(f"{error}; {_after_divergence(keep)}") from None
        except BaseException:
            keep = saved_epochs(output)
            raise
        finally:
            _clean(work, keep)


def _state_to_resume(output: Path, console: Console) -> Path:
    last, faults = newest_whole(saved_epochs(output))
    told = "; ".join(f"{name} is damaged ({reason})" for name, reason in faults.items())
    if last is None:
        raise CheckpointError(f"nothing to resume in {_work_folder(output)}: {told}; run without --resume")
    if faults:
        console.print(f"note: {told}: going on from {last.name}", style="yellow")
    return last


def _after_divergence(saved: Sequence[Path]) -> str:
    advice = "lower --learning-rate, and look for extreme values among the labels"
    if not saved:
        return f"nothing is written; {advice}"
    return (
        f"the last good state is kept, a checkpoint that --model takes (with another --output): {saved[-1]}; {advice}"
    )


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk, while weights are written, into `EnvironmentProblem`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:  # torch.save raises a RuntimeError
        reason = str(error).splitlines()[0]
        raise EnvironmentProblem(
            f"cannot write {folder} ({reason}); free some space, or name another --output"
        ) from error
