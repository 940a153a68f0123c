"""Numbers as they are written for people."""

from collections.abc import Callable

import pytest

from nopad.charts.units import number, ratio, seconds, seconds_tick, share, size, size_tick, tick


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (number, 0.0, "0"),
        (number, float("inf"), "∞"),
        (number, 99.96, "100"),
        (number, 12345.6, "12,346"),
        (number, 9.999, "10.0"),
        (number, 0.05, "0.05"),
        (number, 2e-5, "2.00e-05"),
        (tick, 2500.0, "2,500"),
        (tick, 1e-5, "1e-05"),
        (seconds, 0.0, "0 s"),
        (seconds, 2.5e-5, "25.0 µs"),
        (seconds, 0.0123, "12.3 ms"),
        (seconds, 59.0, "59.0 s"),
        (seconds, 660.0, "11.0 min"),
        (seconds_tick, 0.05, "50 ms"),
        (size, 999.0, "999 B"),
        (size, 999_600.0, "1.00 MB"),
        (size, 2.5e9, "2.50 GB"),
        (size_tick, 0.0, "0"),
        (size_tick, 5e8, "500 MB"),
        (share, 1.0, "100 %"),
        (share, 0.9996, "99.960 %"),
        (share, 0.25, "25.0 %"),
        (ratio, 1.5, "1.50×"),
        (ratio, 12.34, "12.3×"),
    ],
)
def test_values_are_written_as_people_read_them(write: Callable[[float], str], value: float, text: str) -> None:
    assert write(value) == text
