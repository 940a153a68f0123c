"""How a server is set up: one frozen record, filled by `nopad serve` or by a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricsNames = Literal["nopad", "tei", "both"]
LogFormat = Literal["text", "json"]


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
    metrics_names: MetricsNames = "both"  # under which names /metrics answers
    metrics_port: int | None = None  # where /metrics answers, too
    drift_window: int = 2_000  # answers of a classifier that are held against its calibration
    log_format: LogFormat = "text"
    log_level: str = "warning"  # the least that is logged
    access_log: bool = False  # a line for each POST request
    otlp_endpoint: str | None = None  # an OpenTelemetry collector that gets traces; None: nothing is traced
