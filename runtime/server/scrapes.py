"""`/metrics` on a port of its own, as text-embeddings-inference has it, for networks that keep scrapes apart."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nopad.runtime.errors import UsageError
from nopad.runtime.server.calls import Serving
from nopad.runtime.server.metrics import CONTENT_TYPE


@contextmanager
def scrapes(host: str, port: int, serving: Serving, *, shared: bool = False) -> Iterator[int]:
    """Answer GET /metrics on that port until the end of the `with`; yields the port (0 takes a free one).

    `shared`: with other processes of the same server, each of which answers for all.
    Raises `UsageError` where it cannot listen.
    """

    class Listener(ThreadingHTTPServer):
        allow_reuse_port = shared

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            serving.refresh_metrics()
            body = serving.metrics.text()
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not logged."""

    try:
        server = Listener((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error}; choose another --metrics-port") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="nopad-metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
