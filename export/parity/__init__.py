"""The gate: a bundle against transformers."""
