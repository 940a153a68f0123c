"""Several processes that train one model, as `torchrun` starts them: which one this is. Knows nothing of training."""

from __future__ import annotations

import os


def first_process() -> bool:
    """Whether this process writes files and speaks to the user: the only one, or the first of all machines."""
    return int(os.environ.get("RANK", "0")) == 0
