"""The pictures of the documentation, taken anew from the pages themselves by headless Chromium.

    python scripts/screenshots.py --data imdb/test.jsonl

Writes docs/screenshots/*.png: the playground with an answer and its explanation, the error analysis of 400 rows of the
data, and the report of a benchmark result. All of the embedded model, but for the last.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from itertools import islice
from pathlib import Path
from time import sleep

from nopad.bench.report.files import read_report
from nopad.bench.report.html import write_html

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from browser import browser  # noqa: E402

PICTURES = ROOT / "docs" / "screenshots"
RESULT = ROOT / "docs" / "benchmarks" / "modernbert-base-2-cores.json"
NOPAD = [sys.executable, "-m", "nopad.runtime.cli"]
TEXT = "A dull film, saved by its last ten minutes. I loved the ending, and the music is splendid."
WIDTH = 1280
URL = "http://127.0.0.1:8799"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="labelled reviews")
    arguments = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        analysis, report = Path(folder) / "analysis.html", Path(folder) / "report.html"
        rows = Path(folder) / "rows.jsonl"
        with Path(arguments.data).open(encoding="utf-8") as lines:
            rows.write_text("".join(islice(lines, 400)), encoding="utf-8")
        shutil.copytree(ROOT / "runtime" / "default" / "bundle", Path(folder) / "bundle")
        analyze = ["analyze", "bundle", "--data", rows.name, "--output", analysis.name]
        subprocess.run([*NOPAD, *analyze], check=True, cwd=folder)  # pages name what they are of as it was given
        write_html(read_report(RESULT), report)
        for name, html, height in (("analysis", analysis, 1400), ("benchmark", report, 1200)):
            page.open(html, width=WIDTH)
            page.picture(PICTURES / f"{name}.png", height=height)
        server = subprocess.Popen([*NOPAD, "serve", "--port", URL.rpartition(":")[2]])
        try:
            wait_for_server()
            page.open(f"{URL}/ui", width=WIDTH)
            page.until("document.querySelector('#model').options.length > 0")
            page.type("#text", TEXT)
            page.press("Enter", control=True, code=13)
            page.until("!document.querySelector('#why').hidden")
            page.choose("#method", "shapley")
            page.click("#explain")
            page.until("document.querySelector('#why').innerText.includes('Against')")
            page.picture(PICTURES / "playground.png", height=930)
        finally:
            server.terminate()
            server.wait()


def wait_for_server() -> None:
    while True:
        try:
            urllib.request.urlopen(f"{URL}/health/ready").close()
            return
        except (urllib.error.URLError, ConnectionError):
            sleep(0.2)


if __name__ == "__main__":
    main()
