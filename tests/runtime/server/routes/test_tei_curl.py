"""TEI's routes as curl asks them: forms of inputs and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

Serve = Callable[..., Any]
JSON = ("-H", "content-type: application/json")


@pytest.fixture
def curl(serve: Serve) -> Callable[..., tuple[int, Any]]:
    """The status and the body of a request to a route of the embedded model's server."""

    def ask(route: str, *arguments: str) -> tuple[int, Any]:
        command = ["curl", "-s", serve("default").url + route, *arguments, "-w", "\n%{http_code}"]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        body, _, status = printed.rpartition("\n")
        return int(status), json.loads(body)

    return ask


def test_the_four_forms_of_inputs_and_a_pair_against_a_batch(curl: Any) -> None:
    def scores(inputs: str) -> Any:
        status, body = curl("/predict", *JSON, "-d", f'{{"inputs": {inputs}}}')
        assert status == 200
        return body

    single = scores('"a dull film"')
    assert [row["label"] for row in single] == ["negative", "positive"] and scores('["a dull film"]') == single
    pair = scores('["a dull film", "splendid"]')
    assert [set(row) for row in pair] == [{"label", "score"}] * 2  # one answer
    batch = scores('[["a dull film"], ["splendid"], ["a dull film", "splendid"]]')
    assert [len(rows) for rows in batch] == [2, 2, 2]
    assert batch[0][0]["score"] == pytest.approx(single[0]["score"], abs=1e-5)
    assert batch[2][0]["score"] == pytest.approx(pair[0]["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((*JSON, "-d", '{"inputs": ["a", "b", "c"]}'), 422, "this has 3"),
        ((*JSON, "-d", json.dumps({"inputs": [["a"]] * 33})), 422, "batch size 33 > maximum allowed batch size 32"),
        ((*JSON, "-d", '{"inputs": "a"'), 400, "Failed to parse"),
        (("-d", '{"inputs": "a"}'), 415, "Content-Type: application/json"),
        (("-H", "content-type:", "-d", '{"inputs": "a"}'), 415, "Content-Type: application/json"),
        (("-X", "GET"), 405, "does not take GET"),
        (("-X", "PUT", *JSON, "-d", "{}"), 405, "does not take PUT"),
    ],
)
def test_what_is_refused(curl: Any, arguments: tuple[str, ...], status: int, said: str) -> None:
    found, body = curl("/predict", *arguments)
    assert found == status and said in body["error"] and body["error_type"] == "Validation"


@pytest.mark.parametrize(("size", "status"), [(2_000_000, 200), (2_000_001, 413)])
def test_a_body_of_the_limit_and_of_a_byte_more(curl: Any, tmp_path: Path, size: int, status: int) -> None:
    (tmp_path / "body").write_bytes(b'{"inputs": "a"' + b" " * (size - 15) + b"}")
    for chunked in ((), ("-H", "transfer-encoding: chunked")):
        found, _ = curl("/predict", *JSON, *chunked, "--data-binary", f"@{tmp_path / 'body'}")
        assert found == status
