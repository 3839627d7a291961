"""The few HTTP calls to a ComfyUI server, with failures in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

from ..pipelines.errors import WorkflowError
from ..pipelines.pictures.saving import reason
from ..pipelines.words import cut, shown

_CONNECT_SECONDS = 20.0
_ANSWER_SECONDS = 180.0
"""A server that is busy loading a model answers slowly."""


def why(error: Exception) -> str:
    """The system's words for a failed connection, or the kind of failure."""
    cause = error.reason if isinstance(error, URLError) else error
    return reason(cause) if isinstance(cause, OSError) else type(error).__name__


def _shown_address(url: str) -> str:
    """The address in a message, without the password that may stand before the @; empty if it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return ""
    plain = url.isascii() and url.isprintable() and " " not in url
    return cut(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}") if usable and plain else ""


class Connection:
    """A ComfyUI server at ``url``, e.g. ``http://127.0.0.1:8188``.

    Every method raises WorkflowError if the server cannot be reached or answers with something else than expected.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = _shown_address(self.url)
        if not self.name:
            raise WorkflowError(f"Server {shown(url)} is not an address. Write it like http://127.0.0.1:8188.")

    def get_bytes(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        status, body = self._send(Request(self.url + path + (f"?{urlencode(query)}" if query else "")))
        return self._accepted(path, status, body)

    def get_json(self, path: str) -> dict[str, Any]:
        return self._object(path, self.get_bytes(path))

    def post_json(self, path: str, value: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Returns the status, which may be an error's, and the answer (empty where the server sends none)."""
        request = Request(self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"})
        status, body = self._send(request)
        if status >= 500:
            self._accepted(path, status, body)
        return status, self._object(path, body) if body else {}

    def upload_image(self, name: str, data: bytes, subfolder: str) -> str:
        """Puts a picture into the server's input folder, where it replaces one of that name.

        Returns:
            How a workflow names it there.
        """
        boundary = uuid4().hex
        fields = {"type": "input", "overwrite": "true", "subfolder": subfolder}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "%0D").replace("\n", "%0A")
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{quoted}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode()
        )
        body = b"".join([*parts, data, f"\r\n--{boundary}--\r\n".encode()])
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        status, answer = self._send(Request(f"{self.url}/upload/image", body, headers))
        stored = self._object("/upload/image", self._accepted("/upload/image", status, answer))
        return "/".join(filter(None, (stored.get("subfolder"), stored.get("name", name))))

    def websocket(self, client_id: str) -> Any:
        """Opens the channel on which the server reports what this client's prompts do."""
        import websocket

        try:
            return websocket.create_connection(
                f"ws{self.url.removeprefix('http')}/ws?clientId={client_id}", timeout=_CONNECT_SECONDS
            )
        except (websocket.WebSocketException, OSError) as error:
            raise self._unreachable(error) from error

    def _send(self, request: Request) -> tuple[int, bytes]:
        try:
            with urlopen(request, timeout=_ANSWER_SECONDS) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> WorkflowError:
        return WorkflowError(
            f"ComfyUI at {self.name} cannot be reached: {why(error)}. Start it, and check the address after --server."
        )

    def _accepted(self, path: str, status: int, body: bytes) -> bytes:
        if status != 200:
            words = body[:300].decode(errors="replace").strip()
            said = words or "no reason given"
            raise WorkflowError(f"ComfyUI at {self.name} answers {path} with HTTP {status}: {said}")
        return body

    def _object(self, path: str, body: bytes) -> dict[str, Any]:
        try:
            value = json.loads(body)
        except (RecursionError, ValueError):
            value = None
        if not isinstance(value, dict):
            raise WorkflowError(f"What runs at {self.name} does not answer {path} as ComfyUI does. Check the address.")
        return value
