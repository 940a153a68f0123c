"""TLS: the certificate, checked before the server starts, and taken again when its files change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from nopad.runtime.errors import UsageError
from nopad.runtime.server.file_changes import FileChanges

log = logging.getLogger("nopad.server")


class Tls:
    """A server's certificate. TLS 1.2 and 1.3. `key` None: the key is in the file of the certificate.

    Raises `UsageError` for files that cannot be used.
    """

    def __init__(self, cert: Path, key: Path | None = None) -> None:
        self._cert, self._key = cert, key
        self._changes = FileChanges(*([cert, key] if key else [cert]))
        self.context = _context(cert, key)

    def renew(self) -> None:
        """Take renewed files for the connections to come; files that do not fit leave the old certificate there."""
        if not self._changes.seen():
            return
        try:
            _context(self._cert, self._key)  # a context that is in use must not be left with half a pair
            self.context.load_cert_chain(self._cert, self._key, _no_password)
        except (UsageError, OSError) as error:
            log.warning("%s; the certificate that was there before is still used", error)
        else:
            log.warning("took the renewed certificate in %s", self._cert)


def _context(cert: Path, key: Path | None) -> ssl.SSLContext:
    for path, option in ((cert, "--tls-cert"), (key, "--tls-key")):
        if path is not None:
            try:
                path.open("rb").close()
            except OSError as error:
                raise UsageError(f"cannot read {option} {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, _no_password)
    except _EncryptedError:
        raise UsageError(f"the key in {key or cert} is encrypted; decrypt it first: openssl pkey -in FILE") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"the key in {key or cert} does not belong to the certificate in {cert}") from None
        inside = "a certificate" if key else "a certificate and its key: give that as --tls-key"
        where = f"{cert} and {key}" if key else str(cert)
        raise UsageError(f"{where} are no PEM files of {inside}" + (" and of a key" if key else "")) from None
    return context


class _EncryptedError(Exception):
    """A key asks for its password."""


def _no_password() -> str:  # else OpenSSL would ask on the terminal
    raise _EncryptedError
