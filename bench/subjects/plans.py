"""Who takes part: engines of the bundle, and competitors by name. Opens and builds nothing.

A subject is whatever is measured; a competitor is a subject that is not nopad's on the bundle.
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
from nopad.bench.subjects.builds import bert_job, nopad_job, optimum_job, place
from nopad.bench.subjects.spec import Spec
from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.gpus import gpu_at_hand
from nopad.runtime.engines.selection import engine_order
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Artifact, Manifest

REFERENCE = "hf-sdpa"
BERT_REFERENCE = "bert-hf-sdpa"
Builds = tuple[tuple[Path, Mapping[str, Any]], ...]  # folders in the cache, and the jobs that make them
# name -> runner, and for transformers its attention
COMPETITORS: dict[str, tuple[str, str]] = {
    "hf-sdpa": ("transformers", "sdpa"),
    "hf-eager": ("transformers", "eager"),
    "hf-fa2": ("transformers", "flash_attention_2"),
    "optimum": ("optimum", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "bert": ("", ""),  # BERT-base in these:
}
BERT_IN = ("nopad", "hf-sdpa", "optimum", "openvino")
DEFAULT_AGAINST = tuple(name for name in COMPETITORS if name != "bert")
BERT_POSITIONS = 512


@dataclass(frozen=True, kw_only=True)
class SubjectPlan:
    """A subject before it is opened: its record, and how it is opened, made and judged."""

    subject: Subject
    spec: Spec
    builds: Builds = ()
    timed_build: Mapping[str, Any] | None = None  # made only to time it
    yardstick: str | None = None  # subject whose answers its own must equal; None: it is a yardstick itself
    longest: int | None = None  # tokens it can take
    random_weights: bool = False  # its accuracy means nothing

    @property
    def name(self) -> str:
        """The subject's."""
        return self.subject.name


def check_against(names: Sequence[str]) -> None:
    """Raises `UsageError` for an unknown competitor."""
    for name in names:
        if name not in COMPETITORS and name != "none":
            raise UsageError(f"unknown competitor {name!r}; there are {', '.join(COMPETITORS)}, or none")
    if "none" in names and len(names) > 1:
        raise UsageError("--against none stands alone")


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
    """The bundle's files, each on the first engine for it on this machine, or on each of `engines`.

    With `timed_from`, a checkpoint, the export of fp32 graphs is timed. Raises `UsageError` where nothing is left.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise UsageError(f"unknown engine {engine!r}; this nopad has {', '.join(ENGINES)}")
    order = engines or engine_order(gpu_at_hand())
    chosen: list[tuple[Artifact, str]] = []
    for artifact in bundle.manifest.artifacts:
        fitting = [engine for engine in order if artifact.target in ENGINES[engine].targets]
        if precisions and artifact.precision not in precisions:
            continue
        chosen += [(artifact, engine) for engine in (fitting if engines else fitting[:1])]
    if not chosen:
        holds = ", ".join(f"{artifact.target} {artifact.precision}" for artifact in bundle.manifest.artifacts)
        raise UsageError(f"{bundle.path} has nothing of that engine and precision; it holds {holds}")
    plans = []
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
        if timed_from is not None and artifact.precision == "fp32" and artifact.target in ("onnx", "cpu"):
            timed = nopad_job(timed_from, bundle.manifest.task, artifact.target, threads)
        # With the weights beside it.
        size = sum(record.bytes for name, record in bundle.manifest.files.items() if name.startswith(artifact.file))
        subject = _subject(spec, "nopad", padded=artifact.layout == "padded", file_bytes=size)
        plans.append(SubjectPlan(subject=subject, spec=spec, timed_build=timed, yardstick=yardstick))
    return plans


def _names(chosen: Sequence[tuple[Artifact, str]]) -> list[str]:
    """nopad-PRECISION; where several have that, with the file's target; where several still, with the engine."""
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
    manifest, plans = bundle.manifest, []
    model = str(raw_config.get("model_type"))
    for name in names:
        runner, engine = COMPETITORS[name]
        if runner:
            plans.append(_plan_competitor(name, runner, engine, checkpoint, manifest, cache, threads, model))
    return plans


def plan_bert(
    checkpoint: Path | None, vocabulary: Path | None, bundle: Bundle, cache: Path, *, threads: int, target: str
) -> list[SubjectPlan]:
    """BERT-base in nopad and in the competitors; of random weights where no checkpoint is given."""
    manifest = bundle.manifest
    first: Builds = ()
    if checkpoint is None:
        source = vocabulary or bundle.file(manifest.tokenizer).parent
        job = bert_job(source, manifest.task, max(len(manifest.labels), 1), threads)
        checkpoint = place(cache, job)
        first = ((checkpoint, job),)
        longest = BERT_POSITIONS
    else:
        raw = json.loads((checkpoint / "config.json").read_bytes())
        longest = int(raw.get("max_position_embeddings") or BERT_POSITIONS)
    longest = min(longest, manifest.max_length)
    manifest = dataclasses.replace(manifest, max_length=longest)
    plans = []
    for name in BERT_IN:
        if name == "nopad":
            job = nopad_job(checkpoint, manifest.task, target, threads)
            folder = _built_place(cache, job, first)
            spec = Spec(
                name="bert-nopad",
                runner="nopad",
                path=str(folder),
                threads=threads,
                engine="onnx-cpu",
                target=target,
                allow_unverified=True,  # what it answers is compared here
                own_tokenizer=True,
                **{**_common(manifest), "model": "bert"},
            )
            subject = _subject(spec, "nopad", padded=False)
            plan = SubjectPlan(subject=subject, spec=spec, builds=((folder, job),))
        else:
            runner, engine = COMPETITORS[name]
            plan = _plan_competitor(f"bert-{name}", runner, engine, checkpoint, manifest, cache, threads, "bert", first)
            plan = dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, own_tokenizer=True))
        yardstick = None if plan.name == BERT_REFERENCE else BERT_REFERENCE
        plans.append(
            dataclasses.replace(
                plan,
                builds=(*first, *plan.builds),
                yardstick=yardstick,
                longest=longest,
                random_weights=bool(first),
            )
        )
    return plans


def _plan_competitor(
    name: str,
    runner: str,
    engine: str,
    checkpoint: Path,
    manifest: Manifest,
    cache: Path,
    threads: int,
    model: str,
    first: Builds = (),
) -> SubjectPlan:
    builds: Builds = ()
    path, file = checkpoint, None
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) or None
    if runner != "transformers":
        job = optimum_job(checkpoint, manifest.task, threads)
        path, file, size = _built_place(cache, job, first), "model.onnx", None
        builds = ((path, job),)
    spec = Spec(
        name=name,
        runner=runner,
        path=str(path),
        threads=threads,
        engine=engine,
        file=file,
        **{**_common(manifest), "model": model},
    )
    subject = _subject(spec, runner, padded=engine != "flash_attention_2", file_bytes=size)
    yardstick = None if name == REFERENCE else REFERENCE
    return SubjectPlan(subject=subject, spec=spec, builds=builds, yardstick=yardstick)


def _built_place(cache: Path, job: Mapping[str, Any], first: Builds) -> Path:
    """The place of what is made from a checkpoint that may itself have to be made: named after that one's place."""
    return cache / f"{job['kind']}-of-{first[0][0].name}" if first else place(cache, job)


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
        engine=spec.engine,
        padded=padded,
        threads=spec.threads,
        version="",
        status="not run",
        file_bytes=file_bytes,
    )
