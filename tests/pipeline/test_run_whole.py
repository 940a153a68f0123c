"""A whole recipe on real reviews: killed while it trains, taken up again, cached, its report looked at in a browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from browser import browser, chromium, violations
from training_samples import make_scratch

RECIPE = """
set: {data: data, epochs: 4}
train:
  from-scratch: $data/scratch
  train: $data/train.jsonl
  eval: $data/test.jsonl
  labels: negative,positive
  epochs: $epochs
  max-length: 64
  batch-size: 8
  learning-rate: 1e-3
  threads: 1
plan:
  data: $data/train.jsonl
export:
  threads: 1
calibrate:
  data: $data/held_out.jsonl
  threads: 1
parity:
  data: $data/test.jsonl
  limit: 8
  threads: 1
bench:
  workload: [2x16]
  rounds: 2
  against: none
  threads: 1
analyze:
  data: $data/test.jsonl
  train: $data/train.jsonl
  threads: 1
"""


def nopad(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nopad.runtime.cli", "run", str(folder / "whole.yaml"), "--json"]
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, imdb: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "data").mkdir()
    with (imdb / "train.jsonl").open(encoding="utf-8") as file:
        lines = list(islice(file, 0, 12_000, 50))
    # A telling word, since a model of this size learns nothing else from so few reviews.
    rows = [json.loads(line) for line in lines]
    told = [json.dumps({**row, "text": f"{('awful', 'superb')[row['label']]} {row['text']}"}) for row in rows]
    for name, part in (("train", told[:64]), ("test", told[64:100]), ("held_out", told[100:])):
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(part))
    (folder / "data" / "scratch").mkdir()
    make_scratch(folder / "data" / "scratch", folder / "data" / "train.jsonl")
    (folder / "whole.yaml").write_text(RECIPE)
    return folder


@pytest.mark.slow
def test_a_whole_recipe(folder: Path, tmp_path: Path) -> None:
    first = nopad(folder)
    made = folder / "whole.run"
    deadline = time.monotonic() + 300
    while not list(made.glob("train.training/checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    record = json.loads((made / "run.json").read_bytes())["steps"]["train"]
    assert record["state"] == "running"

    said = "another process is running"
    while "another process is running" in said:  # until the killed run's step has ended
        assert time.monotonic() < deadline
        again = nopad(folder)
        out, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    steps = {line["step"]: line for line in map(json.loads, out.splitlines()) if "step" in line}
    assert {name: one["status"] for name, one in steps.items()} == dict.fromkeys(RUN, "done")
    train = json.loads((made / "run.json").read_bytes())["steps"]["train"]
    assert train["arguments"][-1] == "--resume" and steps["train"]["why"] == "was cut short"
    log = (made / "logs" / "train.log").read_text()
    assert "epoch 4: " in log and "epoch 1: " not in log
    assert steps["export"]["results"][0]["verdict"] == "verified" and steps["parity"]["results"][0]["passed"]

    begun = time.monotonic()
    second = nopad(folder)
    out, said = second.communicate(timeout=60)
    assert second.returncode == 0 and time.monotonic() - begun < 10, said
    assert {line["status"] for line in map(json.loads, out.splitlines()) if "step" in line} == {"cached"}
    look_at(made / "report.html", tmp_path)


RUN = ("train", "plan", "export", "calibrate", "parity", "bench", "analyze")


def look_at(report: Path, tmp_path: Path) -> None:
    """In a browser: nothing is asked of the network, nothing is wider than the window, every link leads somewhere."""
    if chromium() is None:
        pytest.skip("no Chromium to look at the report with")
    with browser() as page:
        for width, dark in ((1200, False), (400, True)):
            page.open(report, width=width, dark=dark)
            assert page.value("document.documentElement.scrollWidth") <= width
            assert violations(page) == []
            assert page.value("[...document.images].every((one) => one.complete && one.naturalWidth > 100)")
            titles = page.value("[...document.querySelectorAll('h2')].map((one) => one.textContent)")
            assert titles == ["Steps", *RUN, "Recipe", "Commands"]
        drawn = [file for name in ("train", "export") for file in (report.parent / name).glob("*.svg")]
        assert page.value("document.images.length") == len(drawn) + 1  # and calibrate.svg
        links = page.value("[...document.querySelectorAll('main a')].map((one) => one.getAttribute('href'))")
        assert {"bench/bench.html", "analyze.html"} <= set(links)
        assert all((report.parent / link).exists() for link in links)
        assert not page.problems and not [url for url in page.requests if not url.startswith(("file:", "data:image/"))]
