"""Importing TensorRT and TensorRT-RTX and collecting the errors that they log, for building and running engines."""

from __future__ import annotations

import importlib
import platform
from collections import deque
from typing import Any

from nopad.model.packages import install_hint
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.errors import EnvironmentProblem

# Target (and engine of the same name) -> module.
LIBRARIES = {name: ENGINES[name].need.modules[0] for name in ("tensorrt", "tensorrt-rtx")}
_KEPT_MESSAGES = 8


def this_platform() -> str:
    """Operating system and processor, which an engine is built for: `Linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}"


def import_library(target: str, who: str) -> Any:
    """The module for `target`; `who` needs it. Raises `EnvironmentProblem` if it is missing or does not load."""
    module = LIBRARIES[target]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last two come from its shared libraries
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        what = "is not installed" if missing else f"is installed but does not load ({error})"
    hint = install_hint(ENGINES[target].need.extra)
    raise EnvironmentProblem(f"{who} needs the package {module}, which {what}: {hint}")


def logger(trt: Any) -> Any:
    """A logger for the library that keeps its last errors, for our messages, and prints nothing."""
    errors = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if severity in errors:
                self._messages.append(message.strip())

        def drain(self) -> str:
            """The errors since the last call, as the end of a sentence."""
            messages = list(self._messages)
            self._messages.clear()
            return f": {'; '.join(messages)}" if messages else ""

    return Log()
