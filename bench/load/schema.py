"""The results of `nopad bench --serve`, as frozen dataclasses. Times are seconds, shares 0..1. Knows no server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server under load."""

    name: str
    url: str
    protocol: str
    model: str | None = None  # as requests name it
    about: Mapping[str, Any] = field(default_factory=dict)  # what the server says of itself
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The texts that requests are drawn from: a source by an equal chance, then one of its texts."""

    sources: tuple[str, ...]
    texts: int
    tokens: Mapping[str, float] | None = None  # mean, p50, p90, max of a drawn text; None without a tokenizer
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles over the right answers. From the planned arrival; in a closed loop, from the sending."""

    mean: float
    p50: float
    p90: float
    p99: float
    p999: float | None  # of fewer than 1,000 answers there is none
    most: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One endpoint under one load in one round. Counts are of the requests planned within `seconds`, after warm-up."""

    endpoint: str
    round: int
    mode: Literal["open", "closed"]
    load: float  # open: requests/s that were asked for; closed: callers
    seconds: float
    requests: int
    right: int  # answered with 200, and as they should be
    errors: Mapping[str, int]  # kind -> requests
    latency: Latency | None  # None where nothing was answered
    answered: float  # right answers/s that came in within `seconds`, whenever they were planned
    texts: float  # texts/s of them
    tokens: float | None  # tokens/s of them, where there is a tokenizer
    within: float | None  # share of all requests answered rightly within the target; None without one
    lag_p99: float  # seconds from the planned moment to the sending
    client_cpu: float  # CPU seconds of the client in a second
    valid: bool = True  # False: the client was the bottleneck
    note: str = ""

    @property
    def offered(self) -> float:
        """Requests/s that were sent."""
        return self.requests / self.seconds

    @property
    def good(self) -> float | None:
        """Requests/s answered rightly within the target."""
        return None if self.within is None else self.within * self.offered


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """One run of `nopad bench --serve`."""

    command: str
    created: str  # UTC, ISO 8601
    complete: bool  # False: the run was interrupted
    machine: Mapping[str, Any]  # the client's
    versions: Mapping[str, str]  # of the client
    settings: Mapping[str, Any]
    target_p99: float | None  # seconds
    endpoints: tuple[Endpoint, ...]
    workload: Workload
    steps: tuple[Step, ...] = ()
    kind: str = "load"
    schema_version: int = SCHEMA_VERSION
