"""What a server speaks, by what it says of itself: /info, /v1/models, /models, /v2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nopad.bench.load.protocols import PROTOCOLS, TEMPLATE, Protocol, from_template
from nopad.bench.load.schema import Endpoint
from nopad.runtime.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import aiohttp

_TEI = {"classifier": "tei-predict", "embedding": "tei-embed"}
ANSWER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """An endpoint, and how it is asked."""

    endpoint: Endpoint
    protocol: Protocol
    url: str  # of the requests


def split_name(given: str) -> tuple[str, str]:
    """Name and URL of `[NAME=]URL`; without a name, host and port. Raises `UsageError`."""
    name, separator, url = given.partition("=")
    if not separator or "://" in name:
        name, url = "", given
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"--serve {given}: a URL begins with http:// or https://, as http://localhost:8000")
    return name or parts.netloc, url.rstrip("/")


async def detect(
    session: aiohttp.ClientSession,
    name: str,
    url: str,
    *,
    protocol: str | None,
    model: str | None,
    template: str | None,
) -> Target:
    """How this server is asked. Raises `EnvironmentProblem` if nobody answers, `UsageError` if it does not say."""
    if template is not None:
        found = Endpoint(name=name, url=url, protocol=TEMPLATE)
        return Target(endpoint=found, protocol=from_template(template), url=url)
    said = {path: await _get(session, url + path) for path in ("/info", "/v1/models", "/models", "/v2")}
    chosen = protocol or _chosen(said)
    if chosen is None:
        raise UsageError(f"{url} says nothing of itself at {', '.join(said)}: name its --protocol, or a --template")
    about = next((value for value in said.values() if value), {})
    # Infinity has OpenAI's routes without /v1.
    bare = chosen == "openai" and not said["/v1/models"] and said["/models"]
    if model is None and chosen not in ("tei-predict", "tei-embed", "hub"):
        model = _model(said)
    if chosen == "kserve" and model is None:
        model = await _kserve_model(session, url)
    path = "/embeddings" if bare else PROTOCOLS[chosen].path.format(model=model)
    endpoint = Endpoint(name=name, url=url, protocol=chosen, model=model, about=_short(about))
    return Target(endpoint=endpoint, protocol=PROTOCOLS[chosen], url=url + path)


def _chosen(said: Mapping[str, Any]) -> str | None:
    kind = said["/info"].get("model_type")
    if isinstance(kind, dict) and (tei := next((_TEI[key] for key in kind if key in _TEI), None)):
        return tei
    models = _list(said["/v1/models"]) or _list(said["/models"])
    if models:
        return "infinity-classify" if "classify" in (models[0].get("capabilities") or ()) else "openai"
    return "kserve" if said["/v2"] else None


def _list(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = value.get("data")
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []


def _model(said: Mapping[str, Any]) -> str | None:
    models = _list(said["/v1/models"]) or _list(said["/models"])
    return str(models[0]["id"]) if models and "id" in models[0] else None


async def _kserve_model(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.post(url + "/v2/repository/index", data=b"{}") as response:
            models = json.loads(await response.read()) if response.status == 200 else []
    except ValueError:
        models = []
    if not (isinstance(models, list) and models and "name" in models[0]):
        raise UsageError(f"{url} does not list its models: name one with --model")
    return str(models[0]["name"])


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """A page as a JSON object; empty if there is none."""
    import asyncio

    import aiohttp

    try:
        async with asyncio.timeout(ANSWER_SECONDS), session.get(url) as response:
            value = json.loads(await response.read()) if response.status == 200 else {}
    except aiohttp.ClientConnectorError as error:
        raise EnvironmentProblem(f"cannot reach {url}: {error.os_error.strerror or error}; is the server up?") from None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _short(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth keeping of a server's description: plain values."""
    return {key: value for key, value in about.items() if isinstance(value, str | int | float) and value != ""}
