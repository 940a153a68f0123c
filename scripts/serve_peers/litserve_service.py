"""The same library behind LitServe, which batches by itself.

    python scripts/serve_peers/litserve_service.py CHECKPOINT --port 8002 [--embed] [--dtype bfloat16]

POST /predict {"text": "..."}.
"""

from typing import Any

import litserve
from library_model import open_model, read_arguments

options = read_arguments(__doc__)


class Service(litserve.LitAPI):
    """The model in LitServe's worker process."""

    def setup(self, device: str) -> None:
        """Called in the worker."""
        self.answer = open_model(options)

    def decode_request(self, request: dict[str, Any]) -> str:
        """The text of a request."""
        return request["text"]

    def predict(self, texts: list[str]) -> list[Any]:
        """A batch, as LitServe has filled it."""
        return self.answer(texts)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The answer to one text."""
        return {"output": output}


if __name__ == "__main__":
    service = Service(max_batch_size=options.batch, batch_timeout=options.window_ms / 1000)
    server = litserve.LitServer(service, accelerator="cpu", workers_per_device=1, timeout=False, fast_queue=True)
    server.run(
        host="127.0.0.1", port=options.port, num_api_servers=1, log_level="warning", generate_client_file=False,
        access_log=False,
    )  # fmt: skip
