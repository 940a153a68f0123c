"""`nopad export`, `nopad parity` and `nopad demo`."""
