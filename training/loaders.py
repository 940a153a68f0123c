"""The data of each task: which function reads it, and which options apply to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nopad.model.head import Task as HeadTask
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData, load_data
from nopad.training.pair_data import load_pairs, load_passages
from nopad.training.sources import Sources
from nopad.training.tagged_texts import load_tagged
from nopad.training.texts import load_texts

LOADERS: dict[HeadTask, Callable[..., TrainingData]] = {
    "text-classification": load_data,
    "embeddings": load_pairs,
    "rerank": load_passages,
    "token-classification": load_tagged,
    "fill-mask": load_texts,
}


def load(task: HeadTask, source: Sources, evaluation: Sources | None = None, **options: Any) -> TrainingData:
    """Read the data of a task; `options` are its loader's, None where not given.

    Raises `DataError`, and `UsageError` for an option that does not apply to the task.
    """
    loader = LOADERS[task]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - inspect.signature(loader).parameters.keys():
        raise UsageError(f"--{name.replace('_', '-')} does not apply to --task {task}; leave it out")
    return loader(source, evaluation, **given)
