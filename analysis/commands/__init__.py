"""`nopad analyze`."""
