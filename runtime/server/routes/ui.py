"""The playground at /ui: files of this package that ask the other routes. They hold no secret, so they need no key."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

from nopad.runtime.server.errors import Fault

router = APIRouter(include_in_schema=False)
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = {path.name: path for path in (Path(__file__).parents[1] / "ui").iterdir() if path.suffix in TYPES}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


@router.get("/ui")
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/ui/{name}")
async def part(name: str) -> Response:
    """What the page loads."""
    return _file(name)


def _file(name: str) -> Response:
    path = FILES.get(name)
    if path is None:
        raise Fault("route", f"the playground has no file {name!r}")
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)
