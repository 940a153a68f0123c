"""nopad."""
