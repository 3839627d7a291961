"""A page in a headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from websocket import WebSocket, create_connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 30.0  # seconds; a page of two megabytes of script on a busy machine
POLL = 0.05  # seconds
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--lang=en-US",
    "--window-size=1280,800", "--remote-debugging-port=0",
    # nothing is asked of other servers: neither by the page nor by the browser
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking",
)  # fmt: skip


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[str]:
    """Runs the browser with an empty profile; gives the address that it is driven at."""
    process = subprocess.Popen(
        [program, *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = profile / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        # its first line is the port, and the second is written with it
        while not (port.is_file() and len(port.read_text().splitlines()) > 1):
            assert process.poll() is None, f"{program} ended with {process.returncode}"
            assert time.monotonic() < end, f"{program} opens no port"
            time.sleep(POLL)
        yield f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def open_page(browser: str, address: str) -> Iterator[Page]:
    with urlopen(Request(f"{browser}/json/new?about:blank", method="PUT")) as answer:
        socket = create_connection(json.load(answer)["webSocketDebuggerUrl"], timeout=PATIENCE, suppress_origin=True)
    try:
        page = Page(socket)
        for domain in ("Runtime", "Log", "Page"):
            page.call(f"{domain}.enable")
        page.call("Page.navigate", url=address)
        yield page
        page.call("Page.close")
    finally:
        socket.close()


class Page:
    """A tab. ``complaints`` holds what its console said as warning or error, each with the scripts that it came by."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._calls = 0
        self.complaints: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while (message := json.loads(self._socket.recv())).get("id") != self._calls:
            self._note(message["method"], message["params"])
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def evaluate(self, script: str) -> Any:
        """The value of an expression; of a promise, what it holds."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, f"{script}: {json.dumps(found['exceptionDetails'])}"
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.evaluate(script)):
            assert time.monotonic() < end, f"{script} does not become true; the console says {self.complaints[-5:]}"
            time.sleep(POLL)
        return found

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        if event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(about))
        if event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(about["entry"]))
