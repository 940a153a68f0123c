"""Training data on disk: values come back as they were, a full disk is told, memory does not grow with the files."""

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_samples import WORDS, write_jsonl

from nopad.runtime.cli import run
from nopad.runtime.errors import EnvironmentProblem
from nopad.training.data import load_data
from nopad.training.rows_on_disk import Lazily, Records, as_dataset, chosen, tokenize

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
_SCALARS |= st.text(st.characters(exclude_categories=[]), max_size=9) | st.decimals(
    allow_nan=False
)  # lone surrogates, too
_SCALARS |= (
    st.dates() | st.times().map(lambda at: at.replace(fold=0)) | st.datetimes().map(lambda at: at.replace(fold=0))
)
_VALUES = st.recursive(_SCALARS, lambda own: st.lists(own) | st.dictionaries(st.text(max_size=5), own), max_leaves=4)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.text(max_size=5), _VALUES, max_size=3), max_size=3))
def test_records_come_back_as_they_were_in_any_order(rows: list[dict[str, Any]]) -> None:
    records = Records()
    for number, row in enumerate(rows):
        records.add(row, f"line {number}")
    assert len(records) == len(rows)
    for number in reversed(range(len(rows))):
        record, place = records[number]
        assert (record, place) == (rows[number], f"line {number}")
        assert repr(record) == repr(rows[number]), "1, 1.0 and True are equal, but not the same"


def test_what_is_no_data_shows_itself_in_messages() -> None:
    records = Records()
    records.add({"label": b"\xff", "when": datetime(2020, 1, 2), "day": date(2020, 1, 2), "at": time(3)}, "row 1")
    record, _ = records[0]
    assert repr(record["label"]) == repr(b"\xff") and not isinstance(record["label"], str | bytes)
    assert record["day"] == date(2020, 1, 2) and not isinstance(record["day"], datetime)


def test_lazy_rows_are_sequences() -> None:
    made: list[int] = []
    rows = Lazily(lambda place: made.append(place) or Decimal(place), 5)
    assert not made and len(rows) == 5 and rows[-1] == 4 and made == [4]
    assert list(rows[1:4]) == [1, 2, 3] and list(reversed(rows)) == [4, 3, 2, 1, 0]
    assert list(chosen(rows, np.array([3, 0]))) == [3, 0] and not chosen(rows, np.array([], dtype=np.int64))
    with pytest.raises(IndexError):
        rows[5]


def test_a_data_set_is_mapped_from_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    rows = [{"text": f"text {number}", "target": [number] * (number % 3)} for number in range(250)]
    features = {"text": datasets.Value("string"), "target": datasets.Sequence(datasets.Value("int64"))}
    found = as_dataset(iter(rows), features)
    assert found.to_list() == rows and found[[249, 0]]["text"] == ["text 249", "text 0"]
    assert not list(tmp_path.iterdir())


def test_pieces_of_long_texts_are_stored_many_at_once() -> None:
    """Each batch that Arrow reads costs the process a kilobyte or more."""
    rows = as_dataset(({"text": "a " * 10_000} for _ in range(30)), {"text": datasets.Value("string")})
    pieces = tokenize(
        rows, lambda some: {"input_ids": [[1] * 100 for _ in some["text"] for _ in "1234567890"]}, remove=["text"]
    )
    assert len(pieces) == 300 and len(pieces.data.to_batches()) <= 15


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 256 KiB: to a program, as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_with_a_message_that_names_the_folder(
    tmp_path: Path, scratch: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"{number} {' '.join(WORDS * 30)}", "label": number % 2} for number in range(200)]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    request.getfixturevalue("small_files")
    with pytest.raises(EnvironmentProblem, match=r"cannot keep the rows in .*TMPDIR"):
        load_data(path)
    assert run(["train", "--train", path, "--from-scratch", str(scratch), "--output", str(tmp_path / "out")]) == 4
    assert "TMPDIR" in capfd.readouterr().err and not (tmp_path / "out").exists()


# Peak of the memory that is the process's own; pages of files that are mapped can be dropped at any time.
_MEASURE = """
import json, re, sys, threading, time
from pathlib import Path
import datasets
import nopad.training.trainer
from nopad.runtime.cli import run
from nopad.training.loaders import load

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, own())
        time.sleep(0.002)

datasets.disable_progress_bars()
threading.Thread(target=watch, daemon=True).start()
peaks = []
for path in sys.argv[3:]:
    if sys.argv[1] == "load":
        data = load(sys.argv[2], path)
        rows = len(data.train) + len(data.evaluation)
        del data
    else:
        rows = 0
        assert run([*json.loads(sys.argv[2]), "--train", path, "--output", path + ".out"]) == 0
    peaks.append(peak)
print(json.dumps(peaks))
"""


def _peaks(*arguments: str) -> list[int]:
    """Peak bytes after each of the files, one after another in one process."""
    if not Path("/proc/self/status").exists():
        pytest.skip("/proc tells a process's own memory")
    command = [sys.executable, "-c", _MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    peaks: list[int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _file(path: Path, size: int, task: str, sentences: int) -> str:
    """Rows of random sentences of ten words, together about `size` bytes."""
    draw = random.Random(0)
    known = [" ".join(draw.choices(WORDS, k=10)) for _ in range(5000)]
    with path.open("w") as file:
        while file.tell() < size:
            first, second = (" ".join(draw.choices(known, k=sentences)) for _ in "12")
            label = draw.randrange(2)
            rows = {
                "text-classification": {"text": first, "label": label},
                "fill-mask": {"text": first},
                "embeddings": {"anchor": first, "positive": second},
                "rerank": {"query": f"{file.tell()}", "passage": second, "label": label},
                "token-classification": {"tokens": first.split(), "tags": ["B-X", *["O"] * (10 * sentences - 1)]},
            }
            file.write(json.dumps(rows[task]) + "\n")
    return str(path)


@pytest.mark.slow
def test_reading_a_large_file_takes_hardly_more_memory_than_a_small_one(tmp_path: Path) -> None:
    sizes = (4 * 10**6, 28 * 10**6)
    files = [_file(tmp_path / f"{size}.jsonl", size, "text-classification", 300) for size in sizes]
    small, large = _peaks("load", "text-classification", *files)
    assert large - small < (sizes[1] - sizes[0]) / 4


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-classification", "embeddings", "rerank", "token-classification", "fill-mask"])
def test_training_on_a_large_file_takes_hardly_more_memory_than_a_small_one(
    tmp_path: Path, scratch: Path, task: str
) -> None:
    sizes = (5 * 10**6, 65 * 10**6)
    sentences = 10 if task == "token-classification" else 300
    shape = ["--max-length", "16", "--batch-size", "64"]
    if task == "fill-mask":  # it reads all of a text, in pieces; the others its beginning
        sizes, shape = (2_500_000, 32_500_000), ["--max-length", "128", "--batch-size", "8"]
    options = ["train", "--quiet", "--task", task, "--from-scratch", str(scratch), *shape]
    options += ["--epochs", "1", "--threads", "1"]
    files = [_file(tmp_path / f"{size}.jsonl", size, task, sentences) for size in sizes]
    small, large = _peaks("train", json.dumps(options), *files)
    assert large - small < (sizes[1] - sizes[0]) / 4
