"""Files of texts answered on Ray Data: this node reads windows of rows, replicas on any node answer them, in order.

Ray runs a window again where its node was lost, so a window may be answered twice; which answers are kept is decided
here, by the number of the row that each belongs to.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from nopad.runtime.batching import windows
from nopad.runtime.bundle import open_bundle
from nopad.runtime.data.records import Row
from nopad.runtime.data.table import need
from nopad.runtime.errors import BundleError, EnvironmentProblem, NopadError
from nopad.runtime.manifest import Manifest
from nopad.runtime.offline.answers import Reading, Scoring, answers, plain
from nopad.runtime.predictor import load
from nopad.runtime.ray.cluster import Share, cluster, first_line, share

# Of one replica. A lost node costs one; a window that kills each replica that reads it ends the job.
RESTARTS = 8
RESUME = "go on with --resume"
ROWS, ANSWERS, FAILED = "rows", "answers", "failed"  # the columns of blocks, a row for each window


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each replica does."""

    bundle: str | None  # the same path on every node; None: the embedded one
    files: Mapping[str, str]  # of the bundle, with their SHA-256
    options: Mapping[str, Any]  # of `load`
    wanted: Mapping[str, Any]  # of `Model.results`


def digests(manifest: Manifest) -> dict[str, str]:
    """The SHA-256 of each file, by which two folders are seen to hold the same bundle."""
    return {name: record.sha256 for name, record in manifest.files.items()}


class Replica:
    """An actor of Ray Data that holds the opened bundle.

    What nopad itself reports travels as data: as an exception, Ray would start the replica again and again.
    """

    def __init__(self, job: Job) -> None:
        self._wanted, self._failed = job.wanted, ""
        try:
            here = {
                name: record.sha256 for name, record in open_bundle(job.bundle, verify=False).manifest.files.items()
            }
            if here != job.files:
                raise BundleError(f"{job.bundle} is not the bundle that this job began with; copy it again")
            self._model = load(job.bundle, **job.options)
        except NopadError as error:
            self._failed = self._told(error)

    def __call__(self, block: Any) -> Any:
        """A block of rows -> one of their answers."""
        arrow = need("pyarrow", "--ray")
        written: list[bytes] = []
        for rows in block.column(ROWS).to_pylist() if not self._failed else ():
            try:
                written.append(_packed(answers(self._model, _rows(rows), self._wanted)))
            except NopadError as error:
                self._failed = self._told(error)
                break
        if self._failed:
            written = [b"[]"]
        table = {ANSWERS: arrow.array(written, arrow.large_binary()), FAILED: [self._failed] * len(written)}
        return arrow.table(table)

    def _told(self, error: NopadError) -> str:
        import ray

        return f"node {ray.util.get_node_ip_address()}: {error}"


@contextmanager
def scoring_on(
    address: str,
    bundle: str | None,
    manifest: Manifest,
    reading: Reading,
    *,
    options: Mapping[str, Any],
    wanted: Mapping[str, Any],
    replicas: int | None,
    gpus: float,
) -> Iterator[Scoring]:
    """What answers `reading`'s rows on the cluster at `address`, for `answer_file`.

    `manifest` is that of `bundle`, None: the embedded one. `options` are `load`'s, their threads those of a replica;
    `wanted` are `Model.results`'s. `replicas` None: all that there is room for.
    Raises as `cluster` and `share` do.
    """
    with cluster(address) as nodes:
        taken, room = share(nodes, options["threads"], gpus)
        job = Job(
            bundle=None if bundle is None else os.path.abspath(bundle),
            files=digests(manifest),
            options={**options, "threads": taken.threads},
            wanted=wanted,
        )
        yield partial(_scored, reading=reading, job=job, share=taken, replicas=replicas or room)


def _scored(
    rows: Iterator[Row], done: int, *, reading: Reading, job: Job, share: Share, replicas: int
) -> Iterator[dict[str, Any]]:
    """The answers to `reading`'s rows after the first `done`; `rows` are these, so that each is seen to be answered.

    Raises `InputFileError`, and `EnvironmentProblem` where a replica cannot answer.
    """
    import ray

    try:
        for block in _blocks(reading, done, job, share, replicas):
            for window in block.to_pylist():
                if window[FAILED]:
                    raise EnvironmentProblem(
                        f"{window[FAILED]} (every node needs nopad and the bundle, as this one does)"
                    )
                for answer in json.loads(window[ANSWERS]):
                    row = next(rows, None)
                    if row is None or row.line != answer["line"]:
                        raise EnvironmentProblem(f"the answer to line {answer['line']} came out of its turn; {RESUME}")
                    yield answer
    except ray.exceptions.RayError as error:
        raise EnvironmentProblem(f"Ray could not go on: {first_line(error)}; {RESUME}") from None
    left = list(islice(rows, 1))
    for _ in rows:  # the reader ended here, too: perhaps at a file's damage, which is raised
        pass
    if left:
        raise EnvironmentProblem(f"line {left[0].line} and those after it were not answered; {RESUME}")


def _blocks(reading: Reading, done: int, job: Job, share: Share, replicas: int) -> Iterable[Any]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Windows(Datasource):
        """Blocks of a window of rows each, by one reader: numbers of rows, headers and columns are the whole file's."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *arguments: Any, **options: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda: _read(reading, done), unknown)]

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # A replica leaves only where all wait, as for the windows of a lost node: its replica needs a place to begin anew.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
    # Ray counts a replica that has become needless before it was there as one that could not start.
    context.max_consecutive_actor_init_deaths = replicas + RESTARTS
    context.target_max_block_size = 1  # a window is a block: Ray would put small ones together, for one replica
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its traces, of what is raised here
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # it has no other name for max_restarts yet
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return (
        ray.data.read_datasource(Windows(), num_cpus=0, override_num_blocks=1, label_selector=here)
        .map_batches(
            Replica,
            fn_constructor_args=[job],
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=replicas, initial_size=replicas),
            num_cpus=share.threads,
            num_gpus=share.gpus or None,
            max_restarts=RESTARTS,
        )
        .iter_batches(batch_size=None, batch_format="pyarrow")
    )


def _read(reading: Reading, done: int) -> Iterator[Any]:
    arrow = need("pyarrow", "--ray")
    with suppress(NopadError):  # `_scored` meets the same damage at the same row, and raises it
        for window in windows(islice(reading.rows(), done, None), lambda row: row.text):
            yield arrow.table({ROWS: arrow.array([_packed(map(_fields, window))], arrow.large_binary())})


def _fields(row: Row) -> list[Any]:
    return [row.line, row.text, row.error, {name: plain(value) for name, value in row.kept.items()}]


def _rows(packed: bytes) -> Iterator[Row]:
    for line, text, error, kept in json.loads(packed):
        yield Row(line=line, text=tuple(text) if isinstance(text, list) else text, error=error, kept=kept)


def _packed(values: Iterable[Any]) -> bytes:
    return json.dumps(list(values)).encode()  # ASCII: lone surrogates are escapes
