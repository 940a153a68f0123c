"""The error tree. Every message names the thing at fault and the next step; `exit_code` is the command line's.

NopadError                       3
+- CheckpointError               3  a checkpoint folder that cannot be used (nopad.model.errors, like the root)
+- UsageError                    2  an option or argument that makes no sense here
|  +- ClosedError                2  the model has been closed
|  +- TeacherError               2  a teacher that cannot teach this student (nopad.training.errors)
+- OutputError                   3  an output that must not be written
+- BundleError                   3  a bundle that is missing, incomplete or malformed
|  +- IntegrityError             3  a file of the bundle is not the one that was written
|  +- NewerVersionError          3  the bundle was made by a newer nopad
|  +- UnverifiedError            3  the bundle has not passed the parity gate
+- InputFileError                3  a file of texts that cannot be read at all
+- TextError                     3  one input text that cannot be answered
|  +- TooLongError               3  a text over the model's max length, where texts may not be cut
+- EnvironmentProblem            4  a package or a device is missing, or memory or disk ran out
+- OverloadedError               4  too much waits already: try again later
+- DrainingError                 4  no new requests are taken, since the model will be closed
+- DeadlineError                 4  a deadline passed before the answer was there
+- EngineError                   4  an engine failed on a batch, or answered NaN
|  +- ShapeError                 4  a batch that fits none of an engine's profiles
|  +- CudaError                  4  a CUDA call failed (nopad.runtime.engines.cuda)
|     +- OutOfDeviceMemoryError  4  the GPU has no room (nopad.runtime.engines.cuda)
+- DataError                     3  a data set that cannot be trained on (nopad.training.errors)
+- DivergedError                 3  a training run whose figures are no longer finite (nopad.training.errors)
+- SweepError                    3  no trial of a sweep has finished (nopad.training.errors)
+- ExportError                   3  a checkpoint that cannot be exported as asked (nopad.export.errors)
+- UncountableError              3  a graph whose work is not known (nopad.bench.forecast.groups)
"""

from __future__ import annotations

from nopad.model.errors import CheckpointError, NopadError


class UsageError(NopadError):
    """An option or argument that makes no sense here."""

    exit_code = 2


class ClosedError(UsageError):
    """The model has been closed, perhaps while this text waited."""


class OutputError(NopadError):
    """An output that must not be written: it holds something else, or another process is writing it."""


class BundleError(NopadError):
    """A bundle that is missing, incomplete or malformed."""


class IntegrityError(BundleError):
    """A file of the bundle is not the one that was written: wrong size or SHA-256."""


class NewerVersionError(BundleError):
    """The bundle's format is newer than this nopad."""


class UnverifiedError(BundleError):
    """The bundle has not passed the parity gate."""


class InputFileError(NopadError):
    """A file of texts that cannot be read at all."""


class TextError(NopadError):
    """One input text that cannot be answered; the others can."""


class TooLongError(TextError):
    """A text over the model's max length, where texts may not be cut. `tokens`: of the whole text."""

    def __init__(self, message: str, *, tokens: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens


class EnvironmentProblem(NopadError):
    """A package or a device is missing, or memory or disk ran out."""

    exit_code = 4


class OverloadedError(NopadError):
    """Too much waits already. `retry_after`: seconds after which what waits now will have been answered."""

    exit_code = 4

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(NopadError):
    """No new requests are taken: what waits is still answered, then the model will be closed."""

    exit_code = 4


class DeadlineError(NopadError):
    """A deadline passed before the answer was there."""

    exit_code = 4


class EngineError(NopadError):
    """An engine failed on a batch, or answered NaN."""

    exit_code = 4


class ShapeError(EngineError):
    """A batch that fits none of an engine's profiles: not a failure of the engine, but another must answer it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: everything is cleaned up as after Ctrl-C, and the exit code says what it was."""


__all__ = [
    "BundleError",
    "CheckpointError",
    "ClosedError",
    "DeadlineError",
    "DrainingError",
    "EngineError",
    "EnvironmentProblem",
    "InputFileError",
    "IntegrityError",
    "NewerVersionError",
    "NopadError",
    "OutputError",
    "OverloadedError",
    "ShapeError",
    "TextError",
    "TooLongError",
    "UnverifiedError",
    "UsageError",
]
