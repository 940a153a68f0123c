"""`python supervised.py HOW WORKERS`: the supervisor over workers that answer their process id, by plain sockets.

Prints {"port"} when the workers are ready; exits as `nopad` does. A client that says "die" or "hang" gets what it
asks for. HOW: "good"; "broken" and "crashing", while they load; "stubborn", which obeys no order; "once FILE": crashes
if FILE is there, which it is removed by.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nopad.runtime.errors import BundleError, NopadError
from nopad.runtime.server import workers
from nopad.runtime.server.listen import listening_on
from nopad.runtime.server.settings import Job, Settings
from nopad.runtime.server.worker import Beat, Failed


def work(job: Job, sockets: list[Any], line: Any) -> None:
    how = job.options["how"]
    if how == "broken":
        line.send(Failed(error=BundleError("no bundle at nowhere")))
        sys.exit(3)
    if how == "crashing":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("once"):
        marker = Path(how.split()[1])
        if marker.exists():
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    stuck = [0.0]
    serving = threading.Event()
    serving.set()
    sockets[0].settimeout(0.02)
    answering = threading.Thread(target=_answer, args=(sockets[0], serving, stuck), daemon=True)
    answering.start()
    while True:
        line.send(Beat(tasks={"m": "text-classification"}, stuck=stuck[0] and time.monotonic() - stuck[0]))
        if line.poll(0.05):
            order = line.recv()
            if order in ("drain", "retire") and how != "stubborn":
                serving.clear()
                answering.join()
                return


def _answer(listening: Any, serving: threading.Event, stuck: list[float]) -> None:
    while serving.is_set():
        try:
            client, _ = listening.accept()
        except OSError:
            continue
        with client:
            client.settimeout(5)
            word = client.recv(10)
            if word == b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == b"hang":
                stuck[0] = time.monotonic()
                time.sleep(60)
            client.sendall(str(os.getpid()).encode())


def main() -> int:
    workers.CLOSE_SECONDS = 0.2
    settings = Settings(workers=int(sys.argv[2]), drain_seconds=0.3, hang_seconds=2)
    job = Job(settings=settings, bundles={}, options={"how": sys.argv[1]})
    with listening_on(("127.0.0.1", 0), None) as sockets:
        port = sockets[0].getsockname()[1]
        supervisor = workers.Supervisor(
            job, sockets, ready=lambda tasks: print(json.dumps({"port": port}), flush=True), target=work
        )
        try:
            supervisor.run()
        except NopadError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
