"""Distillation: a teacher's logits for the training rows, asked for once, and the loss that follows them.

The teacher is a checkpoint folder or an exported bundle; its tokenizer, size and architecture are its own. Its answers
are kept beside the saved states, so that a resumed run need not ask again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.source import open_source
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.head import Head
from nopad.model.packing import pack
from nopad.model.products import fast_products
from nopad.runtime.atomic import sha256_of, write_file
from nopad.runtime.bundle import MANIFEST
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData
from nopad.training.processes import first_process
from nopad.training.run_folder import KEPT
from nopad.training.tasks.base import STREAM, Distilled, Task

TEACHER = "teacher"  # of data, encoded rows and batches: the teacher's logits, float32 [labels]
_TOKENS = 8192  # of a batch of the teacher's
_ASKED = 1024  # texts between two steps of the progress bar

Texts = Sequence[Any]  # texts, or pairs of texts
Ask = Callable[[Texts], npt.NDArray[np.float32]]


def taught(data: TrainingData, teacher: str, *, work: Path, digest: str, console: Console) -> TrainingData:
    """`data`, with the logits of `teacher` as a column `TEACHER` of the training rows, in the order of its labels.

    `teacher` is a checkpoint (a folder or a Hub name) or the folder of a bundle; `digest` that of the training rows.
    The logits are kept in the folder `work`. Raises `UsageError` for a task without a distillation loss and a teacher
    that answers another question, and the errors of opening a checkpoint or a bundle.
    """
    check_task(data.task)
    folder = _folder(teacher)
    key = hashlib.sha256("\n".join([digest, *_digests(folder)]).encode()).hexdigest()
    logits = _kept(work / KEPT, key, len(data.train))
    if logits is None:
        head, ask = _open(folder, data)
        order = _order(head, data, folder)
        logits = np.ascontiguousarray(_asked(ask, data.train, console)[:, order])
        if first_process():
            work.mkdir(parents=True, exist_ok=True)
            write_file(work / KEPT, save({"logits": logits}, metadata={"key": key}))
    return replace(data, train=data.train.add_column(TEACHER, list(logits)))


def check_task(task: Task) -> None:
    """Raises `UsageError` where a teacher's logits mean nothing to the task."""
    if not isinstance(task, Distilled):
        raise UsageError(f"--teacher does not apply to --task {task.head}; leave it out")


def collate_with_teacher(
    rows: Sequence[Mapping[str, Any]], *, collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The batch that `collate` makes of encoded rows, with the teacher's logits [rows, labels] where rows have them."""
    batch = collate(rows)
    if TEACHER in rows[0]:
        batch[TEACHER] = torch.tensor([row[TEACHER] for row in rows], dtype=torch.float32)
    return batch


def is_bundle(folder: Path) -> bool:
    """Whether the folder is an exported bundle."""
    return (folder / MANIFEST).is_file()


def _folder(teacher: str) -> Path:
    return Path(teacher) if is_bundle(Path(teacher)) else resolve_checkpoint(teacher)


def _digests(folder: Path) -> Iterator[str]:
    """Of a bundle the manifest's, which has those of its files; of a checkpoint, its configuration and weights."""
    if is_bundle(folder):
        yield sha256_of(folder / MANIFEST)
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
            yield sha256_of(path)


def _kept(path: Path, key: str, rows: int) -> npt.NDArray[np.float32] | None:
    """The logits of the file, if they are this teacher's for these rows."""
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("key") == key and len(logits := file.get_tensor("logits")) == rows:
                return np.asarray(logits, dtype=np.float32)
    except (OSError, SafetensorError):  # none yet, or damaged: asked again
        pass
    return None


def _open(folder: Path, data: TrainingData) -> tuple[Head, Ask]:
    if is_bundle(folder):
        from nopad.runtime import load

        model = load(folder)
        return model.manifest.head, lambda texts: np.stack(model.logits(texts))
    source = open_source(folder)
    checkpoint = load_checkpoint(source, task=data.task.head)
    tokenizer = open_tokenizer(source.tokenizer)
    longest = min(tokenizer.model_max_length, checkpoint.config.max_position_embeddings)
    encoder = checkpoint.encoder.eval()

    def ask(texts: Texts) -> npt.NDArray[np.float32]:
        encoded = tokenizer(list(texts), truncation=True, max_length=longest, return_attention_mask=False)
        ids, types = encoded["input_ids"], encoded.get("token_type_ids")
        out: list[Any] = [None] * len(ids)
        for some in _batches([len(one) for one in ids]):
            batch = pack(
                [ids[i] for i in some], [types[i] for i in some] if types else None, multiple=checkpoint.config.block
            )
            stream = {name: torch.from_numpy(getattr(batch, name)) for name in STREAM}
            with torch.inference_mode(), fast_products():
                logits = encoder(**stream).numpy()
            for i, row in zip(some, logits, strict=True):
                out[i] = row
        return np.stack(out)

    return checkpoint.head, ask


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts, the longest first, together at most `_TOKENS` tokens."""
    some: list[int] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if some and tokens + lengths[i] > _TOKENS:
            yield some
            some, tokens = [], 0
        some.append(i)
        tokens += lengths[i]
    yield some


def _order(head: Head, data: TrainingData, folder: Path) -> list[int]:
    """Which of the teacher's logits belong to each label of the data."""
    own = (data.task.head, data.problem_type)
    if (head.task, head.problem_type) != own:
        theirs, wanted = (" ".join(filter(None, names)) for names in ((head.task, head.problem_type), own))
        raise UsageError(f"the teacher {folder} does {theirs}, the student is to do {wanted}; name another --teacher")
    if not head.has_labels:
        return [0]
    if set(head.labels) != set(data.labels):
        raise UsageError(
            f"the teacher {folder} knows the labels {', '.join(head.labels)}, the training data has "
            f"{', '.join(data.labels)}; name the teacher's with --labels, in the order of the data's numbers, or "
            "rename them in its config.json (id2label)"
        )
    return [head.labels.index(label) for label in data.labels]


def _asked(ask: Ask, rows: Any, console: Console) -> npt.NDArray[np.float32]:
    texts: Any = rows["query"] if "query" in rows.column_names else rows["text"]
    seconds = next((rows[name] for name in ("passage", "text_pair") if name in rows.column_names), None)
    asked = list(texts) if seconds is None else list(zip(texts, seconds, strict=True))
    parts = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Asking the teacher", total=len(asked))
        for start in range(0, len(asked), _ASKED):
            parts.append(ask(asked[start : start + _ASKED]))
            progress.advance(task, len(parts[-1]))
    return np.concatenate(parts)
