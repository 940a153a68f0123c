"""The GPUs that have a data sheet here."""

import pytest

from nopad.bench.forecast.data_sheets import find_gpus
from nopad.runtime.errors import UsageError


def test_an_unknown_gpu_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match=r"v100.*t4, l4, a10, a100, h100, h200"):
        find_gpus(["t4", "v100"])
