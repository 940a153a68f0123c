"""How a server is set up: one frozen record, filled by `nopad serve` or by a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and permissions of a server. The defaults are those of TEI."""

    max_batch: int = 32  # texts of one request
    max_body: int = 2_000_000  # bytes of one request, after decompression
    max_queue: int = 8_192  # texts of all requests that may wait; more get 429
    max_concurrent: int = 512  # requests that are answered at once; more get 429
    timeout: float | None = None  # seconds for a request that names no x-request-timeout-ms; None: as long as it takes
    drain_seconds: float = 30.0  # from SIGTERM to the end, at most
    keys: tuple[str, ...] = ()  # (): no key is asked for
    cors_origins: tuple[str, ...] = ()  # (): browsers of other origins are refused
    workers: int = 1  # processes that answer
    admin_keys: tuple[str, ...] = ()  # for changing models; with no key here and no admin_key_file, nobody may
    admin_key_file: Path | None = None  # more of them, one a line
    model_dirs: tuple[Path, ...] = ()  # folders below which bundles may be loaded while the server runs
    max_memory: int | None = None  # megabytes of the process, beyond which no model is loaded beside the others
