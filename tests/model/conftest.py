"""Reference models, built once per session."""

from collections.abc import Callable, Iterator

import pytest
from reference_models import CASES, Reference, make_reference


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # Small models gain nothing from more, and threads that wait for a busy machine's cores cost minutes.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = make_reference(CASES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return get
