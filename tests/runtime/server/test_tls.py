"""TLS: files that do not fit are named, a real client connects, a renewed certificate is taken."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
if shutil.which("openssl") is None:
    pytest.skip("openssl is not installed", allow_module_level=True)

from certificates import make_certificate
from running_server import Running

from nopad.runtime.errors import UsageError
from nopad.runtime.server.tls import Tls


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "one")
    other, _ = make_certificate(tmp_path, "two")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nothing")
    for given, words in (
        ((tmp_path / "nowhere", key), "cannot read --tls-cert .*nowhere: No such file"),
        ((cert, tmp_path / "nowhere"), "cannot read --tls-key .*nowhere: No such file"),
        ((other, key), "the key in .*one-key.pem does not belong to the certificate in .*two.pem"),
        ((cert, locked), "locked.pem is encrypted"),
        ((nonsense, key), "are no PEM files"),
        ((cert, None), "one.pem are no PEM files of a certificate and its key: give that as --tls-key"),
    ):
        with pytest.raises(UsageError, match=words):
            Tls(*given)
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    assert Tls(both).context.get_ca_certs() == []


def test_a_client_connects_and_a_renewed_certificate_is_taken(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "one")
    running = Running({"default": None}, tls_cert=cert, tls_key=key, header_seconds=0.5).start()
    try:
        url = f"https://localhost:{running.port}"
        trust = ssl.create_default_context(cafile=str(cert))
        assert httpx.post(url + "/predict", json={"inputs": "a"}, verify=trust).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url + "/health")
        # Whoever speaks no TLS, or stops in the handshake, gets nothing, and does not stay.
        with socket.create_connection(("127.0.0.1", running.port), 10) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert not client.recv(100).startswith(b"HTTP")
        with socket.create_connection(("127.0.0.1", running.port), 10) as client:
            client.sendall(b"\x16\x03\x01")
            assert client.recv(100) == b""
        renewed, renewed_key = make_certificate(tmp_path, "two")
        renewed.replace(cert)  # no pair for the moment
        time.sleep(1.2)
        assert httpx.get(url + "/health", verify=trust).status_code == 200
        renewed_key.replace(key)
        trust = ssl.create_default_context(cafile=str(cert))
        end = time.monotonic() + 10
        while True:
            try:
                assert httpx.get(url + "/health", verify=trust).status_code == 200
                break
            except httpx.ConnectError:
                assert time.monotonic() < end
                time.sleep(0.1)
    finally:
        running.stop()
