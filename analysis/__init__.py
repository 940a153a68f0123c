"""Where a model errs: its answers held to labelled texts, and to another model's (docs/analyze.md)."""
