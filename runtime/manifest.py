"""`manifest.json`, the description of a bundle: parsing and writing. `nopad.runtime.bundle` handles the folder.

The file contains a SHA-256 of its own content (`manifest_sha256`), so that a changed label is noticed as surely as a
changed weight. Keys that this version does not know are preserved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

from nopad.model.config import Pooling, half_window_of
from nopad.model.head import PROBLEM_TYPES, SCORE_ACTIVATIONS, TASKS, Head, ProblemType, Task
from nopad.runtime.errors import BundleError, IntegrityError, NewerVersionError
from nopad.runtime.probes import Probe, probe_from_json
from nopad.runtime.profiles import ShapeProfile, profile_from_json

FORMAT_VERSION = 2  # the newest that is read
# What is written: 2 for a calibrated bundle, so that a nopad that knows no calibration refuses it by name, where it
# would ignore the key and answer with other scores and labels; 1 for all others, which any nopad reads.
_PLAIN, _CALIBRATED = 1, 2
Layout = Literal["packed", "padded"]
Verdict = Literal["verified", "unverified"]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and digest of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file that engines run: a graph, an engine or weights."""

    file: str
    target: str  # cpu, onnx, torch, tensorrt, tensorrt-rtx
    precision: str  # fp32, fp16, bf16, int8
    layout: Layout  # packed stream, or padded matrix (exporters padded and optimum)
    inputs: Mapping[str, list[str]]  # name -> symbolic shape
    # Packed: [sequences, n], per token [tokens, n]; padded: [batch, n], per token [batch, sequence, n]. n is a number.
    outputs: Mapping[str, list[str]]
    token_multiple: int = 1  # a packed stream's length is a multiple of this
    opset: int | None = None
    exporter: str = "nopad"
    sm: str | None = None  # the GPU an engine was built for: sm75
    profiles: tuple[ShapeProfile, ...] = ()  # of an engine; () for any shape
    built_with: str | None = None  # an engine's library and version: "tensorrt_rtx 1.7.1.116"
    version_compatible: bool = False  # a TensorRT engine that later versions can run; it carries native code
    platform: str | None = None  # of an engine, operating system and processor: "Linux-x86_64"
    parity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # engine -> its ParityReport as JSON
    quantized: Mapping[str, Any] | None = None  # int8: the calibration, and the layers that were not quantized

    def passed_on(self, engine: str) -> bool:
        """Whether the parity gate has passed on this engine (each engine has its own kernels)."""
        return self.parity.get(engine, {}).get("passed") is True

    @property
    def verdict(self) -> Verdict:
        """`verified` when the parity gate has passed on some engine, and failed on none."""
        return "verified" if self.parity and all(map(self.passed_on, self.parity)) else "unverified"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `nopad calibrate` has set of the bundle's `Head`, and how it was found."""

    temperature: float
    thresholds: tuple[float, ...] | None = None
    abstain_below: float | None = None
    found: Mapping[str, Any] = field(default_factory=dict)  # data, rows, figures before and after, engine, date
    # How the calibrated bundle answered those texts, for `nopad.runtime.drift`; None of older calibrations.
    baseline: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a bundle."""

    task: Task
    max_length: int  # tokens
    artifacts: tuple[Artifact, ...]
    files: Mapping[str, FileRecord]  # every file except the manifest
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    pooling: Pooling | None = None  # several modes are joined with "+"
    normalize: bool = False
    include_prompt: bool = True  # whether a prompt's tokens are pooled
    truncate_dim: int | None = None  # embeddings are cut to this many elements
    prompts: Mapping[str, str] = field(default_factory=dict)  # name -> words that are put before a text
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None  # for comparing embeddings: cosine, dot, euclidean, manhattan
    activation: str | None = None  # of a cross-encoder's scores: one of SCORE_ACTIVATIONS
    overrides: Mapping[str, Any] = field(default_factory=dict)  # pooling, normalize, max_length, as export options
    tokenizer: str = "tokenizer.json"
    pad_token_id: int = 0
    mask_token: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    created: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    calibration: Calibration | None = None
    probes: tuple[Probe, ...] = ()  # texts with the reference's answers; () in bundles of older versions
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys that this version does not know

    @cached_property
    def head(self) -> Head:
        """What the logits mean, by the bundle's calibration if it has one."""
        calibration = self.calibration or Calibration(temperature=1.0)
        return Head(
            task=self.task,
            labels=self.labels,
            problem_type=self.problem_type,
            activation=self.activation,
            temperature=calibration.temperature,
            thresholds=calibration.thresholds,
            abstain_below=calibration.abstain_below,
        )

    @property
    def format_version(self) -> int:
        """The version of the format that this manifest is written in."""
        return _PLAIN if self.calibration is None else _CALIBRATED

    @property
    def verdict(self) -> Verdict:
        """`verified` when the gate has passed on some artifact, and failed on none.

        An engine that cannot run where it was built is not gated there; `load` refuses it until it has been.
        """
        gated = [artifact for artifact in self.artifacts if artifact.parity]
        return "verified" if gated and all(artifact.verdict == "verified" for artifact in gated) else "unverified"

    @property
    def half_window(self) -> int | None:
        """Tokens that a local layer attends to on each side; None if the architecture has no window."""
        return half_window_of(self.architecture)


def to_json(manifest: Manifest) -> bytes:
    """Serialize the manifest, with its digest."""
    raw = dataclasses.asdict(manifest)
    extra = raw.pop("extra")
    if raw["calibration"] is None:
        del raw["calibration"]
    if not raw["probes"]:
        del raw["probes"]
    raw["format_version"] = manifest.format_version
    raw.update(extra)
    raw["verdict"] = manifest.verdict
    raw["manifest_sha256"] = _digest(raw)
    return (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def from_json(data: bytes, name: str) -> Manifest:
    """Parse a manifest file; `name` is its path, for messages.

    Raises `NewerVersionError`, `IntegrityError` (the digest does not match) or `BundleError`.
    """
    try:
        raw = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also invalid UTF-8, numbers with too many digits, nesting too deep
        raise IntegrityError(f"{name} is damaged ({error}); export the bundle again") from None
    if not isinstance(raw, dict) or not _is(raw.get("format_version"), int):
        raise BundleError(f"{name} is not a nopad manifest: it has no format_version")
    version = raw["format_version"]
    if version < 1:
        raise BundleError(f"{name} has format version {version}, which never existed; export the bundle again")
    if version > FORMAT_VERSION:
        raise NewerVersionError(
            f"{name} has format version {version}, this nopad reads up to {FORMAT_VERSION}: "
            f"upgrade nopad (the bundle was made by nopad {_created_by(raw)})"
        )
    digest = raw.pop("manifest_sha256", None)
    try:
        intact = digest == _digest(raw)
    except (UnicodeEncodeError, RecursionError):  # a lone surrogate, which nopad never writes
        intact = False
    if not intact:
        raise IntegrityError(
            f"{name} does not match its own manifest_sha256: it was changed or damaged; export the bundle again"
        )
    for derived in ("verdict", "format_version"):
        raw.pop(derived, None)
    try:
        return _parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{name} is incomplete or malformed ({type(error).__name__}: {error})") from None


def _created_by(raw: Mapping[str, Any]) -> str:
    created = raw.get("created")
    return str(created.get("nopad", "of unknown version")) if isinstance(created, dict) else "of unknown version"


def _digest(raw: Mapping[str, Any]) -> str:
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# JSON types of each field; null only where the record allows None.
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("file", "target", "precision", "layout", "exporter", "tokenizer", "sha256"), str),
    **dict.fromkeys(("max_length", "pad_token_id", "token_multiple", "bytes"), int),
    **dict.fromkeys(("artifacts", "labels", "probes"), list),
    **dict.fromkeys(("inputs", "outputs", "files", "architecture", "source", "created", "parity", "found"), dict),
    **dict.fromkeys(("prompts", "overrides"), dict),
    **dict.fromkeys(("default_prompt_name", "similarity_fn_name", "activation"), (str, type(None))),
    **dict.fromkeys(("evaluation", "quantized", "calibration", "baseline"), (dict, type(None))),
    "temperature": (int, float),
    "abstain_below": (int, float, type(None)),
    "thresholds": (list, type(None)),
    **dict.fromkeys(("opset", "truncate_dim"), (int, type(None))),
    **dict.fromkeys(("problem_type", "pooling", "mask_token", "sm", "built_with", "platform"), (str, type(None))),
    **dict.fromkeys(("normalize", "include_prompt", "version_compatible"), bool),
}


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_types(record: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in record.items():
        if name in _KINDS and not _is(value, _KINDS[name]):
            raise TypeError(f"{name} is {value!r}")
    return record


def _parse(raw: dict[str, Any]) -> Manifest:
    known = {f.name for f in dataclasses.fields(Manifest)} - {"extra"}
    extra = {key: value for key, value in raw.items() if key not in known}
    fields = {key: value for key, value in _check_types(raw).items() if key in known}
    if fields["task"] not in TASKS:
        raise BundleError(f"the manifest's task {fields['task']!r} is unknown; this nopad serves {', '.join(TASKS)}")
    if fields.get("problem_type") not in (None, *PROBLEM_TYPES):
        raise BundleError(f"the manifest's problem_type {fields['problem_type']!r} is unknown")
    artifact_fields = {f.name for f in dataclasses.fields(Artifact)}
    fields["artifacts"] = tuple(
        Artifact(
            **{key: value for key, value in _check_types(artifact).items() if key in artifact_fields - {"profiles"}},
            profiles=tuple(map(profile_from_json, artifact.get("profiles") or ())),
        )
        for artifact in fields["artifacts"]
    )
    fields["files"] = {name: FileRecord(**_check_types(record)) for name, record in fields["files"].items()}
    for name in [*fields["files"], *(artifact.file for artifact in fields["artifacts"]), fields["tokenizer"]]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or set("\\\0") & set(name) or name not in fields["files"]:
            raise BundleError(f"the manifest names the file {name!r}, which is not a listed file inside the bundle")
    for artifact in fields["artifacts"]:
        if artifact.layout not in get_args(Layout):
            raise BundleError(f"the manifest's artifact {artifact.file} has unknown layout {artifact.layout!r}")
        if artifact.token_multiple < 1:
            raise ValueError(f"token_multiple is {artifact.token_multiple}")
        if not all(isinstance(report, dict) for report in artifact.parity.values()):
            raise TypeError("parity is not engine -> report")
    labels = fields["labels"] = tuple(fields["labels"])
    if len(set(labels)) != len(labels) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"the labels are not distinct names: {', '.join(map(str, labels))}")
    if not labels and fields["task"] in ("text-classification", "token-classification", "rerank"):
        raise ValueError("it has no labels")
    prompts, default = fields.get("prompts", {}), fields.get("default_prompt_name")
    if not all(isinstance(prompt, str) for prompt in prompts.values()) or default not in (None, *prompts):
        raise ValueError(f"the prompts are not name -> text, or the default {default!r} is none of them")
    if fields.get("activation") not in (None, *SCORE_ACTIVATIONS):
        raise BundleError(f"the manifest's activation {fields['activation']!r} is unknown to this nopad")
    if fields["max_length"] < 1:
        raise ValueError(f"max_length is {fields['max_length']}")
    if (calibration := fields.get("calibration")) is not None:
        fields["calibration"] = _calibration(calibration)
    fields["probes"] = tuple(map(probe_from_json, fields.get("probes", ())))
    manifest = Manifest(**fields, extra=cast(Mapping[str, Any], extra))
    _ = manifest.head  # raises `ValueError` for a calibration that cannot be
    return manifest


def _calibration(raw: Mapping[str, Any]) -> Calibration:
    names = {f.name for f in dataclasses.fields(Calibration)}
    known = {key: value for key, value in _check_types(raw).items() if key in names}
    thresholds = known.get("thresholds")
    return Calibration(**{**known, "thresholds": None if thresholds is None else tuple(thresholds)})
