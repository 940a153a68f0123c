"""A server whose models may be changed, and bundles to change them to. Helpers, no tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
from changed_bundles import copied, tampered, warmer
from running_server import Running

TEXTS = ["splendid, go and see it", "a dull film", "an hour of my life I want back", "ok " * 60]
ADMIN = {"authorization": "Bearer secret"}


def write_models(folder: Path) -> Path:
    """Bundles, good and bad, below one folder, and one beside it."""
    models = folder / "models"
    models.mkdir()
    copied(models / "plain")
    warmer(models / "soft")
    tampered(models / "tampered")
    copied(models / "other-labels", labels=("bad", "good"))
    (copied(models / "no-manifest") / "manifest.json").unlink()
    (copied(models / "cut-manifest") / "manifest.json").write_text('{"format_version": 1,')
    graph = copied(models / "damaged") / "model.cpu.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    copied(folder / "outside")
    os.symlink(folder / "outside", models / "link-out")
    os.symlink(models / "soft", models / "link-in")
    return models


class Swapping(Running):
    """A server with one model, `m`, which answers from `plain`."""

    def __init__(self, models: Path, **settings: Any) -> None:
        self.folder = models
        given = {"admin_keys": ("secret",), "model_dirs": (models,), **settings}
        super().__init__({"m": models / "plain"}, **given)

    def change(self, name: str = "m", timeout: float = 60, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/admin/models/{name}", json=body, headers=ADMIN, timeout=timeout)

    def remove(self, name: str) -> httpx.Response:
        return httpx.delete(f"{self.url}/admin/models/{name}", headers=ADMIN, timeout=60)

    def shown(self) -> dict[str, Any]:
        """Rows of GET /admin/models by name."""
        answer = httpx.get(f"{self.url}/admin/models", headers=ADMIN)
        return {row["name"]: row for row in answer.json()["models"]}

    def version(self, name: str = "m") -> int:
        return self.shown()[name]["version"]

    def ask(self, text: str = TEXTS[0], name: str = "m") -> httpx.Response:
        return httpx.post(f"{self.url}/v1/classify", json={"input": [text], "model": name}, timeout=60)
