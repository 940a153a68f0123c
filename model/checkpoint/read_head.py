"""What a `config.json` says about the head: task, labels, problem type. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nopad.model.config import CLASS_SUFFIX
from nopad.model.errors import CheckpointError
from nopad.model.head import PROBLEM_TYPES, TASKS, Head, Task

# Keys in config.json of a sentence-transformers cross-encoder: since version 4, and before.
CROSS_ENCODER_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")


def json_object(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A key of `config.json` that holds an object; {} where it is missing. Raises `CheckpointError`."""
    value = raw.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key} is a {type(value).__name__}, expected an object")
    return value or {}


def detect_task(raw: Mapping[str, Any]) -> Task:
    """Infer the task from `architectures`; a one-logit cross-encoder of sentence-transformers is `rerank`."""
    names = raw.get("architectures")
    for name in names if isinstance(names, list) else ():
        for suffix, task in CLASS_SUFFIX.items():
            if str(name).endswith(suffix):
                cross_encoder = any(key in raw for key in CROSS_ENCODER_KEYS)
                if task == "text-classification" and len(_labels(raw)) == 1 and cross_encoder:
                    return "rerank"
                return task
    raise CheckpointError(
        f"config.json: architectures {raw.get('architectures')!r} does not name the task; "
        f"name it with --task ({', '.join(TASKS)})"
    )


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the outputs, as text, by transformers' rules: `id2label` alone names them, `label2id` does not.

    Answers are keyed by name, so repeated names are refused; so is what transformers 4 and 5 read differently.
    """
    id2label, num_labels = json_object(raw, "id2label"), raw.get("num_labels")
    if not id2label:
        return _unnamed(raw, num_labels)
    if num_labels is not None and num_labels != len(id2label):
        raise CheckpointError(
            f"config.json: id2label names {len(id2label)} labels, num_labels says {num_labels}; remove the wrong one"
        )
    by_id: dict[int, Any] = {}
    for key, name in id2label.items():
        try:
            by_id[int(key)] = name
        except ValueError:
            hint = "; it looks like label2id" if isinstance(name, int) else ""
            raise CheckpointError(
                f"config.json: id2label has the key {key!r}, expected the number of an output{hint}"
            ) from None
        if name is None or isinstance(name, list | dict):
            raise CheckpointError(f"config.json: id2label names output {key} {name!r}, expected a text or a number")
    count = len(id2label)
    missing = sorted(set(range(count)) - by_id.keys())
    if missing:
        raise CheckpointError(
            f"config.json: id2label has the ids {', '.join(map(str, sorted(by_id)))}, so transformers builds {count} "
            f"outputs, 0 to {count - 1}, of which {', '.join(map(str, missing))} would have no name. Which outputs the "
            "ids beyond them mean is unknown: number the names from 0 without gaps, in the order of the outputs"
        )
    labels = tuple(str(by_id[i]) for i in range(count))
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise CheckpointError(
            f"config.json: id2label must name each label once, but {', '.join(map(repr, repeated))} appears more "
            "than once, and answers are keyed by name; give each output a name of its own"
        )
    blank = [i for i, label in enumerate(labels) if not label.strip()]
    if not all(map(_is_unicode, labels)):
        raise CheckpointError("config.json: a name in id2label holds a lone surrogate, so it is not valid Unicode")
    if blank:
        raise CheckpointError(f"config.json: id2label gives output {blank[0]} a blank name; give it a visible one")
    return labels


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _unnamed(raw: Mapping[str, Any], num_labels: Any) -> tuple[str, ...]:
    """Without `id2label`, transformers counts two outputs, or `num_labels`, and calls them LABEL_0, LABEL_1..."""
    if num_labels is None and len(json_object(raw, "label2id")) not in (0, 2):
        raise CheckpointError(
            f"config.json: label2id names {len(raw['label2id'])} labels, but there is no id2label, which is what "
            "transformers reads: it would build 2 outputs. Write id2label too"
        )
    return tuple(f"LABEL_{i}" for i in range(int(num_labels or 2)))


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
