"""A tokenizer and configuration to train from scratch."""

from collections.abc import Iterator
from pathlib import Path

import pytest

# training_samples is imported in the fixtures: it skips the test modules where packages for training are missing.


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    # Neither the user's cache nor another test's: rows must come from the files of this test.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training_samples import make_scratch, sentences, write_jsonl

    folder = tmp_path_factory.mktemp("scratch")
    return make_scratch(folder, write_jsonl(folder / "texts.jsonl", sentences(300, seed=99)))
