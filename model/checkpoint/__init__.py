"""Checkpoint folders: finding, reading and writing them."""
