"""Why a model gave a label: tokens, words or sentences, and what each did for the score (docs/explain.md)."""
