"""The results of a benchmark run: the JSON schema of `nopad bench`, as frozen dataclasses. Knows no engine.

Times are seconds, memory is bytes, shares are 0..1. Everything that can be derived (percentiles, intervals, tokens/s)
is derived from the raw times (`nopad.bench.report.intervals`) when the file is written: its
readers need no code of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1
Status = Literal["ok", "missing", "out of memory", "failed", "not run"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: an engine of the bundle in one precision, or a competitor."""

    name: str  # nopad-fp32, nopad-int8, hf-sdpa, hf-sdpa-bf16, optimum, openvino, bert-nopad, bert-hf-sdpa, ...
    family: str  # nopad, transformers, optimum, openvino, sentence-transformers, ...
    model: str  # what it runs: the checkpoint's architecture (modernbert, bert)
    precision: str  # fp32, int8, fp16, bf16; auto: the library's own choice, before it was opened
    engine: str  # of nopad's registry, or the library's own attention or provider
    padded: bool  # whether it computes padding
    threads: int  # as the library itself reports them after opening
    version: str  # of its library
    status: Status = "ok"
    note: str = ""  # why it is missing or failed, and what to do
    build_seconds: float | None = None  # making its file from the checkpoint (export, build)
    load_seconds: float | None = None  # a fresh process: opening, without imports
    import_seconds: float | None = None  # a fresh process: from its start until its libraries are imported
    cold_seconds: float | None = None  # a fresh process: the first call
    loaded_bytes: int | None = None  # resident memory after load, before the first call
    file_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Texts that are answered in one pass: in one call, or in several if there are more than `batch`."""

    name: str  # sst2-64, imdb-32, 1x512, ...
    kind: Literal["ragged", "fixed"]
    texts: int
    tokens: int  # real tokens of all texts
    padded_tokens: int  # texts * longest
    longest: int
    source: str  # file or generator the texts came from
    batch: int  # texts in one call
    limits: Mapping[str, float] = field(default_factory=dict)  # precision -> tokens/s at the peak of its products
    lengths: tuple[int, ...] = ()  # real tokens of each text, in order
    flops: float | None = None  # of a pass without padding (nopad.runtime.planning.cost_model has the formula)
    labelled: bool = False  # whether accuracy is known
    sha256: str = ""  # of the texts, so that two reports are known to have the same texts


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One subject on one workload."""

    subject: str
    workload: str
    status: Status
    note: str = ""
    seconds: tuple[float, ...] = ()  # one pass each, in the order measured, warm-up left out
    rounds: tuple[int, ...] = ()  # the interleaving round of each of `seconds`: ratios pair within a round
    peak_bytes: int | None = None  # resident, of a fresh process that ran this workload
    tokens: int | None = None  # real tokens under the subject's own tokenizer, where that is not the bundle's
    computed_tokens: int | None = None  # with padding and filler
    agreement: float | None = None  # labels equal to the reference's
    logit_difference: float | None = None  # largest, to the reference; of embeddings: of their elements
    cosine: float | None = None  # of embeddings: the smallest of any text's with the reference's
    accuracy: float | None = None  # where the workload has labels


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The fastest matrix product of one precision on this machine."""

    precision: str  # fp32, bf16, int8
    library: str  # the one that reached it
    flops: float  # FLOP/s; of integers, operations


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How quiet the machine was: a fixed matrix product, timed in every round."""

    probe_seconds: tuple[float, ...] = ()
    peak_flops: float | None = None  # the best that this product reached, FLOP/s
    spread: float | None = None  # interquartile range over median of the probe
    conclusive: bool = True
    verdict: str = ""  # one line for people


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of `nopad bench`."""

    command: str
    created: str  # UTC, ISO 8601
    complete: bool  # False: the run was interrupted
    threads: int
    reference: str | None  # subject that speed, agreement and logits are compared with
    machine: Mapping[str, Any]  # cpu, cores, memory_bytes, gpu, os, isa
    versions: Mapping[str, str]
    noise: Noise
    subjects: tuple[Subject, ...]
    workloads: tuple[Workload, ...]
    cells: tuple[Cell, ...]
    model: Mapping[str, Any] = field(default_factory=dict)  # the bundle: name, task, architecture, digest, checkpoint
    settings: Mapping[str, Any] = field(default_factory=dict)  # rounds, seed, limits
    peaks: tuple[Peak, ...] = ()  # at most one for each precision
    forecasts: tuple[Mapping[str, Any], ...] = ()  # `nopad.bench.forecast.forecast`, always labelled a forecast
    schema_version: int = SCHEMA_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys of a newer nopad, kept
