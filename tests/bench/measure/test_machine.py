"""The machine: threads that a library would get from the environment."""

import pytest

from nopad.bench.measure.machine import check_threads
from nopad.runtime.errors import UsageError


def test_threads_that_the_environment_contradicts_are_refused() -> None:
    check_threads(1, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": ""})
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        with pytest.raises(UsageError, match=f"{name}=7 in the environment contradicts --threads 1"):
            check_threads(1, {name: "7"})
    with pytest.raises(UsageError, match="cores"):
        check_threads(4096, {})
