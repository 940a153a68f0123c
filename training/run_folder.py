"""What a run writes: the checkpoint folder at the end, and beside it a work folder that keeps epochs until then."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from nopad.model.errors import CheckpointError
from nopad.model.products import cpu_has_bf16
from nopad.runtime.atomic import check_output, locked
from nopad.runtime.errors import EnvironmentProblem, OutputError, UsageError
from nopad.training.errors import DivergedError
from nopad.training.processes import first_process
from nopad.training.recipe import Recipe

MARKER = "model.safetensors"
# What a run writes, in any version of transformers: a folder with anything else in it is not replaced.
CHECKPOINT_FILES = frozenset(
    {MARKER, "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    | {"vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja"}
)
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
    if recipe.bf16 and not (torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_has_bf16()):
        raise EnvironmentProblem("--bf16 needs a GPU or a CPU that has bfloat16, and there is none; leave it out")
    check_output(output, MARKER, CHECKPOINT_FILES)
    for source in (model, from_scratch, tokenizer):
        path = Path(source or "")
        folder = path.parent if path.is_file() else path
        if source is not None and folder.is_dir() and folder.resolve() == output.resolve():
            raise OutputError(f"{output} is what the model is read from; name another --output")
    work = _work_folder(output)
    if work.exists() and not work.is_dir():
        raise OutputError(f"{work}, where epochs are kept, is not a folder; move it away, or name another output")
    foreign = [path.name for path in sorted(work.glob("*")) if not _EPOCH.fullmatch(path.name)]
    if foreign:
        raise OutputError(f"{work}, where epochs are kept, holds {foreign[0]}; move it away, or name another output")
    if resume and not saved_epochs(output):
        raise CheckpointError(f"nothing to resume: {work} holds no saved epoch; run without --resume")


def saved_epochs(output: Path) -> list[Path]:
    """The epochs that an interrupted run of `output` has saved, oldest first."""
    # trainer_state.json is the last file of a saved epoch: a folder without it was cut short.
    saved = [path.parent for path in _work_folder(output).glob("checkpoint-*/trainer_state.json")]
    return sorted(saved, key=lambda path: int(path.name.rsplit("-", 1)[1]))


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
def epochs_kept(output: Path, resume: bool) -> Iterator[tuple[Path, str | None]]:
    """The work folder of `output`, and the epoch to go on from; no other process trains to `output` meanwhile.

    Saved epochs stay after an error, unless the run has diverged; otherwise they are removed. Of several processes of
    this run, the first does all that. Raises `OutputError`.
    """
    work = _work_folder(output)
    if not first_process():
        yield work, str(saved_epochs(output)[-1]) if resume else None
        return
    with locked(work, f"training to {output}"):
        saved = saved_epochs(output) if resume else []  # an older run's would be taken for this one's
        _clean(work, saved)
        keep: list[Path] = []
        try:
            yield work, str(saved[-1]) if saved else None
        except DivergedError:
            raise
        except BaseException:
            keep = saved_epochs(output)
            raise
        finally:
            _clean(work, keep)


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
