"""What explanations are worth, from the lines of `judge_explanations.py`: means with intervals, and the page's tables.

python scripts/explanations_table.py docs/explanations.json docs/explain.md     # the tables again
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from readme_benchmark import put
from scipy.stats import spearmanr

AREAS = ("deletion, drop", "deletion, mask", "insertion, drop", "insertion, mask")
Row = Mapping[str, Any]


def summary(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, Any]:
    """All figures; each mean with the half width of its 95 % interval and the number of texts."""
    by: dict[str, dict[str, Row]] = {
        name: {row["text"]: row for row in rows if row["method"] == name} for name in methods
    }
    by = {name: found for name, found in by.items() if found}
    ways = [("shapley, drop", "shapley, mask"), ("occlusion, drop", "occlusion, mask")]
    drawn = by["random"].values()
    within = np.array([row["residual"] for row in by.get("integrated-gradients", {}).values()])
    respaced = {name: [row["respaced"] for row in found.values() if "respaced" in row] for name, found in by.items()}
    return {
        "texts": {name: len(found) for name, found in by.items()},
        "words": mean([row["words"] for row in drawn]),
        "tokens": mean([row["tokens"] for row in drawn]),
        "areas": {name: {area: mean(_areas(found, found, area)) for area in AREAS} for name, found in by.items()},
        "less_than_random": {name: _differences(found, by["random"]) for name, found in by.items() if name != "random"},
        "drop_less_mask": {
            first: _differences(by[first], by[second]) for first, second in ways if first in by and second in by
        },
        "agreement": {
            f"{first} / {second}": mean(_correlations(by[first], by[second]))
            for first, second in combinations([name for name in by if name != "random"], 2)
        },
        "stability": {name: mean(found) for name, found in respaced.items() if found},
        "runs": {name: mean([row["runs"] for row in found.values()]) for name, found in by.items() if name != "random"},
        "seconds": {name: mean([row["seconds"] for row in found.values()]) for name, found in by.items()},
        "completeness": {
            "largest": float(within.max()),
            "median": float(np.median(within)),
            "within_1_percent": int((within <= 0.01).sum()),
            "texts": len(within),
        },
    }


def mean(values: Sequence[float]) -> dict[str, float]:
    """The mean and the half width of its 95 % interval, by the normal approximation."""
    found = np.array(values, dtype=np.float64)
    error = float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else math.inf
    return {"mean": float(found.mean()), "within": 1.96 * error, "texts": len(found)}


def _areas(found: Mapping[str, Row], texts: Mapping[str, Row], area: str) -> list[float]:
    return [found[text]["areas"][area] for text in texts if text in found]


def _differences(first: Mapping[str, Row], second: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """Of the areas, text by text: first less second."""
    return {area: mean(list(np.subtract(_areas(first, second, area), _areas(second, first, area)))) for area in AREAS}


def _correlations(first: Mapping[str, Row], second: Mapping[str, Row]) -> list[float]:
    """Spearman's rank correlation of the words' scores, of each text that both explained."""
    pairs = [(first[text]["scores"], second[text]["scores"]) for text in first if text in second]
    return [float(spearmanr(one, other).statistic) for one, other in pairs]


def write_page(figures: Mapping[str, Any], page: Path, *, check: bool = False) -> bool:
    """Put the tables into the page; with `check`, only compare. Returns whether they were there."""
    return put("\n".join(_lines(figures)) + "\n", page, "judged", check=check)


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    texts = figures["texts"]
    yield (
        f"The embedded model on {texts['random']} reviews of IMDb's test set, drawn at random from those of at most "
        f"{figures['longest']} tokens: {figures['words']['mean']:.0f} words, {figures['tokens']['mean']:.0f} tokens in "
        "the mean. "
        "± is half of a 95 % interval. CPU seconds of one thread, the judging included.\n"
    )
    heads = ("method", "texts", "runs", "CPU s", *(f"{area}{'ped' if 'drop' in area else 'ed'}" for area in AREAS))
    yield from _table(
        heads,
        texts,
        lambda name: [
            str(texts[name]),
            f"{figures['runs'][name]['mean']:.0f}" if name in figures["runs"] else "0",
            f"{figures['seconds'][name]['mean']:.2f}",
            *(_plain(figures["areas"][name][area]) for area in AREAS),
        ],
    )
    yield "\nLess the random order's area of the same text (deletion should be below 0, insertion above):\n"
    yield from _table(
        ("method", *heads[4:]),
        figures["less_than_random"],
        lambda name: [_signed(figures["less_than_random"][name][area]) for area in AREAS],
    )
    yield "\nDropped less masked, the same texts:\n"
    yield from _table(
        ("method", "texts", *heads[4:]),
        figures["drop_less_mask"],
        lambda name: [
            str(figures["drop_less_mask"][name][AREAS[0]]["texts"]),
            *(_signed(figures["drop_less_mask"][name][area]) for area in AREAS),
        ],
    )
    yield "\nAgreement, Spearman's rank correlation of the words' scores:\n"
    yield from _table(
        ("methods", "texts", "correlation"),
        figures["agreement"],
        lambda name: [str(figures["agreement"][name]["texts"]), _plain(figures["agreement"][name])],
    )
    yield ""
    yield from _sentences(figures)


def _sentences(figures: Mapping[str, Any]) -> Iterator[str]:
    whole, speed = figures["completeness"], figures["speed"]
    yield (
        f"- **Integrated gradients add up** within 1 % of the difference in {whole['within_1_percent']} of "
        f"{whole['texts']} texts: "
        f"at worst {100 * whole['largest']:.2g} %, {100 * whole['median']:.2g} % in the median."
    )
    for name, found in figures["stability"].items():
        correlation = f"rank correlation {_plain(found)} on {found['texts']} texts"
        yield f"- **Other blanks between the words**, {name}: {correlation}."
    packed, padded, alone = (speed[name] for name in ("packed", "transformers, padded", "one at a time"))
    yield (
        f"- **Speed**: {speed['variants of a text']} variants, of those that Shapley values ask for, of each of "
        f"{speed['texts']} reviews of any length: {speed['tokens']:,.0f} tokens, which a loop over padded batches of "
        "32 in transformers (fp32, SDPA) "
        f"makes {speed['padded']:,.0f}. CPU time on one thread: **packed {packed:.2f} s, padded {padded:.2f} s: "
        f"{padded / packed:.1f} times**; one variant at a time through the same graph {alone:.2f} s. "
        "Logits differ by at most "
        f"{speed['largest difference']:.1e}."
    )
    yield f"\n{figures['cpu']}, one thread, other work beside it: seconds of CPU, not of the clock."


def _table(heads: Sequence[str], names: Mapping[str, Any], cells: Callable[[str], list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for name in names:
        yield "| " + " | ".join((name, *cells(name))) + " |"


def _plain(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f} ± {found['within']:.3f}"


def _signed(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.3f} ± {found['within']:.3f}"


if __name__ == "__main__":
    write_page(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
