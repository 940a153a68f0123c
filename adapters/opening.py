"""The bundle behind an adapter: a folder or an opened model, checked for its task. Knows no framework."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nopad.model.packages import PACKAGES, install_hint, package_of
from nopad.runtime.bundle import open_bundle
from nopad.runtime.errors import EnvironmentProblem, UsageError
from nopad.runtime.manifest import Manifest
from nopad.runtime.opened import remedy
from nopad.runtime.predictor import Model, load

# A bundle's folder, None for the embedded default, or a model that several adapters share.
Source = str | Path | Model | None


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of a framework. Raises `EnvironmentProblem` that names nopad's extra for it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = package_of(error.name or "")
        package, hint = PACKAGES[name].name if name in PACKAGES else name, install_hint(extra)
        raise EnvironmentProblem(f"the adapter for {extra} needs the package {package}: {hint}") from None


class Opened:
    """A bundle for an adapter: its manifest is read at once, its engine opened at the first use of `model`.

    Pickled and copied as the path of its folder. A forked child opens the bundle again, since threads and engines do
    not survive a fork.
    """

    def __init__(
        self, source: Source, *tasks: str, adapter: str, load_options: Mapping[str, Any] | None = None
    ) -> None:
        """`tasks`: what the bundle must do, () for anything. `adapter`: its name in messages.

        `load_options`: keyword arguments of `nopad.runtime.load`. Raises `BundleError`, and `UsageError` for a bundle
        of another task, or options for a model that is open already.
        """
        self.load_options = dict(load_options or {})
        self._models: dict[int, Model] = {}  # by process: one that was inherited stays, since nothing may close it here
        if isinstance(source, Model):
            self._models[os.getpid()] = source
            if self.load_options:
                raise UsageError(f"{adapter}: load_options are for a folder; this model is open already")
            source = source.bundle.path
        self.path = None if source is None else str(source)
        bundle = open_bundle(self.path, verify=False)
        self.manifest: Manifest = bundle.manifest
        task = self.manifest.task
        if tasks and task not in tasks:
            advice = remedy(task, tasks[0])
            raise UsageError(
                f"{adapter} needs a bundle for {' or '.join(tasks)}; {bundle.path} does {task}"
                + (f": {advice}" if advice else "")
            )

    @property
    def model(self) -> Model:
        """The opened model of this process. Raises as `nopad.runtime.load`."""
        process = os.getpid()
        if process not in self._models:
            self._models[process] = load(self.path, **self.load_options)
        return self._models[process]

    def __getstate__(self) -> dict[str, Any]:
        """Without the opened models."""
        return {**self.__dict__, "_models": {}}
