"""Every competitor by its name: its runner, its precision, and the tasks that it is for. Opens and builds nothing.

A new competitor is a line of `COMPETITORS`; only one of a new library needs a runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nopad.runtime.errors import UsageError

REFERENCE = "hf-sdpa"
AUTO = "auto"  # a precision: the library's own choice, which the opened subject reports


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """How a competitor is opened."""

    runner: str  # a key of RUNNERS
    need: str  # a key of COMPETITOR_NEEDS
    engine: str  # transformers: its attention; sentence-transformers: its backend; else the library
    precision: str = "fp32"  # asked for
    compiler: str = ""  # a backend of torch.compile
    files: str = ""  # kind of the files that it opens (`nopad.bench.subjects.builds`); "": the checkpoint itself
    embeddings: bool | None = (
        None  # whether it is for embeddings only (True), for all but them (False), or for every task
    )
    asked: bool = False  # takes part only where it is asked for by name


def _transformers(engine: str, precision: str = "fp32", compiler: str = "") -> Competitor:
    need = compiler if compiler == "zentorch" else "transformers"
    slow = bool(compiler)  # minutes of compilation, in every process
    return Competitor(
        runner="transformers", need=need, engine=engine, precision=precision, compiler=compiler, asked=slow
    )


def _graph(runner: str, precision: str = "fp32", files: str = "optimum") -> Competitor:
    return Competitor(runner=runner, need=runner, engine=runner, precision=precision, files=files, embeddings=False)


def _sentences(backend: str, precision: str = "fp32", files: str = "") -> Competitor:
    return Competitor(
        runner="sentence-transformers",
        need=files or "sentence-transformers",
        engine=backend,
        precision=precision,
        files=files,
        embeddings=True,
    )


COMPETITORS: dict[str, Competitor] = {
    REFERENCE: _transformers("sdpa"),
    "hf-sdpa-bf16": _transformers("sdpa", "bf16"),
    "hf-eager": _transformers("eager"),
    "hf-fa2": _transformers("flash_attention_2"),
    "hf-compile": _transformers("sdpa", compiler="inductor"),
    "hf-compile-bf16": _transformers("sdpa", "bf16", "inductor"),
    "hf-zentorch": _transformers("sdpa", compiler="zentorch"),
    "hf-zentorch-bf16": _transformers("sdpa", "bf16", "zentorch"),
    "optimum": _graph("optimum"),
    "openvino": _graph("openvino"),
    "openvino-default": _graph("openvino", AUTO),
    "optimum-intel": _graph("optimum-intel", AUTO, "optimum-intel"),
    "optimum-intel-fp32": _graph("optimum-intel", "fp32", "optimum-intel"),
    "st": _sentences("torch"),
    "st-bf16": _sentences("torch", "bf16"),
    "st-onnx": _sentences("onnx", files="st-onnx"),
    "st-openvino": _sentences("openvino", AUTO, "st-openvino"),
    "fastembed": Competitor(
        runner="fastembed", need="fastembed", engine="onnxruntime", files="st-onnx", embeddings=True
    ),
}
BERT = "bert"  # BERT-base, in nopad and in these:
BERT_IN = ("hf-sdpa", "optimum", "openvino")
NAMES = (*COMPETITORS, BERT)


def check_against(names: Sequence[str], embeddings: bool = False, library_folder: bool = True) -> None:
    """Raises `UsageError` for an unknown competitor, or one that the bundle's task rules out."""
    for name in names:
        if name not in NAMES and name != "none":
            raise UsageError(f"unknown competitor {name!r}; there are {', '.join(NAMES)}, or none")
        wanted = COMPETITORS[name].embeddings if name in COMPETITORS else None
        if wanted not in (None, embeddings):
            raise UsageError(f"competitor {name} is {'only' if wanted else 'not'} for bundles of embeddings")
        if wanted and not library_folder:
            raise UsageError(f"competitor {name} needs a --reference in sentence-transformers' form: modules.json")
    if "none" in names and len(names) > 1:
        raise UsageError("--against none stands alone")


def default_against(*, embeddings: bool, library_folder: bool) -> tuple[str, ...]:
    """The competitors of a run that names none; `library_folder`: the checkpoint is sentence-transformers'."""
    return tuple(
        name
        for name, competitor in COMPETITORS.items()
        if not competitor.asked
        and competitor.embeddings in (None, embeddings)
        and (library_folder or not competitor.embeddings)
    )
