"""What a `config.json` says of its head: task, labels, problem type. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nopad.model.errors import CheckpointError

Task = Literal["text-classification", "token-classification", "fill-mask", "embeddings", "rerank"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

TASKS: tuple[Task, ...] = get_args(Task)
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)

# The class name that transformers writes into config.json for each task.
CLASS_SUFFIX: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "Model": "embeddings",
}


def json_object(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A key of `config.json` that holds an object; {} where it is missing. Raises `CheckpointError`."""
    value = raw.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key} is a {type(value).__name__}, expected an object")
    return value or {}


def detect_task(raw: Mapping[str, Any]) -> Task:
    """Tell the task from `architectures`; a one-logit cross-encoder of sentence-transformers is `rerank`."""
    names = raw.get("architectures")
    for name in names if isinstance(names, list) else ():
        for suffix, task in CLASS_SUFFIX.items():
            if str(name).endswith(suffix):
                cross_encoder = "sentence_transformers" in raw or "sbert_ce_default_activation_function" in raw
                if task == "text-classification" and len(_labels(raw)) == 1 and cross_encoder:
                    return "rerank"
                return task
    raise CheckpointError(
        f"config.json: architectures {raw.get('architectures')!r} does not tell the task; "
        f"name it with --task ({', '.join(TASKS)})"
    )


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    id2label = json_object(raw, "id2label")
    if not id2label:
        # transformers leaves the default out of config.json: two labels, LABEL_0 and LABEL_1.
        return tuple(f"LABEL_{i}" for i in range(int(raw.get("num_labels") or 2)))
    by_id = {int(key): str(value) for key, value in id2label.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise CheckpointError(f"config.json: id2label has ids {sorted(by_id)}, expected 0..{len(by_id) - 1}")
    labels = tuple(by_id[i] for i in range(len(by_id)))
    if len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
        raise CheckpointError(f"config.json: id2label must name each label once, it has {', '.join(map(repr, labels))}")
    return labels


@dataclass(frozen=True, kw_only=True)
class Head:
    """What any checkpoint's `config.json` says of its head, whatever the architecture."""

    task: Task
    labels: tuple[str, ...]
    problem_type: ProblemType | None


def read_head(raw: Mapping[str, Any], task: Task | None = None) -> Head:
    """Task, labels and problem type of a `config.json`. Raises `CheckpointError`."""
    task = task or detect_task(raw)
    if task not in TASKS:
        raise CheckpointError(f"unknown task {task!r}; nopad has {', '.join(TASKS)}")
    labels = _labels(raw) if task in ("text-classification", "token-classification", "rerank") else ()
    problem_type: Any = raw.get("problem_type")
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise CheckpointError(f"config.json: unknown problem_type {problem_type!r}; known: {', '.join(PROBLEM_TYPES)}")
    if task == "rerank" and len(labels) != 1:
        raise CheckpointError(f"task rerank needs a checkpoint with one label, this one has {len(labels)}")
    if task != "text-classification":
        problem_type = None
    elif problem_type is None:
        # As transformers' pipeline scores: one logit gets a sigmoid, unless config.json says regression.
        problem_type = "multi_label_classification" if len(labels) == 1 else "single_label_classification"
    elif problem_type == "single_label_classification" and len(labels) == 1:
        raise CheckpointError(
            "config.json: problem_type single_label_classification needs two labels, this has one; "
            "multi_label_classification gives it a probability of its own"
        )
    return Head(task=task, labels=labels, problem_type=problem_type)
