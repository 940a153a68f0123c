"""Entities that a bundle finds in plain text, against those of a file of tagged words.

    python scripts/judge_tagger.py BUNDLE TEST

TEST is a file as `nopad train --task token-classification` reads it. Its words are put together with blanks between
them, the bundle answers as `nopad predict` does, and an entity counts if its kind and its characters (without
blanks before them) are right: of the
model's own tag scheme, and with each strategy of transformers' pipeline.
"""

import argparse

from nopad.runtime import load
from nopad.runtime.entities import entity_scores, read_tags, spans
from nopad.runtime.types import STRATEGIES
from nopad.training.tagged_texts import load_tagged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("test")
    arguments = parser.parse_args()
    with load(arguments.bundle) as model:
        data = load_tagged(arguments.test, arguments.test)
        tags, rows = read_tags(data.labels), data.evaluation
        truth = {
            (row, kind, words[first][0], words[last][1])
            for row, (words, labels) in enumerate(zip(rows["words"], rows["target"], strict=True))
            for kind, first, last in spans([tags[label] for label in labels])
        }
        for strategy in (None, *(name for name in STRATEGIES if name != "none")):
            answers = model.tag(rows["text"], **({} if strategy is None else {"strategy": strategy}))
            found = {
                (row, entity.label, entity.end - len(text[entity.start : entity.end].lstrip()), entity.end)
                for row, (text, answer) in enumerate(zip(rows["text"], answers, strict=True))
                for entity in answer.entities
                if entity.label != "O"
            }
            scores = entity_scores([found], [truth])
            print(f"{strategy or 'own'}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
