"""How a server is set up: frozen records, filled by `nopad serve` or by a test. Knows nothing of the web framework.

The defaults of the command's options are those of `Settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MetricsNames = Literal["nopad", "tei", "both"]
LogFormat = Literal["text", "json"]
Order = Literal["drain", "retire", "accept", "hold"]  # what a process of the server can be told
# The variable in which prometheus_client looks for the folder of counts that processes share, when it is imported.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and permissions of a server; of each of its processes, where there are several."""

    max_batch: int = 32  # texts of one request; this and the next are TEI's
    max_body: int = 2_000_000  # bytes of one request, after decompression
    max_queue: int = 8_192  # texts of all requests that may wait; more get 429
    max_concurrent: int = 512  # requests that are answered at once; more get 429
    max_explain: int = 500_000  # tokens of all that one request for explanations runs: texts x runs x tokens
    max_connections: int = 1_000  # open ones; more wait until one is closed
    header_seconds: float = 10.0  # for a request's headers, and for the TLS handshake
    timeout: float | None = None  # seconds for a request that names no x-request-timeout-ms; None: as long as it takes
    body_seconds: float = 30.0  # that a client may take to send its body, and to read on in its answer
    drain_seconds: float = 30.0  # from SIGTERM to the end, at most
    hang_seconds: float = 300.0  # a micro-batch that takes longer hangs: not ready, and a worker is replaced
    keys: tuple[str, ...] = ()  # with no key here and no key_file, none is asked for
    key_file: Path | None = None  # more keys, one a line; read again when it changes
    tls_cert: Path | None = None  # PEM; a chain begins with the server's own
    tls_key: Path | None = None  # None: it is in tls_cert
    cors_origins: tuple[str, ...] = ()  # (): browsers of other origins are refused
    admin_keys: tuple[str, ...] = ()  # for changing models; with no key here and no admin_key_file, nobody may
    admin_key_file: Path | None = None  # more of them, one a line
    model_dirs: tuple[Path, ...] = ()  # folders below which bundles may be loaded while the server runs
    max_memory: int | None = None  # megabytes of the process, beyond which no model is loaded beside the others
    grpc_address: str | None = None  # HOST:PORT of KServe's protocol over gRPC; port 0: any free one; None: no gRPC
    compress_from: int | None = None  # answers of so many bytes are compressed for clients that accept it; None: none
    ui: bool = True  # whether the playground is there, at /ui
    workers: int = 1  # processes that answer
    metrics_names: MetricsNames = "both"  # under which names /metrics answers
    metrics_port: int | None = None  # where /metrics answers, too
    drift_window: int = 2_000  # answers of a classifier that are held against its calibration
    log_format: LogFormat = "text"
    log_level: str = "warning"  # the least that is logged
    access_log: bool = False  # a line for each POST request
    otlp_endpoint: str | None = None  # an OpenTelemetry collector that gets traces; None: nothing is traced


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process of the server is to do. It is pickled on its way to a worker."""

    settings: Settings = field(default_factory=Settings)
    bundles: Mapping[str, Path | None]  # by name; None: the embedded model
    options: Mapping[str, Any] = field(default_factory=dict)  # of `load`
    host: str = "127.0.0.1"  # of what listens beside the sockets: the port for metrics
