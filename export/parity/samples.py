"""Sentences that every export is gated on: short and long, clean and odd, several scripts."""

SAMPLES: tuple[str, ...] = (
    "An hour of my life I want back.",
    "A tender, sharply written film that trusts its audience, and the two leads have never been better.",
    "ok",
    "The battery died after a week, the refund took two months, and nobody ever answered my letters.",
    "Not bad. Not bad at all!",
    "I expected little and got less: the plot is borrowed, the jokes are old, and the title announces the ending.",
    "Delivery on Tuesday at 14:30, order no. 4711-B, total 1,299.00 EUR incl. 19% VAT.",
    "Das Konzert war großartig, aber der Saal viel zu kalt.",
    "この映画は本当に素晴らしかった。また観たいです。",
    "Фильм затянут, но актёры вытягивают его до самого конца.",
    "emoji 🎬🍿 and\ttabs,\nnew lines   and    runs of spaces",
    "def f(x):\n    return {'a': x ** 2, \"b\": [x] * 3}  # code, quotes & symbols <br />",
    "WHY IS THIS SO GOOD??? I laughed, I cried, I called my mother, then I saw it again and did all three once more.",
    "The committee's report, published after months of hearings, runs to nine hundred pages and ends, in "
    "its final paragraph, that more hearings are needed; the minister welcomed it as a milestone, the opposition "
    "called it a doorstop, and the only copy in the library has already been borrowed for that purpose.",
)
PAIRS: tuple[tuple[str, str], ...] = (
    ("how long may an encoder's input be", "ModernBERT reads up to 8,192 tokens, sixteen times what BERT reads."),
    ("how long may an encoder's input be", "The recipe asks for two eggs and a little patience."),
    (
        "best time to plant tulips",
        "Tulip bulbs go into the ground in autumn, six weeks before the first frost.",
    ),
)
