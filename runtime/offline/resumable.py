"""An output file that is written under another name, can be resumed, and is renamed when it is complete."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nopad.runtime.atomic import write_file
from nopad.runtime.errors import EnvironmentProblem, OutputError, UsageError


def output_file(output: Path, inputs: Sequence[Path | int]) -> Path:
    """The regular file that `--output` names, links resolved. Raises `UsageError` if writing it would do harm.

    `inputs` are the files (or descriptors) that the command reads.
    """
    if output.exists() and not output.is_file():
        raise UsageError(f"--output {output} is a {'folder' if output.is_dir() else 'device or pipe'}; name a file")
    target = Path(os.path.realpath(output))
    if output.absolute().is_relative_to("/dev") or target.is_relative_to("/proc"):
        raise UsageError(f"--output {output} is not a regular file; leave --output out to write to stdout")
    for path in (target, partial_file(target)):
        for source in inputs:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.stat(source)):
                    raise UsageError(f"--output {output} would overwrite the --input file; name another")
    return target


def partial_file(output: Path) -> Path:
    """The file that holds the output until it is complete."""
    return output.with_name(output.name + ".partial")


@contextmanager
def resumable_file(
    output: Path,
    *,
    job: Mapping[str, Any],
    resume: bool,
    hint: str = "",
    convert: Callable[[Path, Path], None] | None = None,
) -> Iterator[IO[bytes]]:
    """Yield `OUTPUT.partial`, for reading and appending; at the end it becomes `output`, if need be through `convert`.

    `convert` gets the partial file and a path to write; that file then replaces `output` in one step.

    After an error the partial file stays, unless it is empty, with `OUTPUT.partial.job`, a JSON record of the job.
    `resume` keeps its content; otherwise it starts empty. `hint` ends the message about a full disk.
    Raises `OutputError` if another process is writing it, `UsageError` if it belongs to another job, and
    `EnvironmentProblem` when the disk is full.
    """
    partial = partial_file(output)
    record = partial.with_name(partial.name + ".job")
    with _full_disk(f"{partial} holds the answers so far{hint}"), partial.open("ab+") as file:
        _lock(file, partial, output)
        if resume and os.fstat(file.fileno()).st_size:
            _check_job(record, job, partial)
        else:
            file.truncate(0)
            write_file(record, json.dumps(job, indent=1).encode())
        try:
            yield file
            file.flush()
        except BaseException:
            with suppress(OSError):
                file.flush()
            if not os.fstat(file.fileno()).st_size:
                partial.unlink()
                record.unlink()
            raise
        if convert is not None:
            converted = output.with_name(f".{output.name}.converted")
            try:
                convert(partial, converted)
                converted.replace(output)
            finally:
                converted.unlink(missing_ok=True)
            partial.unlink()
        else:
            partial.replace(output)
        record.unlink(missing_ok=True)


def _lock(file: IO[bytes], partial: Path, output: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(partial)):  # its owner has just finished
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        raise OutputError(f"another process is writing {output}; wait for it, or name another output") from None


def _check_job(record: Path, job: Mapping[str, Any], partial: Path) -> None:
    try:
        started = json.loads(record.read_bytes())
        different = [name for name in job if started[name] != json.loads(json.dumps(job[name]))]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{record} does not say how {partial} was started; start again without --resume") from None
    if different:
        raise UsageError(
            f"{partial} was started with another {', '.join(different)}: repeat that, or start again without --resume"
        )


@contextmanager
def _full_disk(hint: str) -> Iterator[None]:
    """Translate the errors of a full disk, also those that appear when a file is closed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise EnvironmentProblem(f"the disk is full; free some space, or name another --output; {hint}") from None
