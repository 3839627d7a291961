"""A stand-in for AI Toolkit's inference engine over loopback, which speaks its protocol by the letter of its sources.

Written apart from the client: routes, keys and frames are those of server.py at 6e1b39c7 and protocol.py at 24916ec0 of
ostris/ai-toolkit. What it draws, a test decides: recorded previews, changed or not. All that is assumed here of the
engine is this:

* every route but ``/health`` answers 401 without the right ``X-Engine-Token``;
* ``/models`` answers ``{"archs": [{arch, modality, model, sample, needs_control_image, size_locked}]}``;
* ``/generate`` streams chunked frames: start, status, progress, latent, result, end; or start, error, end;
* the picture lies at ``/outputs/<request id>/0.png``, and assets are named by a path of the engine's own.
"""

from __future__ import annotations

import http.server
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlparse

TOKEN = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


def entry(arch: str, **other: Any) -> dict[str, Any]:
    """An architecture as ``/models`` has it."""
    return {
        "arch": arch, "modality": "image", "model": {"quantize": True, "qtype": "convrot8"},
        "sample": {"width": 1024, "height": 1024, "num_inference_steps": 25}, "needs_control_image": False,
        "size_locked": False, **other,
    }  # fmt: skip


@dataclass
class Failing:
    """How the server misbehaves: a test sets what it needs.

    Attributes:
        stop: set to let hanging answers end.
    """

    hangs: bool = False
    hangs_at_progress: bool = False
    cut_after: int | None = None  # bytes of the stream
    garbage: bytes | None = None  # instead of frames
    raw: bytes | None = None  # instead of HTTP
    error: str = ""  # an error frame's message
    refusal: tuple[int, bytes] | None = None  # of /generate
    stop: threading.Event = field(default_factory=threading.Event)


class EngineServer(http.server.ThreadingHTTPServer):
    """The engine.

    Args:
        draw: a request's body to a PNG file.

    Attributes:
        bodies: of every request to draw.
        cancelled: ids.
        assets: name -> content.
        seen: method and path of every call, with whether it had the token.
    """

    daemon_threads = True

    def __init__(self, draw: Callable[[dict[str, Any]], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.draw = draw
        self.archs: Any = [entry("zimage"), entry("lumina2"), entry("flux2")]
        self.failing = Failing()
        self.start: dict[str, Any] = {}  # added to the start frame
        self.result: dict[str, Any] = {}  # added to the result frame
        self.later: list[dict[str, Any]] = []  # frames of a later state
        self.bodies: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.assets: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, bool]] = []
        self.pictures: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left in the middle is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EngineServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._path()
        if path == "/health":
            self._json(200, {"ok": True, "busy": False, "queue": 0, "device": "cuda:0", "active": None})
        elif not self._let_in():
            return
        elif path == "/models":
            self._json(200, {"archs": self.server.archs})
        elif path.startswith("/outputs/") and path[9:] in self.server.pictures:
            self._send(200, self.server.pictures[path[9:]], "image/png")
        else:
            self._json(404, {"error": "not found"})

    def do_POST(self) -> None:
        path = self._path()
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._let_in():
            return
        if path == "/assets":
            (name,) = parse_qs(urlparse(self.path).query)["name"]
            self.server.assets[name] = content
            self._json(200, {"id": name, "path": f"/engine/assets/{name}", "bytes": len(content)})
        elif path.startswith("/cancel/"):
            self.server.cancelled.append(path[8:])
            self._json(200, {"ok": True})
        elif path == "/generate":
            self._generate(json.loads(content))
        else:
            self._json(404, {"error": "not found"})

    def _path(self) -> str:
        path = urlparse(self.path).path
        self.server.seen.append((self.command, path, "X-Engine-Token" in self.headers))
        return path

    def _let_in(self) -> bool:
        if self.headers.get("X-Engine-Token") == TOKEN:
            return True
        self._json(401, {"error": f"bad token {self.headers.get('X-Engine-Token')}"})
        return False

    def _generate(self, body: dict[str, Any]) -> None:
        self.server.bodies.append(body)
        failing = self.server.failing
        if failing.hangs:
            failing.stop.wait(60)
            return
        if failing.raw is not None:
            self.wfile.write(failing.raw)
            self.close_connection = True
            return
        if failing.refusal is not None:
            self._send(*failing.refusal, "application/json")
            return
        request = f"req{len(self.server.bodies)}"
        self.send_response(200)
        self.send_header("X-Request-Id", request)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if failing.garbage is not None:
            self._chunk(failing.garbage)
        else:
            sent = 0
            for piece in self._frames(request, body):
                left = len(piece) if failing.cut_after is None else max(0, failing.cut_after - sent)
                self._chunk(piece[:left])
                sent += len(piece)
                if left < len(piece):
                    self.close_connection = True
                    return
        self.wfile.write(b"0\r\n\r\n")

    def _frames(self, request: str, body: dict[str, Any]) -> Iterator[bytes]:
        def frame(type: str, payload: bytes = b"", **header: Any) -> bytes:
            text = json.dumps({"type": type, "request_id": request, **header}).encode()
            return struct.pack("<I", len(text)) + text + struct.pack("<Q", len(payload)) + payload

        model, sample = body["model"], body["sample"]
        loras = model.get("loras", [])
        start = {"model": model, "sample": sample, "loras": loras, "lora_mode": model.get("lora_mode")}
        yield frame("start", modality="image", **{**start, **self.server.start})
        yield frame("status", status="loading")
        for later in self.server.later:
            yield frame(**later)
        for step in (1, 2):
            yield frame("progress", step=step, total=2, elapsed=0.1)
            if self.server.failing.hangs_at_progress:
                self.server.failing.stop.wait(60)
        yield frame("latent", b"\0" * 200_000, shape=[1, 1], dtype="float16", layout="BCHW", step=1, total=2)
        if self.server.failing.error:
            yield frame("error", message=self.server.failing.error, cancelled=False, traceback="secret traceback")
            yield frame("end", status="error")
            return
        self.server.pictures[f"{request}/0.png"] = self.server.draw(body)
        size = {"width": sample["width"], "height": sample["height"]}
        yield frame(
            "result",
            **{"path": f"/engine/outputs/{request}/0.png", "relpath": f"{request}/0.png", "kind": "image", "ext": "png",
               "seed": sample["seed"], "bytes": 1, "seconds": 0.5, "steps": 2, **size, **self.server.result},
        )  # fmt: skip
        yield frame("end", status="done")

    def _chunk(self, piece: bytes) -> None:
        if piece:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def running(draw: Callable[[dict[str, Any]], bytes]) -> Iterator[EngineServer]:
    """An engine while the block runs."""
    server = EngineServer(draw)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.failing.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
