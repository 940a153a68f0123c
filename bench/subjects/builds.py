"""Files that a comparison needs first: graphs by other libraries, a random BERT, nopad's own export to time it.

Each is a job for a child process (`nopad.bench.measure.child`), so that neither its memory nor its imports disturb
a measurement. The files are cached under the digests of their sources.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nopad.model.packages import install_hint, version_of
from nopad.runtime.atomic import sha256_of, write_file

SEED = 3  # of BERT's random weights: their values change no time
# Kinds of files that other libraries export -> the package that must be there beside the library itself.
EXPORTERS = {
    "optimum": "optimum-onnx",
    "st-onnx": "optimum-onnx",
    "optimum-intel": "optimum-intel",
    "st-openvino": "optimum-intel",
}
_VERSIONS = ("nopad", "torch", "transformers", "optimum-onnx", "optimum-intel", "openvino", "sentence-transformers")
_SOURCES = ("*.safetensors", "config.json", "tokenizer.json", "vocab.txt", "modules.json", "*/config.json")


@contextlib.contextmanager
def cache_beside(output: Path | None) -> Iterator[Path]:
    """The cache of these files: beside the output; without one, a temporary folder."""
    if output is not None:
        yield output.absolute().parent / "nopad-bench-cache"
        return
    with tempfile.TemporaryDirectory(prefix="nopad-bench-") as scratch:
        yield Path(scratch)


def library_job(kind: str, checkpoint: Path, task: str, threads: int) -> dict[str, Any]:
    """The job that makes the files of another library: a key of `EXPORTERS`."""
    return {"job": "build", "kind": kind, "checkpoint": str(checkpoint), "task": task, "threads": threads}


def nopad_job(checkpoint: Path, task: str, target: str, threads: int) -> dict[str, Any]:
    """The job that makes nopad's own bundle, without the parity gate."""
    job = {"job": "build", "kind": "nopad", "checkpoint": str(checkpoint), "task": task, "threads": threads}
    return {**job, "target": target}


def bert_job(tokenizer: Path, task: str, labels: int, threads: int) -> dict[str, Any]:
    """The job that makes a BERT-base of random weights for a vocabulary (`vocab.txt`, or a folder with a tokenizer)."""
    job = {"job": "build", "kind": "bert", "checkpoint": str(tokenizer), "task": task, "threads": threads}
    return {**job, "labels": labels}


def place(cache: Path, job: Mapping[str, Any]) -> Path:
    """The folder of a job in the cache, made or not."""
    source = Path(job["checkpoint"])
    files = [source] if source.is_file() else sorted(file for name in _SOURCES for file in source.glob(name))
    key = {
        "job": {field: value for field, value in job.items() if field not in ("checkpoint", "threads", "folder")},
        "files": {file.name if file == source else str(file.relative_to(source)): sha256_of(file) for file in files},
        "versions": {name: version_of(name) for name in _VERSIONS},
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache / f"{job['kind']}-{digest[:16]}"


def unavailable(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answer to a job that lacks a package, without starting a process; None if the job may succeed."""
    package = EXPORTERS.get(job["kind"])
    if package is None or version_of(package) is not None:
        return None
    note = (
        f"{package}, which exports its graph, is not installed; it pins transformers below 4.58, so give it an "
        f"environment of its own: {install_hint('bench')}"
    )
    return {"status": "missing", "note": note}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The job's answer recorded beside a folder of the cache; None if the folder must be made."""
    try:
        answer: dict[str, Any] = json.loads(_record_path(folder).read_bytes())
    except (OSError, ValueError):
        return None
    return answer if folder.is_dir() else None


def write_record(folder: Path, answer: Mapping[str, Any]) -> None:
    """Record the answer of the job that has made `folder`."""
    write_file(_record_path(folder), json.dumps(dict(answer)).encode())


def _record_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def build(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job, in the child, into its `folder`. Returns `build_seconds` (without imports) and `file_bytes`."""
    import torch

    torch.set_num_threads(job["threads"])
    source, kind = Path(job["checkpoint"]), job["kind"]
    if kind == "bert":
        return _random_bert(source, Path(job["folder"]), job["task"], job["labels"])
    if kind in ("optimum-intel", "st-onnx", "st-openvino"):
        from nopad.bench.subjects import exports

        return exports.export(kind, source, Path(job["folder"]), job["task"])
    from nopad.export.bundle import ExportOptions, export_checkpoint

    if kind == "optimum":
        with contextlib.suppress(ImportError):  # the export says what to do about that
            importlib.import_module("optimum.exporters.onnx")  # its import is not build time
    result = export_checkpoint(
        source,
        Path(job["folder"]),
        ExportOptions(
            target=job.get("target", "onnx"),
            exporter="optimum" if kind == "optimum" else "nopad",
            task=job["task"],
            parity=False,
            threads=job["threads"],
        ),
    )
    return {"build_seconds": result.export_seconds, "file_bytes": result.bytes}


def _random_bert(source: Path, folder: Path, task: str, labels: int) -> dict[str, Any]:
    import torch
    import transformers

    from nopad.export.reference.transformers import CLASSES

    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        vocabulary, padding = _copy_tokenizer(source, scratch)
        torch.manual_seed(SEED)
        config = transformers.BertConfig(vocab_size=vocabulary, pad_token_id=padding, num_labels=labels)
        model = getattr(transformers, CLASSES[task]).from_config(config)
        transformers.logging.disable_progress_bar()
        model.save_pretrained(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"build_seconds": 0.0, "file_bytes": (folder / "model.safetensors").stat().st_size}


def _copy_tokenizer(source: Path, folder: Path) -> tuple[int, int]:
    """Copy the tokenizer; returns its highest id plus 1 (ids may have gaps) and the padding id."""
    import transformers
    from tokenizers import Tokenizer

    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True}
    if source.is_file():
        shutil.copyfile(source, folder / "vocab.txt")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    else:
        shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
        config = source / "tokenizer_config.json"
        own = json.loads(config.read_bytes()) if config.is_file() else {}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **own, "model_max_length": 512}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return max(tokenizer.get_vocab().values()) + 1, tokenizer.token_to_id("[PAD]") or 0
