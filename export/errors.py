"""Errors of the export."""

from nopad.model.errors import NopadError


class ExportError(NopadError):
    """The checkpoint cannot be exported as asked."""


class MissingPackage(NopadError):
    """A package that this export needs is not installed, or is of the wrong version."""

    exit_code = 4
