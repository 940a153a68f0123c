"""Memory of a long-running process."""

import subprocess
import sys

import pytest

# A process of its own: what other tests have allocated would hide a leak of ours.
CHILD = """
import random

from nopad.runtime import load

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024

draw = random.Random(0)
words = "film plot actor dull splendid and the of it was never again".split()
with load(threads=2) as model:
    for request in range(10_001):
        model.predict([" ".join(draw.choices(words, k=draw.randint(1, 300))) for _ in range(draw.randint(1, 4))])
        if request in (2_000, 10_000):
            print(resident(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_10_000_requests() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    early, late = map(int, child.stdout.split())
    print(f"{early / 1e6:.1f} MB after 2,000 requests, {late / 1e6:.1f} MB after 10,000")
    # The largest request so far decides what the arena holds; after 2,000 there has been one of nearly its size.
    assert late < 1.05 * early
