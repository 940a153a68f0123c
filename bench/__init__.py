"""Measured comparisons: engines and competitors on the same texts, threads and machine. May import every other part."""
