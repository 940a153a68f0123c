"""`nopad serve --ray local` under many clients at once: the answers of `nopad serve`, until Ctrl-C."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nopad[ray]'")
from ray_cluster import patient
from ray_server import ask_all, end_in_order, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
CLIENTS, REQUESTS = 8, 400
WORDS = (1, 5, 20, 80, 10_000)


def mixed(reviews: Sequence[str]) -> list[list[str]]:
    """Requests of one to eight texts, from a word to a whole review."""
    texts = (" ".join(review.split()[: WORDS[i % len(WORDS)]]) for i, review in enumerate(reviews))
    return [list(islice(texts, 1 + i % 8 if i % 4 == 0 else 1)) for i in range(REQUESTS)]


def test_many_clients_are_answered_as_without_ray_and_ctrl_c_ends_it_in_order(imdb: Path, tmp_path: Path) -> None:
    with (imdb / "test.jsonl").open() as file:
        requests = mixed([json.loads(line)["text"] for line in islice(file, 8 * REQUESTS)])
    with serving(tmp_path) as plain:
        wanted = ask_all(plain.url, requests, clients=1)
    with patient(), serving(tmp_path, "--ray", "local", "--replicas", "2") as server:
        got = ask_all(server.url, requests, clients=CLIENTS)
        assert {each.status for each in (*wanted, *got)} == {200}
        for one, other in zip(wanted, got, strict=True):
            assert len(one.answer) == len(other.answer) == len(one.texts)
            for mine, its in zip(one.answer, other.answer, strict=True):
                assert [row["label"] for row in its] == [row["label"] for row in mine]
                assert [row["score"] for row in its] == pytest.approx([row["score"] for row in mine], abs=1e-5)
        end_in_order(server, signal.SIGINT, group=True)
