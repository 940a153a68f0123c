"""Sentences about films in English and Chinese, to train small tokenizers and models on. Helpers, no tests."""

from __future__ import annotations

from itertools import product
from typing import Any

DULL, SPLENDID = "这部电影很无聊", "这部电影太精彩了"
# What no training row has.
TOLD = {
    DULL: "dull",
    SPLENDID: "splendid",
    "this film was boring": "dull",
    "this film is truly splendid": "splendid",
}
LABELS = ("dull", "splendid")
CHINESE = (
    ("这部电影", "这部片子", "影片的剧情", "演员的表演", "这个故事", "电影的结局"),
    ("很", "太", "非常", "真的"),
    (("无聊", "乏味", "难看", "沉闷"), ("精彩", "好看", "感人", "出色")),
    ("", "了", "，我看完了"),
)
ENGLISH = (
    ("this film ", "that movie ", "its story ", "the acting ", "the ending "),
    ("is ", "was ", "seemed ", "is truly "),
    (("boring", "dull", "awful", "dreary"), ("splendid", "superb", "moving", "lovely")),
    ("", " to me", ", I thought"),
)


def bilingual_rows() -> list[dict[str, Any]]:
    """Every sentence that the two languages' parts make, with the words of both labels; without those of `TOLD`."""
    return [
        {"text": f"{what}{how}{word}{end}", "label": LABELS[label]}
        for subjects, manners, words, ends in (CHINESE, ENGLISH)
        for what, how, end in product(subjects, manners, ends)
        for label in range(2)
        for word in words[label]
        if f"{what}{how}{word}{end}" not in TOLD
    ]
