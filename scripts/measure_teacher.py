"""What a teacher gives a student: the same training with and without it, over seeds.

    python scripts/measure_teacher.py --task embeddings --model START --train rows.jsonl --eval held.jsonl \\
        --teacher RERANKER --weights 0.5,1 [--seeds 1,2,3] [--temperature 2] [--epochs 2] ...

Rows, steps and seeds are the same in all runs. Weight 0, labels alone, is always among them. Prints a Markdown table:
each metric of the last evaluation, its mean with Student's 95 % interval, and its difference from labels alone, seed by
seed. The teacher is asked once for all runs (but for fill-mask, in every step).
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from over_seeds import machine, mean_interval, shown, table

from nopad.training.loaders import LOADERS, load
from nopad.training.recipe import Recipe
from nopad.training.trainer import train


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=LOADERS, required=True)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", help="the student's first weights")
    start.add_argument("--from-scratch", type=Path, help="or its configuration, for random ones")
    parser.add_argument("--tokenizer")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--weights", default="0.5", help="of the teacher's loss, comma-separated")
    parser.add_argument("--seeds", default="1,2,3")
    for name in ("temperature", "epochs", "batch_size", "learning_rate", "warmup_ratio", "max_length", "freeze_layers"):
        default = getattr(Recipe, name)
        kind = int if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    given = read_arguments()
    torch.set_num_threads(given.threads)
    data = load(given.task, given.train, given.eval)
    fields = {name: value for name, value in vars(given).items() if name in vars(Recipe())} | {"teacher": None}
    seeds = list(map(int, given.seeds.split(",")))
    weights = [0.0, *map(float, given.weights.split(","))]
    names = data.task.metric_names
    found: dict[float, list[dict[str, float]]] = {weight: [] for weight in weights}
    with tempfile.TemporaryDirectory() as folder:
        for seed, weight in ((seed, weight) for seed in seeds for weight in weights):
            recipe = Recipe(**fields, seed=seed)
            if weight:
                recipe = replace(recipe, teacher=given.teacher, teacher_weight=weight)
            result = train(
                data,
                Path(folder) / f"{seed}-{weight:g}",
                model=given.model,
                from_scratch=given.from_scratch,
                tokenizer=given.tokenizer,
                recipe=recipe,
                answers=Path(folder) / "answers.safetensors",
            )
            found[weight].append(result.metrics)
            figures = ", ".join(f"{name} {result.metrics[name]:.4f}" for name in names)
            print(f"seed {seed}, weight {weight:g}: {figures}, {result.seconds:.0f} s", flush=True)
    lines = []
    for weight, runs in found.items():
        cells = [shown(mean_interval([run[name] for run in runs]), ".3f") for name in names]
        lines.append([f"teacher, weight {weight:g}" if weight else "labels alone", *cells])
    for weight in weights[1:]:
        pairs = list(zip(found[weight], found[0.0], strict=True))
        cells = [shown(mean_interval([run[name] - plain[name] for run, plain in pairs]), "+.3f") for name in names]
        lines.append([f"weight {weight:g} less labels alone", *cells])
    print(f"\n{len(data.train):,} rows, {len(data.evaluation):,} to evaluate, seeds {given.seeds}; {machine()}\n")
    print(table(("", *names), lines))


if __name__ == "__main__":
    main()
