"""Files that a comparison needs made first: optimum's graph, a BERT of random weights, nopad's own export to time it.

Each is a job for a child process (`nopad.bench.measure.child`), so that neither its memory nor its imports meet a
measurement. What is made is kept in a cache under the digests of what it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nopad.model.packages import install_hint, version_of
from nopad.runtime.atomic import sha256_of, write_file

SEED = 3  # of BERT's random weights: their values change no time
_SOURCES = ("*.safetensors", "config.json", "tokenizer.json", "vocab.txt")


def optimum_job(checkpoint: Path, task: str, threads: int) -> dict[str, Any]:
    """optimum-onnx's padded graph, as a bundle of nopad's."""
    return {"job": "build", "kind": "optimum", "checkpoint": str(checkpoint), "task": task, "threads": threads}


def nopad_job(checkpoint: Path, task: str, target: str, threads: int) -> dict[str, Any]:
    """A bundle of nopad's, without its parity gate."""
    job = {"job": "build", "kind": "nopad", "checkpoint": str(checkpoint), "task": task, "threads": threads}
    return {**job, "target": target}


def bert_job(tokenizer: Path, task: str, labels: int, threads: int) -> dict[str, Any]:
    """A BERT-base checkpoint of random weights over a vocabulary (`vocab.txt`, or a folder with a tokenizer)."""
    job = {"job": "build", "kind": "bert", "checkpoint": str(tokenizer), "task": task, "threads": threads}
    return {**job, "labels": labels}


def place(cache: Path, job: Mapping[str, Any]) -> Path:
    """Where in the cache the folder of a job stands or will stand."""
    source = Path(job["checkpoint"])
    files = [source] if source.is_file() else sorted(file for name in _SOURCES for file in source.glob(name))
    known = {
        "job": {key: value for key, value in job.items() if key not in ("checkpoint", "threads", "folder")},
        "files": {file.name: sha256_of(file) for file in files},
        "versions": {name: version_of(name) for name in ("nopad", "torch", "transformers", "optimum-onnx")},
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return cache / f"{job['kind']}-{digest[:16]}"


def unavailable(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answer of a job that cannot succeed for want of a package, without a process to find out; None: it may."""
    if job["kind"] != "optimum" or version_of("optimum-onnx") is not None:
        return None
    note = (
        "optimum-onnx, which exports its graph, is not installed; it pins transformers below 4.58, so give it an "
        f"environment of its own: {install_hint('bench')}"
    )
    return {"status": "missing", "note": note}


def built(folder: Path) -> dict[str, Any] | None:
    """What was recorded when this folder of the cache was made; None if it must be made."""
    try:
        answer: dict[str, Any] = json.loads(_record(folder).read_bytes())
    except (OSError, ValueError):
        return None
    return answer if folder.is_dir() else None


def record(folder: Path, answer: Mapping[str, Any]) -> None:
    """Keep the answer of the job that has made this folder."""
    write_file(_record(folder), json.dumps(dict(answer)).encode())


def _record(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def build(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job (in the child): `build_seconds` without imports, `file_bytes`. Into `folder`."""
    import torch

    torch.set_num_threads(job["threads"])
    source, kind = Path(job["checkpoint"]), job["kind"]
    if kind == "bert":
        return _random_bert(source, Path(job["folder"]), job["task"], job["labels"])
    from nopad.export.bundle import ExportOptions, export_checkpoint

    if kind == "optimum":
        with contextlib.suppress(ImportError):  # the export says what to do about that
            importlib.import_module("optimum.exporters.onnx")  # its import is no build time
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
    """Ids of the vocabulary (a vocab.txt that names an entry twice leaves some out), and that of its padding."""
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
        known = json.loads(config.read_bytes()) if config.is_file() else {}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **known, "model_max_length": 512}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return max(tokenizer.get_vocab().values()) + 1, tokenizer.token_to_id("[PAD]") or 0
