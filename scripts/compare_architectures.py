"""BERT against ModernBERT, same budget: parameters, tokens, rows, tokenizer, recipe and seeds. Writes JSON and a table.

    python scripts/compare_architectures.py --train imdb/train.jsonl --eval imdb/test.jsonl --tokenizer DIR --work OUT
    python scripts/compare_architectures.py ... --modernbert answerdotai/ModernBERT-base --bert bert-base-uncased

From random weights both have the same layers and width, and a feed-forward as wide as the parameters allow; the
dropouts that both have are the same. What makes them different is left: gated feed-forward, rotary positions, pre-norm
and mostly local attention, against GELU, learned positions, post-norm and a pooler. Or --modernbert and --bert name
checkpoints to fine-tune, whose own size and tokenizer then count. Every learning rate is a row of the table, so none is
chosen by the evaluation rows; of each run the weights after the last step are evaluated. `OUT/results.json` grows run
by run, and a run that it has is not repeated.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from over_seeds import machine, mean_interval, shown, table
from rich.console import Console

from nopad.model.checkpoint.load import load_checkpoint
from nopad.runtime.atomic import write_file
from nopad.runtime.cli import run as nopad
from nopad.runtime.data.table import DataSource
from nopad.training.data import TrainingData, load_data
from nopad.training.recipe import Recipe
from nopad.training.trainer import train

STEP = 8  # of the feed-forward's width
DROPOUT = 0.1
MORE = ("work", "seeds", "learning_rates", "export")  # arguments that add to results, and change none
TIMED = 200  # texts, one after the other
SHAPES: dict[str, dict[str, Any]] = {
    "modernbert": {
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "classifier_pooling": "mean",
        "embedding_dropout": DROPOUT,
        "mlp_dropout": DROPOUT,
        "classifier_dropout": DROPOUT,
        "attention_dropout": 0.0,
    },
    "bert": {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": 0.0, "classifier_dropout": DROPOUT},
}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="a file that `nopad train` reads, with texts and classes")
    parser.add_argument("--eval", required=True, help="the same, of rows to evaluate on")
    parser.add_argument("--rows", type=int, help="train on so many random rows [default: all]")
    parser.add_argument("--work", type=Path, required=True, help="folder for results and checkpoints")
    parser.add_argument("--tokenizer", type=Path, help="folder, for both, from random weights (make_tokenizer.py)")
    parser.add_argument("--modernbert", help="checkpoint to fine-tune instead of random weights")
    parser.add_argument("--bert", help="the same")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--parameters", type=int, help="[default: BERT's with a feed-forward of four widths]")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="to train on, in whole steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rates", default="3e-4,1e-3")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--export", action="store_true", help="export the first seed's checkpoints, and time them")
    return parser.parse_args()


def parameters(config: Mapping[str, Any]) -> int:
    """Of a classifier with this config.json."""
    own = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        settings = transformers.AutoConfig.for_model(config["model_type"], **own)
        model = transformers.AutoModelForSequenceClassification.from_config(settings)
    return sum(tensor.numel() for tensor in model.parameters())


def make_configs(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """config.json of each architecture: within the budget, and less than a `STEP` of the feed-forward below it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": arguments.width,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.width // 32,
        "max_position_embeddings": arguments.max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    shapes = {name: {"model_type": name, **common, **shape} for name, shape in SHAPES.items()}
    budget = arguments.parameters or parameters({**shapes["bert"], "intermediate_size": 4 * arguments.width})
    for name, config in shapes.items():
        least, next_one = (parameters({**config, "intermediate_size": size}) for size in (STEP, 2 * STEP))
        if budget < least:
            raise SystemExit(f"--parameters {budget:,}: this {name} has {least:,} at least; name more, or less --width")
        config["intermediate_size"] = STEP * (1 + (budget - least) // (next_one - least))
    return shapes


def start(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Where `train` begins: a checkpoint, or a new config.json and the common tokenizer."""
    checkpoint = getattr(arguments, name)
    if checkpoint:
        return {"model": checkpoint}
    if not arguments.tokenizer:
        raise SystemExit(f"give --tokenizer for random weights, or --{name} for a checkpoint")
    path: Path = arguments.work / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(make_configs(arguments)[name], indent=2).encode())
    return {"from_scratch": path, "tokenizer": str(arguments.tokenizer)}


def read_rows(arguments: argparse.Namespace) -> TrainingData:
    data = load_data([DataSource(path=arguments.train)], [DataSource(path=arguments.eval)])
    rows = data.train.shuffle(seed=0)
    return replace(data, train=rows.select(range(min(arguments.rows or len(rows), len(rows)))))


def one_run(arguments: argparse.Namespace, data: TrainingData, name: str, rate: float, seed: int) -> dict[str, Any]:
    """Train, evaluate after the last step: figures of one run, plain values."""
    begin = start(arguments, name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(begin.get("tokenizer") or begin["model"])
    ids = tokenizer(list(data.train["text"]), truncation=True, max_length=arguments.max_length)["input_ids"]
    recipe = Recipe(
        learning_rate=rate,
        warmup_ratio=0.1,
        weight_decay=0.01,
        epochs=arguments.tokens / sum(map(len, ids)),
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        eval_steps=10**9,  # so only at the end
        seed=seed,
    )
    output = arguments.work / f"{name}-{rate:g}-{seed}"
    result = train(data, output, **begin, recipe=recipe, console=Console(stderr=True))
    encoder = load_checkpoint(output).encoder
    return {
        "architecture": name,
        "learning_rate": rate,
        "seed": seed,
        "start": arguments.modernbert if name == "modernbert" else arguments.bert,
        "parameters": sum(tensor.numel() for tensor in encoder.parameters()),
        "tokens": result.tokens,
        "epochs": result.epoch,
        "texts_per_second": result.texts_per_second,
        "tokens_per_second": result.texts_per_second * sum(map(len, ids)) / len(ids),
        "machine": machine(),
        **result.metrics,
    }


def latency(arguments: argparse.Namespace, data: TrainingData, checkpoint: Path) -> float:
    """Median milliseconds of one text, of the checkpoint's exported bundle."""
    from nopad.runtime import load

    bundle = checkpoint.with_name(f"{checkpoint.name}-bundle")
    if code := nopad(["export", str(checkpoint), "--output", str(bundle)]):
        raise SystemExit(code)
    times = []
    with load(bundle, threads=arguments.threads) as model:
        for text in list(data.evaluation["text"])[:TIMED]:
            begin = time.perf_counter()
            model.predict([text])
            times.append(time.perf_counter() - begin)
    return 1000 * float(torch.tensor(times).median())


def as_table(runs: list[dict[str, Any]]) -> str:
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["architecture"], run["learning_rate"]), []).append(run)
    rows = []
    for (name, rate), own in groups.items():
        times = [run["latency_ms"] for run in own if "latency_ms" in run]
        rows.append(
            (
                f"{name}, {rate:g}",
                f"{own[0]['parameters']:,}",
                f"{own[0]['tokens']:,}",
                shown(mean_interval([run["accuracy"] for run in own]), ".4f"),
                " ".join(f"{run['accuracy']:.4f}" for run in own),
                shown(mean_interval([run["texts_per_second"] for run in own]), ".1f"),
                f"{times[0]:.2f}" if times else "",
            )
        )
    head = ("architecture, learning rate", "parameters", "tokens", "accuracy", "of each seed", "training, texts/s")
    return table((*head, "bundle, ms a text"), rows)


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results: Path = arguments.work / "results.json"
    said = {key: str(value) for key, value in sorted(vars(arguments).items()) if key not in MORE}
    record = json.loads(results.read_text("utf-8")) if results.exists() else {"arguments": said, "runs": []}
    if record["arguments"] != said:
        raise SystemExit(f"{results} is of other arguments: name another --work")
    data = read_rows(arguments)
    done = {(run["architecture"], run["learning_rate"], run["seed"]): run for run in record["runs"]}
    for seed in range(arguments.seeds):
        for rate in map(float, arguments.learning_rates.split(",")):
            for name in SHAPES:  # in turns, so that what else the machine does meets both
                run = done.get((name, rate, seed))
                if run is None:
                    run = one_run(arguments, data, name, rate, seed)
                    record["runs"].append(run)
                if arguments.export and seed == 0 and "latency_ms" not in run:
                    run["latency_ms"] = latency(arguments, data, arguments.work / f"{name}-{rate:g}-{seed}")
                write_file(results, json.dumps(record, indent=2).encode())
    text = f"{machine()}; {len(data.train)} rows, {len(data.evaluation)} to evaluate\n\n{as_table(record['runs'])}\n"
    write_file(arguments.work / "table.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
