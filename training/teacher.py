"""Distillation: a teacher's answers for the training rows, asked for once, and kept for the loss that follows them.

The teacher is a checkpoint folder or an exported bundle; its tokenizer, size and architecture are its own. Answers are
kept on the disk while it answers, so that a resumed run need not ask again, nor one that was interrupted or killed
while it asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

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
from nopad.model.checkpoint.read_head import read_head
from nopad.model.checkpoint.sentence_transformers import Pipeline
from nopad.model.checkpoint.source import open_source
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.head import Head
from nopad.model.products import fast_products
from nopad.runtime.atomic import sha256_of, write_file
from nopad.runtime.bundle import MANIFEST
from nopad.runtime.errors import TextError, UsageError
from nopad.training.data import TrainingData
from nopad.training.errors import TeacherError
from nopad.training.processes import first_process
from nopad.training.progress import duration
from nopad.training.tasks.base import CHOSEN, STREAM, TEACHER, Task, pack_stream
from nopad.training.tasks.embeddings import Embeddings
from nopad.training.tasks.rerank import Rerank
from nopad.training.tasks.token_labels import TokenLabels, answers_of_words
from nopad.training.tasks.token_targets import need_offsets

_TOKENS = 8192  # of a batch of the teacher's
_ASKED = 256  # rows between two steps of the progress bar
_WAIT_SECONDS = 0.5  # between two looks of a process that does not ask itself
_KEEP_SECONDS = 60.0  # from one writing of the answers so far to the next
_KEEP_SHARE = 0.02  # of the time, at most, for writing them: all are written each time

FloatArray = npt.NDArray[np.float32]
Rows = Mapping[str, list[Any]]  # columns of the data


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Teacher:
    """An opened teacher."""

    head: Head
    max_length: int  # tokens that it reads of a text
    ask: Callable[[Rows], list[FloatArray]]  # answers to each row's texts (or words), [texts, size]


def taught(
    data: TrainingData,
    teacher: str,
    *,
    kept: Path,
    digest: str,
    console: Console,
    log_every: float,
    size: int | None = None,
) -> TrainingData:
    """`data`, with the answers of `teacher` as a column `TEACHER` of the training rows, labels in their order.

    `teacher` is a checkpoint (a folder or a Hub name) or the folder of a bundle. Its answers are kept in the file
    `kept`, as those to `digest`, which stands for teacher and rows; `size` is that of the student's embeddings. Of
    several processes the first asks, and the others wait for that file. `log_every`: seconds from line to line where
    the console is no terminal. Raises `TeacherError` for a teacher that answers another question, and the errors of
    opening a checkpoint or a bundle.
    """
    folder = _folder(teacher)
    several = next((name for name in ("texts", "words") if name in data.train.column_names), None)
    ends = np.cumsum([len(row) for row in data.train[several]] if several else [1] * len(data.train))
    answers = _kept(kept, digest)
    while len(answers) < ends[-1] and not first_process():  # which asks for all
        time.sleep(_WAIT_SECONDS)
        answers = _kept(kept, digest, least=ends[-1])
    done = int(np.searchsorted(ends, len(answers), side="right"))  # rows
    if done < len(data.train):
        with _opened(folder, data) as opened:
            order = _order(opened.head, data, folder)
            console.print(f"teacher: {folder.name}, reads up to {opened.max_length:,} tokens of a text")

            def parts() -> Iterator[FloatArray]:
                if done:
                    yield answers[: ends[done - 1]]
                for part in _asked(opened.ask, data.train, done, console, log_every):
                    _check_size(part.shape[1], size, data.task, folder)
                    yield part if order is None else part[:, order]

            answers = _collected(parts(), lambda found: _keep(found, kept, digest))
    _check_size(answers.shape[1], size, data.task, folder)
    rows = [part.ravel() for part in np.split(answers, ends[:-1])]
    return dataclasses.replace(data, train=data.train.add_column(TEACHER, rows))


def check_task(task: Task, teacher: str | None) -> None:
    """Raises `UsageError` where the task needs a teacher and there is none."""
    if teacher is None and isinstance(task, Embeddings) and task.teacher_vectors:
        raise UsageError("--teacher-vectors are those of a teacher; name it with --teacher, or leave them out")


def collate_with_teacher(
    rows: Sequence[Mapping[str, Any]], *, collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The batch that `collate` makes of encoded rows, with the teacher's answers where rows have them."""
    batch = collate(rows)
    count = len(batch.get(CHOSEN, batch["pad_index"]))
    if TEACHER in rows[0] and count:
        size = sum(len(row[TEACHER]) for row in rows) // count
        answers = [np.asarray(row[TEACHER], dtype=np.float32).reshape(-1, size) for row in rows]
        batch[TEACHER] = torch.from_numpy(np.concatenate(answers) if CHOSEN in batch else np.stack(_by_column(answers)))
    return batch


def is_bundle(folder: Path) -> bool:
    """Whether the folder is an exported bundle."""
    return (folder / MANIFEST).is_file()


def teacher_digest(teacher: str) -> str:
    """SHA-256 that stands for the teacher's files."""
    folder = _folder(teacher)
    # A bundle's manifest has the digests of its files.
    files = [folder / MANIFEST] if is_bundle(folder) else sorted(folder.rglob("*"))
    kinds = (".json", ".safetensors", ".bin", ".txt", ".model")
    own = [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in files if path.suffix in kinds]
    return hashlib.sha256("\n".join(own).encode()).hexdigest()


def _by_column(rows: Iterable[Iterable[Any]]) -> list[Any]:
    """The first of each row, then the second, then those of the rows that have more: as tasks pack a row's texts."""
    return [each for column in zip_longest(*rows) for each in column if each is not None]


def _folder(teacher: str) -> Path:
    return Path(teacher) if is_bundle(Path(teacher)) else resolve_checkpoint(teacher)


def _kept(path: Path, digest: str, *, least: int = 0) -> FloatArray:
    """The answers of the file, [texts, size], if they are to this digest, and to `least` texts."""
    try:
        with safe_open(path, framework="numpy") as file:
            count = file.get_slice("answers").get_shape()[0]
            if (file.metadata() or {}).get("digest") == digest and count >= least:
                return np.asarray(file.get_tensor("answers"), dtype=np.float32)
    except (OSError, SafetensorError):  # none yet, or damaged: asked again
        pass
    return np.empty((0, 0), dtype=np.float32)


def _keep(answers: FloatArray, path: Path, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save({"answers": answers}, metadata={"digest": digest}))


def _collected(parts: Iterable[FloatArray], keep: Callable[[FloatArray], None]) -> FloatArray:
    """All parts, one after the other: kept now and then, at the end, and where their iteration is interrupted."""
    found: list[FloatArray] = []

    def keep_all() -> None:
        found[:] = [np.ascontiguousarray(np.concatenate(found))]  # safetensors writes memory as it lies
        keep(found[0])

    due = time.monotonic() + _KEEP_SECONDS
    try:
        for part in parts:
            found.append(part)
            if (began := time.monotonic()) >= due:
                keep_all()
                ended = time.monotonic()
                due = ended + max(_KEEP_SECONDS, (ended - began) / _KEEP_SHARE)
    finally:
        if found:
            keep_all()
    return found[0]


@contextmanager
def _opened(folder: Path, data: TrainingData) -> Iterator[_Teacher]:
    if not is_bundle(folder):
        yield _open_checkpoint(folder, data)
        return
    from nopad.runtime import load

    with load(folder) as model:
        manifest = model.manifest
        own = _with_prompts(data.task, manifest.prompts, manifest.default_prompt_name)

        def ask_logits(rows: Rows) -> list[FloatArray]:
            return list(np.stack(model.logits(_texts(rows)))[:, None])

        def ask(rows: Rows) -> list[FloatArray]:
            if isinstance(own, TokenLabels):
                found = model.logits(rows["text"])  # raises for a text that it cannot read
                offsets = [text.offsets for text in model.encode(rows["text"]) if not isinstance(text, TextError)]
                return list(map(answers_of_words, found, offsets, rows["words"]))
            if not isinstance(own, Embeddings):
                return ask_logits(rows)
            answers: list[list[FloatArray]] = [[] for _ in rows["texts"]]
            for place in (0, 1):  # queries, and the others
                texts = [row[:1] if place == 0 else row[1:] for row in rows["texts"]]
                flat = model.embed([text for row in texts for text in row], prompt=own.prompt(place))
                for found, part in zip(
                    answers, np.split(flat, np.cumsum([len(row) for row in texts])[:-1]), strict=True
                ):
                    found.append(part)
            return [np.concatenate(parts) for parts in answers]

        reranks = manifest.head.task == "rerank" and isinstance(own, Embeddings)
        asked = _scores_of_texts(ask_logits) if reranks else ask
        yield _Teacher(head=manifest.head, max_length=manifest.max_length, ask=asked)


def _open_checkpoint(folder: Path, data: TrainingData) -> _Teacher:
    source = open_source(folder)
    reranks = isinstance(data.task, Embeddings) and _scores_pairs(source.raw_config)
    checkpoint = load_checkpoint(source, task="rerank" if reranks else data.task.head)
    tokenizer = open_tokenizer(source.tokenizer)
    pipeline = checkpoint.pipeline or Pipeline()
    limits = (pipeline.max_seq_length, tokenizer.model_max_length, checkpoint.config.max_position_embeddings)
    longest = min(filter(None, limits))
    own = _with_prompts(Rerank() if reranks else data.task, pipeline.prompts, pipeline.default_prompt_name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = checkpoint.encoder.to(device).eval()

    def run(batch: Mapping[str, Tensor]) -> FloatArray:
        stream = {name: batch[name].to(device) for name in STREAM if name in batch}
        with torch.inference_mode(), fast_products():
            return cast("FloatArray", encoder(**stream).float().cpu().numpy())

    def ask(rows: Rows) -> list[FloatArray]:
        columns = own.encode(rows, tokenizer, longest)
        encoded = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        answers: list[list[FloatArray]] = [[] for _ in encoded]
        for some in _batches([len(row["input_ids"]) for row in encoded]):
            found = run(own.collate([encoded[i] for i in some], multiple=checkpoint.config.block))
            places = _by_column([[i] * len(encoded[i].get("lengths", [0])) for i in some])
            for i, answer in zip(places, found, strict=True):
                answers[i].append(answer)
        return [np.stack(row) for row in answers]

    def ask_of_words(rows: Rows) -> list[FloatArray]:
        options = {"truncation": True, "max_length": longest, "return_attention_mask": False}
        columns = tokenizer(rows["text"], return_offsets_mapping=True, **options)
        lengths = list(map(len, columns["input_ids"]))
        answers = [np.empty(0, dtype=np.float32)] * len(lengths)
        for some in _batches(lengths):
            encoded = [{name: columns[name][i] for name in columns} for i in some]
            found = run(pack_stream(encoded, multiple=checkpoint.config.block))
            ends = np.cumsum([lengths[i] for i in some])  # filler behind them
            for i, logits in zip(some, np.split(found, ends)[:-1], strict=True):
                answers[i] = answers_of_words(logits, columns["offset_mapping"][i], rows["words"][i])
        return answers

    if isinstance(own, TokenLabels):
        need_offsets(tokenizer)
        ask = ask_of_words
    return _Teacher(head=checkpoint.head, max_length=longest, ask=_scores_of_texts(ask) if reranks else ask)


def _scores_pairs(raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is a reranker's: one logit. Of a classifier with more, embeddings take the encoder."""
    classifies = str(raw.get("architectures")).endswith("ForSequenceClassification']")
    return classifies and len(read_head(raw, "text-classification").labels) == 1


def _scores_of_texts(ask: Callable[[Rows], list[FloatArray]]) -> Callable[[Rows], list[FloatArray]]:
    """A reranker's `ask`, for rows of embeddings: how well each text answers the first [texts, 1]; NaN for itself."""

    def asked(rows: Rows) -> list[FloatArray]:
        pairs = [(row[0], text) for row in rows["texts"] for text in row[1:]]
        queries, passages = map(list, zip(*pairs, strict=True))
        none = [0] * len(pairs)
        scores = np.concatenate(ask({"query": queries, "passage": passages, "target": none, "query_id": none}))
        ends = np.cumsum([len(row) - 1 for row in rows["texts"]])
        first = np.full((1, 1), np.nan, dtype=np.float32)
        return [np.concatenate([first, part]) for part in np.split(scores, ends[:-1])]

    return asked


def _with_prompts(task: Task, prompts: Mapping[str, str], default: str | None) -> Task:
    """The task as the teacher does it: with its own prompts."""
    if isinstance(task, Embeddings):
        task = dataclasses.replace(task, prompts=None)
    return task.with_prompts(prompts, default)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows, the longest first, together at most `_TOKENS` tokens."""
    some: list[int] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if some and tokens + lengths[i] > _TOKENS:
            yield some
            some, tokens = [], 0
        some.append(i)
        tokens += lengths[i]
    yield some


def _order(head: Head, data: TrainingData, folder: Path) -> list[int] | None:
    """Which of the teacher's logits belongs to each label of the data; None without labels."""
    own = (data.task.head, data.problem_type)
    if head.task == "rerank" and isinstance(data.task, Embeddings):
        if data.task.teacher_vectors or max(map(len, data.train["texts"])) < 3:
            raise TeacherError(
                f"the teacher {folder} is a reranker: it has no vectors (--teacher-vectors), and teaches margins "
                "between answers and negatives; give the training data negatives, or name an embedding model"
            )
        return None
    if (head.task, head.problem_type) != own:
        theirs, wanted = (" ".join(filter(None, names)) for names in ((head.task, head.problem_type), own))
        raise TeacherError(f"the teacher {folder} does {theirs}, the student is to do {wanted}; name another --teacher")
    if not head.has_labels:
        return None
    if set(head.labels) != set(data.labels):
        raise TeacherError(
            f"the teacher {folder} knows the labels {', '.join(head.labels)}, the training data has "
            f"{', '.join(data.labels)}; name the teacher's with --labels, in the order of the data's numbers, or "
            "rename them in its config.json (id2label)"
        )
    return [head.labels.index(label) for label in data.labels]


def _check_size(theirs: int, own: int | None, task: Task, folder: Path) -> None:
    if isinstance(task, Embeddings) and task.teacher_vectors and theirs != own:
        raise TeacherError(
            f"the vectors of the teacher {folder} have {theirs:,} elements, the student's {own:,}: take a student with "
            f"a hidden_size of {theirs:,}, or leave out --teacher-vectors and learn which texts are near each other"
        )


def _texts(rows: Rows) -> list[Any]:
    """The text of each row, or its pair of texts."""
    first = rows["query"] if "query" in rows else rows["text"]
    second = next((rows[name] for name in ("passage", "text_pair") if name in rows), None)
    return list(first) if second is None else list(zip(first, second, strict=True))


def _asked(
    ask: Callable[[Rows], list[FloatArray]], rows: Any, done: int, console: Console, log_every: float
) -> Iterator[FloatArray]:
    """The answers to the texts of the rows from `done` on, [texts, size] for each part of the rows."""
    began = told = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Asking the teacher", total=len(rows), completed=done)
        for start in range(done, len(rows), _ASKED):
            part = rows[start : start + _ASKED]
            yield np.concatenate(ask(part))
            count = len(next(iter(part.values())))
            progress.advance(task, count)
            if not console.is_terminal and (now := time.monotonic()) - told >= log_every:
                told, answered = now, start + count
                left = duration((now - began) / (answered - done) * (len(rows) - answered))
                console.print(f"teacher: {answered:,} of {len(rows):,} rows answered, {left} left", style="dim")
