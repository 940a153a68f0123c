"""Who takes part: engines of the bundle, and competitors by name. Opens and builds nothing.

A subject is anything that is measured; a competitor is any subject but nopad on the bundle.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.bench.schema import Subject
from nopad.bench.subjects.builds import bert_job, library_job, nopad_job, place
from nopad.bench.subjects.competitors import BERT, BERT_IN, COMPETITORS, REFERENCE
from nopad.bench.subjects.spec import Spec
from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.gpus import gpu_at_hand
from nopad.runtime.engines.selection import engine_order
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Artifact, Manifest

BERT_REFERENCE = f"bert-{REFERENCE}"
BERT_POSITIONS = 512
Builds = tuple[tuple[Path, Mapping[str, Any]], ...]  # folders in the cache, and the jobs that make them
# Targets whose export is timed: those that are written anywhere, from the checkpoint alone.
_TIMED = ("cpu", "onnx", "openvino")
# The file that the graph's runner opens, by the kind of its folder.
_GRAPHS = {"optimum": "model.onnx", "optimum-intel": "openvino_model.xml", "st-onnx": "onnx/model.onnx"}


@dataclass(frozen=True, kw_only=True)
class SubjectPlan:
    """A subject before it is opened: its record, and how it is opened, made and judged."""

    subject: Subject
    spec: Spec
    builds: Builds = ()
    timed_build: Mapping[str, Any] | None = None  # done only to time it
    yardstick: str | None = None  # subject whose answers its own must equal; None: it is a yardstick itself
    longest: int | None = None  # tokens it can take
    random_weights: bool = False  # its accuracy means nothing

    @property
    def name(self) -> str:
        """Name of the subject."""
        return self.subject.name


def plan_engines(
    bundle: Bundle,
    *,
    threads: int,
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    allow_unverified: bool = False,
    timed_from: Path | None = None,
    yardstick: str | None = None,
) -> list[SubjectPlan]:
    """The bundle's files, each on every engine that opens it on this machine, or on those of `engines`.

    With `timed_from`, a checkpoint, the export of fp32 graphs is timed. Raises `UsageError` where nothing is left.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise UsageError(f"unknown engine {engine!r}; this nopad has {', '.join(ENGINES)}")
    gpu = gpu_at_hand() if not engines else None
    chosen = [
        (artifact, engine)
        for artifact in bundle.manifest.artifacts
        if not precisions or artifact.precision in precisions
        for engine in engines or _engines_here(artifact, gpu, allow_unverified)
        if artifact.target in ENGINES[engine].targets
    ]
    if not chosen:
        holds = ", ".join(f"{artifact.target} {artifact.precision}" for artifact in bundle.manifest.artifacts)
        raise UsageError(f"{bundle.path} has nothing for that engine and precision; it holds {holds}")
    plans: list[SubjectPlan] = []
    for (artifact, engine), name in zip(chosen, _names(chosen), strict=True):
        spec = Spec(
            name=name,
            runner="nopad",
            path=str(bundle.path),
            threads=threads,
            precision=artifact.precision,
            engine=engine,
            file=artifact.file,
            target=artifact.target,
            allow_unverified=allow_unverified,
            **_common(bundle.manifest),
        )
        timed = None
        first = all(plan.spec.file != artifact.file for plan in plans)
        if timed_from is not None and first and artifact.precision == "fp32" and artifact.target in _TIMED:
            timed = nopad_job(timed_from, bundle.manifest.task, artifact.target, threads)
        # Of the graph and the weights beside it.
        size = sum(record.bytes for name, record in bundle.manifest.files.items() if name.startswith(artifact.file))
        subject = _subject(spec, "nopad", padded=artifact.layout == "padded", file_bytes=size)
        plans.append(SubjectPlan(subject=subject, spec=spec, timed_build=timed, yardstick=yardstick))
    return plans


def _engines_here(artifact: Artifact, gpu: str | None, allow_unverified: bool) -> list[str]:
    """Engines for a file on this machine: without a `gpu` (its compute capability) all that were gated, else the first.

    Where none was gated, the first stands for the reason why it does not open.
    """
    fitting = [engine for engine in engine_order(gpu) if artifact.target in ENGINES[engine].targets]
    open_here = [engine for engine in fitting if allow_unverified or artifact.passed_on(engine)]
    return open_here if gpu is None and open_here else fitting[:1]


def _names(chosen: Sequence[tuple[Artifact, str]]) -> list[str]:
    """nopad-PRECISION; where that repeats, with the target, then the engine, then engine and file."""
    levels = [
        [f"nopad-{artifact.precision}" for artifact, _ in chosen],
        [f"nopad-{artifact.precision}-{artifact.target}" for artifact, _ in chosen],
        [f"nopad-{artifact.precision}-{engine}" for artifact, engine in chosen],
        [f"nopad-{artifact.precision}-{engine}-{Path(artifact.file).stem}" for artifact, engine in chosen],
    ]
    counts = [Counter(level) for level in levels]
    return [
        next((level[i] for level, count in zip(levels, counts, strict=True) if count[level[i]] == 1), levels[-1][i])
        for i in range(len(chosen))
    ]


def plan_competitors(
    names: Sequence[str], checkpoint: Path, bundle: Bundle, cache: Path, *, threads: int, raw_config: Mapping[str, Any]
) -> list[SubjectPlan]:
    """The named competitors (but BERT) on the checkpoint that the bundle was made from."""
    model = str(raw_config.get("model_type"))
    source = _Source(checkpoint=checkpoint, model=model, manifest=bundle.manifest, cache=cache, threads=threads)
    return [source.competitor(name) for name in names if name != BERT]


def plan_bert(
    checkpoint: Path | None, vocabulary: Path | None, bundle: Bundle, cache: Path, *, threads: int, target: str
) -> list[SubjectPlan]:
    """BERT-base in nopad and in the competitors; with random weights without `checkpoint`."""
    manifest = bundle.manifest
    first: Builds = ()
    if checkpoint is None:
        tokenizer = vocabulary or bundle.file(manifest.tokenizer).parent
        job = bert_job(tokenizer, manifest.task, max(len(manifest.labels), 1), threads)
        checkpoint = place(cache, job)
        first = ((checkpoint, job),)
        longest = BERT_POSITIONS
    else:
        raw = json.loads((checkpoint / "config.json").read_bytes())
        longest = int(raw.get("max_position_embeddings") or BERT_POSITIONS)
    manifest = dataclasses.replace(manifest, max_length=min(longest, manifest.max_length))
    source = _Source(
        checkpoint=checkpoint, model="bert", manifest=manifest, cache=cache, threads=threads, bert=True, builds=first
    )
    return [source.nopad(target), *(source.competitor(name) for name in BERT_IN)]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A checkpoint that competitors run; task and limits are those of `manifest`."""

    checkpoint: Path
    model: str  # its model_type
    manifest: Manifest
    cache: Path
    threads: int
    bert: bool = False  # BERT-base beside the bundle's model
    builds: Builds = ()  # that make the checkpoint itself

    def competitor(self, name: str) -> SubjectPlan:
        """One of `COMPETITORS`."""
        about = COMPETITORS[name]
        folder, file = self.checkpoint, None
        builds: Builds = ()
        if about.files:
            job = library_job(about.files, self.checkpoint, self.manifest.task, self.threads)
            folder, file = self._place(job), _GRAPHS.get(about.files)
            builds = ((folder, job),)
        size = sum(file.stat().st_size for file in self.checkpoint.glob("*.safetensors")) or None
        own = {field: getattr(about, field) for field in ("engine", "precision", "compiler", "need")}
        spec = self._spec(name, about.runner, path=str(folder), file=file, **own)
        padded = about.engine != "flash_attention_2"
        return self._plan(spec, about.runner, padded=padded, file_bytes=None if builds else size, builds=builds)

    def nopad(self, target: str) -> SubjectPlan:
        """The bundle that nopad exports of it."""
        job = nopad_job(self.checkpoint, self.manifest.task, target, self.threads)
        folder = self._place(job)
        # Its answers are compared here, so it needs no verdict.
        own = {"engine": "onnx-cpu", "target": target, "allow_unverified": True}
        return self._plan(self._spec("nopad", "nopad", path=str(folder), **own), "nopad", builds=((folder, job),))

    def _place(self, job: Mapping[str, Any]) -> Path:
        """Cache folder of files made from the checkpoint; named after its folder where it has to be made first."""
        return self.cache / f"{job['kind']}-of-{self.checkpoint.name}" if self.builds else place(self.cache, job)

    def _spec(self, name: str, runner: str, **fields: Any) -> Spec:
        name = f"bert-{name}" if self.bert else name
        common = {**_common(self.manifest), "model": self.model, "threads": self.threads, "own_tokenizer": self.bert}
        return Spec(name=name, runner=runner, **common, **fields)

    def _plan(
        self, spec: Spec, family: str, *, padded: bool = False, file_bytes: int | None = None, builds: Builds = ()
    ) -> SubjectPlan:
        reference = BERT_REFERENCE if self.bert else REFERENCE
        return SubjectPlan(
            subject=_subject(spec, family, padded=padded, file_bytes=file_bytes),
            spec=spec,
            builds=(*self.builds, *builds),
            yardstick=None if spec.name == reference else reference,
            longest=self.manifest.max_length if self.bert else None,
            random_weights=bool(self.builds),
        )


def _common(manifest: Manifest) -> dict[str, Any]:
    return {
        "task": manifest.task,
        "max_length": manifest.max_length,
        "model": str(manifest.architecture.get("model_type", "")),
        "pooling": manifest.pooling,
        "normalize": manifest.normalize,
    }


def _subject(spec: Spec, family: str, *, padded: bool, file_bytes: int | None = None) -> Subject:
    return Subject(
        name=spec.name,
        family=family,
        model=spec.model,
        precision=spec.precision,
        engine=" ".join(filter(None, (spec.engine, spec.compiler))),
        padded=padded,
        threads=spec.threads,
        version="",
        status="not run",
        file_bytes=file_bytes,
    )
