"""Self-made certificates for localhost. A helper, no tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

EXTENSION = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key, in PEM."""
    cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", f"/CN={name}", "-addext", EXTENSION]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return cert, key
