"""Each task has its loader, and options of other tasks are refused."""

import pytest
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.runtime.errors import UsageError
from nopad.training.commands.train import TRAINED
from nopad.training.loaders import LOADERS, load


def test_the_command_offers_the_tasks_that_have_a_loader() -> None:
    assert tuple(LOADERS) == TRAINED


def test_an_option_of_another_task_is_refused() -> None:
    with pytest.raises(UsageError, match="--words-column does not apply to --task text-classification"):
        load("text-classification", "rows.jsonl", words_column="words", label_column=None)
