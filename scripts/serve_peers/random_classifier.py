"""A ModernBERT classifier with random weights, for comparisons of speed where no trained one is at hand.

python scripts/serve_peers/random_classifier.py TOKENIZER_FOLDER OUTPUT [--layers 12 --hidden 384]
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import ModernBertConfig, ModernBertForSequenceClassification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=384)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = ModernBertConfig(
        num_hidden_layers=options.layers,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 3 // 2,
        num_attention_heads=options.hidden // 64,
        classifier_pooling="mean",
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    model = ModernBertForSequenceClassification(config).eval()
    model.save_pretrained(options.output)
    for file in options.tokenizer.glob("*.json"):
        shutil.copyfile(file, options.output / file.name)


if __name__ == "__main__":
    main()
