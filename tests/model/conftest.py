"""Reference models, built once per session."""

from collections.abc import Callable

import pytest
from reference_models import CASES, Reference, make_reference


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = make_reference(CASES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return get
