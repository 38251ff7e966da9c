"""Chromium without a window, driven over two pipes (Chrome DevTools Protocol): enough to type, click, wait and look."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe", "--window-size=1280,900", "--hide-scrollbars",
]  # fmt: skip


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLACES = (  # where it is not on PATH: what `playwright install chromium` makes, and a Mac's
    "~/.cache/ms-playwright/chromium-*/chrome-linux*/chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


def executable() -> str | None:
    """The path of a Chromium, if there is one; MINIGPT_BROWSER may name it."""
    named = os.environ.get("MINIGPT_BROWSER", "")
    found = [path for name in (named, *NAMES) if name and (path := shutil.which(name))]
    found += [path for place in PLACES for path in sorted(glob(os.path.expanduser(place)))[-1:]]
    return found[0] if found else None


def _is_missing() -> bool:
    if os.environ.get("MINIGPT_NEED_BROWSER") == "1":
        return False  # a test without one fails then
    return executable() is None


needed = pytest.mark.skipif(_is_missing(), reason="no Chromium is installed (MINIGPT_NEED_BROWSER=1 makes that a failure)")


class Page:
    """One tab."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._buffer, self._count = reading, writing, b"", 0
        self.session = ""
        self.complaints: list[str] = []  # exceptions, console errors, dialogs
        self.requests: list[str] = []  # addresses asked for
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, timeout_s: float = 30, **params: Any) -> dict[str, Any]:
        """The result of one command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]  # type: ignore[no-any-return]
            self._note(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._reading, 1 << 16) if ready else b""
            if not piece:
                raise TimeoutError("the browser did not answer")
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"].get("exception", {}).get("description")))
        if event.get("method") == "Page.javascriptDialogOpening":
            self.complaints.append(f"a dialog: {event['params']['message']}")
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.complaints.append(event["params"]["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Load an address."""
        self.call("Page.navigate", url=url)

    def wait(self, expression: str, timeout_s: float = 30) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression} stayed {value!r}; complaints: {self.complaints}")
            time.sleep(0.05)
        return value

    def theme(self, name: str) -> None:
        """Prefer the light or dark theme."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    @contextmanager
    def phone(self) -> Iterator[None]:
        """A screen that is 360 pixels wide."""
        self.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
        yield
        self.call("Emulation.clearDeviceMetricsOverride")

    def screenshot(self, path: Path) -> None:
        """A picture of the page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page in a browser of its own, with a new profile in `profile`."""
    chromium = executable()
    assert chromium is not None, "no Chromium is found: install one, or name it in MINIGPT_BROWSER"
    (child_reads, we_write), (we_read, child_writes) = os.pipe(), os.pipe()
    script = f'exec "$@" 3<&{child_reads} 4>&{child_writes}'
    command = ["bash", "-c", script, "bash", chromium, *FLAGS, f"--user-data-dir={profile}"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=(child_reads, child_writes), stdin=quiet, stdout=quiet, stderr=quiet)
    os.close(child_reads), os.close(child_writes)
    try:
        yield Page(we_read, we_write)
    finally:
        os.close(we_write)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(we_read)
