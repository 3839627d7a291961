"""A small hub: speaks as much of Hugging Face's API over loopback as huggingface_hub needs to download a repository."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/tiny"
PIECE = 1 << 16  # bytes that tests fetch at once
_CHUNK = 1 << 14


class Hub(http.server.ThreadingHTTPServer):
    """Serves one folder as the repository ``owner/tiny``; others are gated or not there.

    Attributes:
        fetched: files whose bytes were asked for, in order.
        asked: bytes of large files that were asked for.
        sent: those of them that were sent.
        ranges: whether it sends pieces of files; some mirrors do not.
        stops_after: bytes of large files, after which it sends nothing, but keeps the connections open.
        stopped: set when it does so.
        refused: how many requests for bytes are refused first, as when a signed address has ended.
        tokens: what came with requests for bytes.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fetched: list[str] = []
        self.tokens: set[str | None] = set()
        self.asked = self.sent = 0
        self.ranges = True
        self.stops_after: int | None = None
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.refused = 0
        self._counting = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def hold(self, count: int) -> None:
        """Counts bytes that are about to be sent, and waits where it is told to."""
        with self._counting:
            stop = self.stops_after is not None and self.sent + count > self.stops_after
            self.sent += 0 if stop else count
        if stop:
            self.stopped.set()
            self.go_on.wait(60)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = urlparse(self.path).path
        if "owner/gated" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if REPO not in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if "/resolve/" in path:
            return self._file(path.split(f"/resolve/{COMMIT}/")[1], with_body)
        files = {p.relative_to(self.server.folder).as_posix(): p for p in sorted(self.server.folder.rglob("*"))}
        files = {name: file for name, file in files.items() if file.is_file()}
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), {})
        siblings = [
            {"rfilename": name, "size": file.stat().st_size, "blobId": _etag(file)} for name, file in files.items()
        ]
        return self._send(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode(), {})

    def _file(self, name: str, with_body: bool) -> None:
        hub, file = self.server, self.server.folder / name
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}
        size = file.stat().st_size
        if not with_body:
            return self._send(200, b"", headers, size)
        hub.fetched.append(name)
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refused:
            hub.refused -= 1
            return self._send(403, b"", {})
        status, begin, end, asked = 200, 0, size - 1, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is not None and hub.ranges:
            begin, end = int(asked[1]), min(int(asked[2] or end), end)
            headers["Content-Range"] = f"bytes {begin}-{end}/{size}"
            status = 206
        with file.open("rb") as opened:
            opened.seek(begin)
            body = opened.read(end + 1 - begin)
        large = file.suffix == ".safetensors"
        hub.asked += len(body) if large else 0
        return self._send(status, body, headers, counted=large)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], length: int | None = None, counted: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for begin in range(0, len(body), _CHUNK):
                chunk = body[begin : begin + _CHUNK]
                if counted:
                    self.server.hold(len(chunk))
                self.wfile.write(chunk)
        except OSError:
            # whoever asked is gone
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@lru_cache
def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
