"""Errors of training."""

from nopad.model.errors import NopadError
from nopad.runtime.errors import UsageError


class DataError(NopadError):
    """A data set that cannot be trained on; the message names the file, line, column or value at fault."""


class TeacherError(UsageError):
    """A teacher that cannot teach this student, whatever the other settings."""


class SweepError(NopadError):
    """No trial of a sweep has finished."""


class DivergedError(NopadError):
    """The loss or a metric of the model to keep is not a finite number."""
