"""The root of nopad's errors, and the error for a configuration or a checkpoint that nopad cannot read.

`nopad.runtime.errors` draws the whole tree; these two are here because `model` imports nothing above it.
"""


class NopadError(Exception):
    """Root of every error nopad raises on purpose; the message names the thing and the next step.

    `exit_code` is what the command line returns for it: 2 usage, 3 bad input, 4 environment.
    """

    exit_code = 3


class CheckpointError(NopadError):
    """A checkpoint folder is missing, incomplete, damaged, or of an unsupported kind."""
