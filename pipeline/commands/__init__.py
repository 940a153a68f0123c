"""`nopad run`."""
