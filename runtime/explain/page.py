"""Explanations as people and programs read them: marked text, an HTML page without requests, and a JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from nopad.charts.standalone import plain_page
from nopad.charts.svg import escaped
from nopad.runtime.types import Attribution, Explanation, Text

SHADES = 8  # of each of the two colours
DEEPEST = 55  # per cent of the colour in the last of them: below it letters have a contrast of 4.5 in the dark, too
# Of a page that shows `marked` texts.
STYLE = "".join(
    f".{side}{shade} {{ background: color-mix(in srgb, var({colour}) {percent}%, var(--card)) }}\n"
    for side, colour in (("for", "--s0"), ("against", "--s1"))
    for shade, percent in ((shade, round(DEEPEST * shade / SHADES)) for shade in range(1, SHADES + 1))
) + (
    "mark { color: inherit; border-radius: 3px; padding: 1px 0 }\n"
    ".none { background: none }\n"
    ".text { color: var(--ink); white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; max-width: 60rem }\n"
)


class Segment(NamedTuple):
    """A piece of a text, and what it did; None for what lies between, and what was not read."""

    text: str
    attribution: Attribution | None
    shade: int  # -SHADES .. SHADES: against the label .. for it, beside the strongest of the text


def segments(text: Text, explanation: Explanation) -> Iterator[list[Segment]]:
    """The whole text in pieces, in its order; of a pair, of each of its two texts."""
    largest = max((abs(each.score) for each in explanation.attributions), default=0.0) or 1.0
    for part, whole in enumerate(text if isinstance(text, tuple) else (text,)):
        found, at = [], 0
        for each in explanation.attributions:
            if each.part != part:
                continue
            if each.start > at:
                found.append(Segment(whole[at : each.start], None, 0))
            shade = math.copysign(math.ceil(abs(each.score) / largest * SHADES - 0.5), each.score)
            found.append(Segment(each.text, each, int(shade)))
            at = each.end
        if at < len(whole):
            found.append(Segment(whole[at:], None, 0))
        yield found


def headline(explanation: Explanation) -> str:
    """The answer and how it was explained, in a line."""
    removed = f", removed words {'dropped' if explanation.removal == 'drop' else 'masked'}"
    return (
        f"{explanation.label} {explanation.score:.4f}: log-odds {explanation.value:+.2f}, with nothing of the text "
        f"{explanation.base_value:+.2f} ({explanation.method} by {explanation.by}{removed}, {explanation.runs} runs, "
        f"{explanation.engine})"
    )


def page(explained_texts: Sequence[tuple[Text, Explanation]]) -> str:
    """The text of an HTML file: each text with its words marked."""
    content = "".join(
        f"<section><h2>{escaped(explanation.label)} {explanation.score:.4f}</h2><p>{escaped(headline(explanation))}</p>"
        + f"{marked(text, explanation)}</section>"
        for text, explanation in explained_texts
    )
    lead = (
        "Blue speaks for the label, orange against it, the more so the darker; point at a word for its part of the "
        "log-odds, log(p / (1 - p))."
    )
    return plain_page("nopad explain", lead, content, STYLE)


def marked(text: Text, explanation: Explanation) -> str:
    """The whole text as HTML, each word in the shade of what it did; of a pair, its two texts."""
    return "".join(f'<p class="text">{_marked(part)}</p>' for part in segments(text, explanation))


def _marked(found: Iterable[Segment]) -> str:
    parts = []
    for text, attribution, shade in found:
        if attribution is None:
            parts.append(escaped(text))
            continue
        side = f"{'for' if shade > 0 else 'against'}{abs(shade)}" if shade else "none"
        parts.append(f'<mark class="{side}" title="{attribution.score:+.3f}">{escaped(text)}</mark>')
    return "".join(parts)


def explained(explanation: Explanation) -> dict[str, Any]:
    """An explanation as a JSON object, without its usage."""
    attributions = [
        {"start": each.start, "end": each.end, "text": each.text, "score": each.score}
        | ({"part": each.part} if each.part else {})
        for each in explanation.attributions
    ]
    return {
        "label": explanation.label,
        "score": explanation.score,
        "value": explanation.value,
        "base_value": explanation.base_value,
        "residual": explanation.residual,
        "method": explanation.method,
        "by": explanation.by,
        "removal": explanation.removal,
        "runs": explanation.runs,
        "precision": explanation.precision,
        "attributions": attributions,
    }
