"""`nopad train`."""
