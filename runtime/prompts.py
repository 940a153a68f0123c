"""The prompts of an embedding model or a cross-encoder: words that are put before a text."""

from __future__ import annotations

from collections.abc import Sequence

from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Manifest

# Where sentence-transformers' `encode_query` and `encode_document` look for their prompt: names, the first one first.
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def prompt_name_of(manifest: Manifest, names: Sequence[str]) -> str | None:
    """The first of `names` (`QUERY_PROMPTS` or `DOCUMENT_PROMPTS`) that the bundle has; None: its default prompt."""
    return next((name for name in names if name in manifest.prompts), None)


def resolve_prompt(manifest: Manifest, prompt_name: str | None, prompt: str | None) -> str:
    """The text of the prompt, as sentence-transformers resolves it. Raises `UsageError` for an unknown name."""
    if prompt is not None:
        if prompt_name is not None:
            raise UsageError("give either prompt or prompt_name, not both")
        return prompt
    name = manifest.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if name not in manifest.prompts:
        has = f"it has {', '.join(manifest.prompts)}" if manifest.prompts else "it has none"
        raise UsageError(f"the bundle has no prompt named {name!r}; {has}")
    return manifest.prompts[name]
