"""The HTTP server on Ray Serve: replicas that each hold the models, their scheduler and the same routes.

Ray Serve's proxies take the connections and choose a replica; how many replicas there are follows the tokens that wait
and run in them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nopad.runtime.bundle import open_bundle
from nopad.runtime.errors import EnvironmentProblem, NopadError, UsageError
from nopad.runtime.ray.cluster import LOCAL, Share, cluster, first_line, share
from nopad.runtime.server.app import create_app
from nopad.runtime.server.calls import Serving
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Models, bundles_by_name
from nopad.runtime.server.observed import observed
from nopad.runtime.server.run import KEEP_ALIVE_SECONDS, HeadAsGet, check
from nopad.runtime.server.settings import Job, Settings

NAME = "nopad"  # of the application and of its one deployment
QUEUED = "nopad_tokens"  # the metric by which replicas are added
DRAIN_LOOK_SECONDS = 0.05
STARTS = 3  # of a replica that cannot be started, for example without its bundle
LOOK_BACK_SECONDS = 15.0  # over which its mean is taken
# Settings of what Ray's proxies do in a server's place, or of what would change one replica alone; with their options.
NOT_ON_RAY = {
    "workers": "--workers (--replicas says how many)",
    "max_connections": "--max-connections",
    "header_seconds": "--header-seconds",
    "tls_cert": "--tls-cert",
    "tls_key": "--tls-key",
    "grpc_address": "--grpc-port",
    "metrics_port": "--metrics-port",
    "admin_keys": "--admin-key-file",
    "admin_key_file": "--admin-key-file",
    "model_dirs": "--model-dir",
    "max_memory": "--max-memory",
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many replicas there are."""

    least: int = 1
    most: int = 1
    tokens: int = 4_096  # that wait and run in a replica; more add replicas, fewer remove them
    up_seconds: float = 10.0  # for which more must be wanted, before one is added
    down_seconds: float = 300.0  # for which fewer must be wanted, before one is removed

    @classmethod
    def parse(cls, replicas: str, **others: Any) -> Scale:
        """`N` or `LEAST:MOST`. Raises `UsageError`."""
        least, colon, most = replicas.partition(":")
        try:
            scale = cls(least=int(least), most=int(most if colon else least), **others)
        except ValueError:
            scale = cls(least=0)
        if not 1 <= scale.least <= scale.most:
            raise UsageError(f"--replicas is N or LEAST:MOST, from 1, not {replicas!r}")
        return scale


class Replica:
    """A replica of Ray Serve: one process of the server, without its sockets."""

    async def __init__(self, job: Job, owner: str = "") -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._owner = owner
        self._models = Models()
        self._serving = Serving(job.settings, self._models)
        self._until_the_end = ExitStack()
        self._until_the_end.enter_context(observed(self._serving, job.host))
        await asyncio.to_thread(self._serving.open, job.bundles, **job.options)

    def __serve_build_asgi_app__(self) -> Any:
        return HeadAsGet(create_app(self._serving))

    async def owner(self) -> str:
        """Which command deployed it."""
        return self._owner

    async def drain(self) -> None:
        """Answer new requests with 503; returns once those that run are answered."""
        self._serving.draining = True
        while self._serving.running:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)

    async def check_health(self) -> None:
        """Raises where the engine fails or hangs: Ray Serve then puts another replica in the place of this one."""
        if self._serving.draining:  # it ends by itself, with what it answers
            return
        try:
            self._serving.require_healthy()
            await self._serving.forwards.require()
        except Fault as fault:
            raise RuntimeError(str(fault)) from None

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tokens that wait or run."""
        states = [served.model.scheduler.state() for served in self._models]
        return {QUEUED: float(sum(state.tokens + state.running_tokens for state in states))}

    def __del__(self) -> None:
        # Ray Serve calls it once no request is left, or its time for them is over.
        self._serving.draining = True
        self._models.close()
        self._until_the_end.close()


class ByTokens:
    """An autoscaling policy of Ray Serve: as many replicas as it takes for `tokens` in each."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be; Ray Serve keeps this within bounds, and waits before it acts."""
        counts = (context.aggregated_metrics or {}).get(QUEUED)
        if not counts:  # replicas that have only begun have not told yet
            return context.target_num_replicas, {}
        return max(1, math.ceil(sum(counts.values()) / self._tokens)), {}


def check_settings(settings: Settings) -> None:
    """Raises `UsageError` for settings that replicas of Ray Serve cannot have."""
    plain = Settings()
    wrong = [option for name, option in NOT_ON_RAY.items() if getattr(settings, name) != getattr(plain, name)]
    if wrong:
        raise UsageError(f"not with --ray, whose proxies take connections, and whose replicas are alike: {wrong[0]}")
    check(settings)


def application(job: Job, scale: Scale, taken: Share, owner: str = "") -> Any:
    """`job` as an application of Ray Serve, which tells its `owner`. Raises `UsageError` for wrong settings."""
    check_settings(job.settings)
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    count: dict[str, Any] = {"num_replicas": scale.least}
    if scale.most > scale.least:
        policy = AutoscalingPolicy(policy_function=ByTokens, policy_kwargs={"tokens": scale.tokens})
        count = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scale.least,
                max_replicas=scale.most,
                upscale_delay_s=scale.up_seconds,
                downscale_delay_s=scale.down_seconds,
                look_back_period_s=LOOK_BACK_SECONDS,
                policy=policy,
            )
        }
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": taken.threads, "num_gpus": taken.gpus},
        # More than the gate lets in, so that it can refuse them with 429; Ray's proxies would let them wait.
        max_ongoing_requests=2 * job.settings.max_concurrent,
        graceful_shutdown_timeout_s=job.settings.drain_seconds,
        max_constructor_retry_count=STARTS,
        **count,
    )
    threads = {"threads": taken.threads}
    return deployment(serve.ingress()(Replica)).bind(replace(job, options={**job.options, **threads}), owner)


def build(arguments: Mapping[str, Any]) -> Any:
    """An application for a configuration file of Ray Serve: `import_path: nopad.runtime.ray.serving:build`.

    `arguments`: `bundles` (a list of [NAME=]FOLDER), `replicas` (N or LEAST:MOST), `tokens`, `threads`, `gpus`; of
    `load` `engine`, `precision`, `token_budget`, `allow_unverified`; and any of `Settings`. Raises `UsageError`.
    """
    given = dict(arguments)
    own = {name: given.pop(name) for name in ("tokens", "up_seconds", "down_seconds") if name in given}
    scale = Scale.parse(str(given.pop("replicas", 1)), **own)
    taken = Share(threads=given.pop("threads", 1), gpus=given.pop("gpus", 0.0))
    bundles = bundles_by_name(given.pop("bundles", []))
    loading = ("engine", "precision", "token_budget", "allow_unverified", "allow_host_code")
    options = {name: given.pop(name) for name in loading if name in given}
    unknown = set(given) - {field.name for field in fields(Settings)}
    if unknown:
        raise UsageError(f"{', '.join(sorted(unknown))}: unknown; docs/ray.md lists what an application takes")
    return application(Job(settings=Settings(**given), bundles=bundles, options=options), scale, taken)


def serve_on(
    address: str,
    job: Job,
    *,
    port: int,
    scale: Scale,
    gpus: float,
    ready: Callable[[Mapping[str, str]], None],
) -> None:
    """Serve a job on the cluster at `address` until a signal, then let what runs end, and remove it.

    It stays where another command has deployed its own in its place. `ready` gets the models' tasks by name once a
    replica answers. Raises as `cluster` and `share` do, `BundleError` for a bundle that is not on this node,
    `EnvironmentProblem` for one that other nodes cannot open, and `KeyboardInterrupt` at a second signal.
    """
    check_settings(job.settings)
    if port == 0:
        raise UsageError("--port 0: not with --ray, whose proxies all listen on the port that you name")
    bundles = {name: None if path is None else Path(path).resolve() for name, path in job.bundles.items()}
    tasks = {name: open_bundle(path, verify=False).manifest.task for name, path in bundles.items()}
    with cluster(address) as nodes:
        from ray import serve
        from ray.exceptions import RayError

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        taken, _ = share(nodes, job.options.get("threads"), gpus)
        owner = uuid.uuid4().hex
        target = application(replace(job, bundles=bundles), scale, taken, owner)
        http = {"host": job.host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE_SECONDS}
        try:
            try:
                serve.start(proxy_location="EveryNode", http_options=http)
            except (RayError, TimeoutError):  # a proxy took too long; the controller, which is there, starts another
                serve.start(proxy_location="EveryNode", http_options=http)
            handle = None
            try:
                handle = serve.run(target, name=NAME, route_prefix="/").options()  # learns where the replicas are
                ready(tasks)
                while True:
                    time.sleep(1)
            except KeyboardInterrupt:  # an orderly end
                pass
            finally:
                _end(handle, owner, job.settings.drain_seconds)
                if address == LOCAL:
                    serve.shutdown()
        except NopadError:
            raise
        except (RayError, RuntimeError, OSError, ValueError) as error:
            raise EnvironmentProblem(f"Ray Serve cannot serve it: {first_line(error)}") from None


def _end(handle: Any, owner: str, seconds: float) -> None:
    """Let what runs end within `seconds`, then remove the application, unless another command has deployed its own.

    `handle`: the application's; None where it did not come to that.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    if handle is not None:
        with suppress(RayError, RayServeException, TimeoutError):  # without a replica, or with requests that go on
            owners = handle.broadcast("owner").results(timeout_s=seconds, return_exceptions=True)
            if any(isinstance(each, str) and each != owner for each in owners):
                return
            handle.broadcast("drain").results(timeout_s=seconds, return_exceptions=True)
    with suppress(TimeoutError):  # Ray stops replicas with requests in its own time, which is as long again
        serve.delete(NAME)
