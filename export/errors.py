"""Errors of the export."""

from nopad.model.errors import NopadError


class ExportError(NopadError):
    """The checkpoint cannot be exported as asked."""
