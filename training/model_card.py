"""The model card: `README.md` of a checkpoint folder, as the Hugging Face Hub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from nopad.charts import units
from nopad.model.checkpoint.read_config import LENGTHS
from nopad.training.outcome import Outcome
from nopad.training.run_folder import ADAPTER

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_TASKS = {"embeddings": "sentence-similarity", "rerank": "text-ranking"}  # where its name differs from ours
_HUB_METRICS = {"accuracy", "f1", "mse"}  # names that the Hub knows
_OF_TRIALS = "Its settings are the best of"
_UNTESTED = "What it does on texts of another kind or language than its data was not tested."


def model_card(outcome: Outcome, *, architecture: str, max_length: int, curves: str) -> str:
    """The text of the card; `curves` is the file with the learning curves."""
    title = f"# {outcome.name}"
    parts = [title, _lead(outcome, architecture), *_evaluation(outcome), f"![Learning curves]({curves})"]
    parts += [*_data(outcome), *_training(outcome), *_use(outcome), *_limits(outcome, max_length)]
    return f"---\n{_front_matter(outcome, architecture).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(outcome: Outcome, architecture: str) -> ModelCardData:
    """The card's metadata: nothing in it is guessed, so neither language nor licence."""
    task = _HUB_TASKS.get(outcome.data.task.head, outcome.data.task.head)
    data = outcome.sources[-1] if outcome.sources else "own data"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data if _hub_name(data) else "own",
            dataset_name=_shown(data),
            metric_type=name,
            metric_value=value,
        )
        for name, value in outcome.metrics.items()
        if name in _HUB_METRICS
    ]
    return ModelCardData(
        model_name=outcome.name,
        base_model=_hub_name(outcome.model),
        datasets=[name for name in dict.fromkeys(outcome.sources) if _hub_name(name)] or None,
        library_name="sentence-transformers" if outcome.data.task.head in _HUB_TASKS else "transformers",
        pipeline_tag=task,
        metrics=[result.metric_type for result in results] or None,
        tags=["nopad", architecture],
        eval_results=results or None,
    )


def _hub_name(name: str | None) -> str | None:
    """The name, where it is one of the Hub: no file and no folder of this machine."""
    return name if name and _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _shown(name: str) -> str:
    """Names of the Hub in full, of files only the last part: paths are nobody else's business."""
    return _hub_name(name) or Path(name).name


def _lead(outcome: Outcome, architecture: str) -> str:
    start = f"fine-tuned from {_shown(outcome.model)}" if outcome.model else "trained from random weights"
    return (
        f"A {architecture} encoder for {outcome.data.task.head}, {start} with "
        f"nopad {outcome.provenance['versions']['nopad']}."
    )


def _evaluation(outcome: Outcome) -> list[str]:
    details = outcome.notes.evaluation
    figures = [(name, f"{value:.4f}") for name, value in outcome.metrics.items()]
    parts = [
        "## Evaluation",
        f"On {details.get('rows', 0):,} rows that were not trained on:",
        _table(("", "value"), figures),
    ]
    if "labels" in details:
        cells = [
            (one["label"], *(f"{one[name]:.3f}" for name in ("precision", "recall", "f1")), f"{one['rows']:,.0f}")
            for one in details["labels"]
        ]
        parts.append(_table(("label", "precision", "recall", "F1", "rows"), cells))
    if "confusion" in details:
        labels = outcome.data.labels
        parts.append("Confusion matrix: a row for each true label, a column for each that the model chose.")
        parts.append(
            _table(("", *labels), [(label, *row) for label, row in zip(labels, details["confusion"], strict=True)])
        )
    elif details.get("mistakes"):
        labels = outcome.data.labels
        parts.append("The most frequent mistakes:")
        rows = [(labels[true], labels[chosen], count) for true, chosen, count in details["mistakes"]]
        parts.append(_table(("true label", "chosen", "rows"), rows))
    if "ece" in details:
        parts.append(
            f"**Calibration.** Expected calibration error {units.share(details['ece'])} in 15 bins: by so much the "
            "probabilities differ from the share that is right. `nopad calibrate` fits a temperature on held-out rows."
        )
    return parts


def _data(outcome: Outcome) -> list[str]:
    parts = outcome.provenance["data"]
    rows = []
    for place, (part, title) in enumerate((("train", "trained on"), ("evaluation", "evaluated on"))):
        source = _shown(outcome.sources[min(place, len(outcome.sources) - 1)]) if outcome.sources else ""
        rows.append((title, source, f"{parts[part]['rows']:,}", f"`{parts[part]['sha256'][:16]}`"))
    return [
        "## Data",
        _table(("", "source", "rows", "SHA-256 of the rows"), rows),
        _cell(parts["summary"]),
        f"Lengths: {_cell(outcome.lengths.line())}; all of them: `{LENGTHS}`.",
    ]


def _training(outcome: Outcome) -> list[str]:
    machine, notes = outcome.provenance["machine"], outcome.notes
    threads = machine["threads"]
    where = machine["gpu"] or f"{threads} thread{'s' * (threads != 1)} of a CPU ({machine['cpu']})"
    versions = ", ".join(f"{name} {version}" for name, version in outcome.provenance["versions"].items() if version)
    recipe = vars(outcome.recipe)
    unused = {
        *(() if outcome.recipe.teacher else ("teacher_weight", "teacher_states", "temperature")),
        *(() if outcome.recipe.lora else ("lora_dropout",)),
    }
    recipe = {name: value for name, value in recipe.items() if name not in unused}
    if outcome.recipe.teacher is not None:
        digest = outcome.provenance["teacher"]["sha256"]
        recipe = {**recipe, "teacher": f"{_shown(outcome.recipe.teacher)} (SHA-256 {digest[:16]})"}
    settings = [(name.replace("_", " "), value) for name, value in recipe.items() if value is not None]
    return [
        "## Training",
        _table(("setting", "value"), settings),
        f"The weights are those of epoch {outcome.epoch:.4g}, the best of {_evaluations(outcome)} evaluations. "
        f"{units.seconds(notes.seconds)} on {where}; {units.seconds(notes.cpu_seconds)} of CPU time. Energy was not "
        "measured.",
        f"Versions: {versions}.",
    ]


def _use(outcome: Outcome) -> list[str]:
    adapter = [
        f"These weights contain the updates that LoRA learned; `{ADAPTER}/` has them apart, small, as PEFT reads them. "
        f"Their base is {_cell(_shown(outcome.model or ''))}."
    ]
    return [
        "## Use",
        "Exported and verified once, then without torch:",
        "```\nnopad export . --output bundle/\nnopad predict bundle/ --input texts.jsonl --output answers.jsonl\n```",
        "The folder also opens in transformers, by `from_pretrained`.",
        *(adapter if outcome.recipe.lora else ()),
    ]


def _limits(outcome: Outcome, max_length: int) -> list[str]:
    limits = [f"Texts are cut at {max_length:,} tokens."]
    if outcome.data.task.head == "text-classification" and outcome.data.labels:
        limits.append("It answers with the labels above for every text, also for one that none of them fits.")
    if _evaluations(outcome) > 1:
        limits.append("The evaluation chose the weights, so its figures are a little better than new texts will give.")
    limits.append(_UNTESTED)
    return ["## Limits", "\n".join(f"- {limit}" for limit in limits)]


def of_sweep(card: str, trials: int) -> str:
    """The card of a sweep's best run, which says of how many trials it is the best."""
    lines = [line for line in card.split("\n") if not line.startswith(f"- {_OF_TRIALS}")]
    told = f"- {_OF_TRIALS} {trials} trials by that evaluation, which flatters it more."
    return "\n".join([f"{told}\n{line}" if line == f"- {_UNTESTED}" and trials > 1 else line for line in lines])


def _evaluations(outcome: Outcome) -> int:
    return sum("eval_loss" in entry for entry in outcome.history)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |" for cells in lines)


def _cell(text: str) -> str:
    """Text inside a table or a line of Markdown."""
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split())) if not text.startswith("`") else text
