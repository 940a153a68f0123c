"""A service of one's own as one would write it: FastAPI over the library, batches filled within a few milliseconds.

    python scripts/serve_peers/fastapi_service.py CHECKPOINT --port 8001 [--embed] [--dtype bfloat16]

Requests wait in a queue; one task takes the first, waits for more until the batch is full or the window is over, and
runs it in a thread, while the event loop goes on reading requests. POST / {"text": "..."}.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI
from library_model import open_model, read_arguments
from pydantic import BaseModel

options = read_arguments(__doc__)
answer = open_model(options)
waiting: asyncio.Queue[tuple[str, asyncio.Future[Any]]] = asyncio.Queue()


class Request(BaseModel):
    """A text."""

    text: str


async def run_batches() -> None:
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    while True:
        batch = [await waiting.get()]
        until = loop.time() + options.window_ms / 1000
        while len(batch) < options.batch:
            if not waiting.empty():
                batch.append(waiting.get_nowait())
                continue
            left = until - loop.time()
            if left <= 0:
                break
            try:
                batch.append(await asyncio.wait_for(waiting.get(), left))
            except TimeoutError:
                break
        try:
            answers = await loop.run_in_executor(thread, answer, [text for text, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            continue
        for (_, future), one in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(one)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(run_batches())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/")
async def predict(request: Request) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    await waiting.put((request.text, future))
    return {"output": await future}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=options.port, loop="uvloop", http="httptools", access_log=False)
