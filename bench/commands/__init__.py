"""`nopad bench` and `nopad bench compare`."""
