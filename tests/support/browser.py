"""A real headless Chromium, driven over its debugging pipe: the tests of the HTML report look at it there."""

import base64
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """The browser's executable: on the path, or installed by Playwright."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    folder = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", os.path.expanduser("~/.cache/ms-playwright"))
    return next(iter(sorted(glob(f"{folder}/chromium*/chrome*/chrome"))), None)


def violations(page: "Page") -> list[tuple[str, list[str]]]:
    """The rules of axe-core that the page as it now is breaks, each with the elements that do."""
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("no axe-core here: pip install 'nopad[test-pages]'")
    page.value(Path(package.origin).with_name("axe.min.js").read_text("utf-8") + ";0")
    found = json.loads(page.value("axe.run().then(({violations}) => JSON.stringify(violations))"))
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


class Page:
    """A tab. `problems` are its console errors, uncaught exceptions and failed or forbidden requests."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._count, self._session = 0, ""
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, page: Path | str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """A file, or a URL."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not self._loaded:
            self._next()

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression; of a promise, what it becomes."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression[:200]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> Any:
        """The expression's value once it is true."""
        end = time.monotonic() + seconds
        while (found := self.value(expression)) in (None, False, 0, ""):  # an element comes as {}
            assert time.monotonic() < end, f"never true: {expression}; problems: {self.problems}"
            time.sleep(0.05)
        return found

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        where = self.value(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.scrollIntoView("
            "{block: 'center', behavior: 'instant'}); const box = node.getBoundingClientRect(); "
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2} })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def press(self, key: str, *, control: bool = False, shift: bool = False, code: int = 0) -> None:
        """A key of the keyboard, by its name in `KeyboardEvent.key`; `code`: its Windows code."""
        text = {"Enter": "\r"}.get(key, "") if not control else ""
        keys = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 * control + 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def type(self, selector: str, text: str) -> None:
        """Into a field, in the place of what it holds."""
        self.value(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.focus(); node.select() }})()"
        )
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Of a select, whose list is no part of the page."""
        self.value(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.value = {json.dumps(value)}; "
            "node.dispatchEvent(new Event('change', {bubbles: true})) })()"
        )

    def picture(self, path: Path, *, top: int = 0, height: int | None = None) -> None:
        """A PNG of the page from `top` down, by default to its end."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        screenshot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(screenshot["data"]))

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium has ended")
            message += byte
        answer: dict[str, Any] = json.loads(message)
        parameters = answer.get("params", {})
        match answer.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.problems.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
        return answer


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A page of a new browser with an empty profile."""
    there_read, here_write = os.pipe()
    here_read, there_write = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4: keep ours out of the shell's way.
    far = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (there_read, there_write)]
    for end in (there_read, there_write):
        os.close(end)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        shell = ["bash", "-c", f'exec "$@" 3<&{far[0]} 4>&{far[1]}', "bash"]
        process = subprocess.Popen(
            [*shell, str(chromium()), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=far,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in far:
            os.close(end)
        page = None
        try:
            page = Page(here_read, here_write)
            yield page
        finally:
            if page is not None:
                with contextlib.suppress(OSError, RuntimeError):
                    page.call("Browser.close")
                page._read.close()
                with contextlib.suppress(OSError):
                    page._write.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
