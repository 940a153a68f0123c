"""An HTML file that asks the network for nothing: its head, its style, its script, and the policy that says so."""

from __future__ import annotations

import hashlib
from base64 import b64encode

from nopad.charts.svg import escaped


def html_document(*, title: str, style: str, body: str, script: str = "") -> str:
    """The text of the file. `title` is text, `body` HTML; browsers run this style and script alone, by digest."""
    allowed = f"style-src '{_digest(style)}'" + (f"; script-src '{_digest(script)}'" if script else "")
    policy = f"default-src 'none'; {allowed}; img-src data:; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escaped(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def _digest(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
