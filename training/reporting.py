"""Where else a run's figures go, if asked: W&B, TensorBoard, MLflow and Trackio, each by transformers' own callback."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from nopad.model.packages import install_hint, missing
from nopad.runtime.errors import EnvironmentProblem

Reporter = Literal["wandb", "tensorboard", "mlflow", "trackio"]  # also the package, and the extra that brings it
REPORTERS: tuple[Reporter, ...] = get_args(Reporter)


def check_reporters(names: Sequence[Reporter]) -> None:
    """Raise `EnvironmentProblem` for one whose package is not installed."""
    for name in missing(names):
        raise EnvironmentProblem(f"--report-to {name} needs the package {name}: {install_hint(name)}")


def reporter_callbacks(names: Sequence[Reporter], output: Path) -> list[Any]:
    """The callbacks of transformers, which the libraries' own environment variables set up.

    One that does not start (no login, no server) raises `EnvironmentProblem`, before the first step. TensorBoard's
    files go into a folder of this run in `OUTPUT.runs`, unless TENSORBOARD_LOGGING_DIR names another.
    """
    from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

    names = list(dict.fromkeys(names))  # each once
    callbacks = [kind() for kind in get_reporting_integration_callbacks(names)]
    for name, callback in zip(names, callbacks, strict=True):
        if isinstance(callback, TensorBoardCallback):
            folder = output.absolute().with_name(f"{output.name}.runs") / time.strftime("%Y-%m-%d-%H%M%S")
            callback.logging_dir = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(folder)
            callback.on_train_begin = _told_the_folder(callback)
        callback.on_train_begin = _named_errors(name, callback.on_train_begin)
    return callbacks


def _told_the_folder(callback: Any) -> Callable[..., None]:
    """Transformers 4 asks its arguments where the files go, and not the callback."""
    begin = callback.on_train_begin

    def on_train_begin(args: Any, *rest: Any, **kwargs: Any) -> None:
        args.logging_dir = callback.logging_dir
        begin(args, *rest, **kwargs)

    return on_train_begin


def _named_errors(name: Reporter, begin: Callable[..., None]) -> Callable[..., None]:
    def on_train_begin(*args: Any, **kwargs: Any) -> None:
        try:
            begin(*args, **kwargs)
        except Exception as error:  # each library has its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EnvironmentProblem(f"--report-to {name} does not start: {reason}") from error

    return on_train_begin
