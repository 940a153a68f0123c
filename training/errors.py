"""Errors of training."""

from nopad.model.errors import NopadError


class DataError(NopadError):
    """A data set that cannot be trained on: file, line, column or value at fault is named."""


class DivergedError(NopadError):
    """The loss or a metric of the model to keep is not a finite number."""
