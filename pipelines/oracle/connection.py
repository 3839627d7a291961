"""HTTP calls to one engine, with failures in words and the token in none of them.

``urllib`` would follow a redirection with the token, and go through the proxy that the environment names; this does
neither. Errors have no cause attached: what the standard library raises quotes what was received.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from ..errors import OracleError
from ..pictures.saving import reason
from ..words import printable, shown
from .arriving import Silence, arriving
from .protocol import REQUEST_ID_HEADER, TOKEN_HEADER, Frame, Misunderstanding, frames, parse_object

if TYPE_CHECKING:
    from ..observer import Observer
    from .access import Address, Token

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0  # of the short calls; a picture has its own limit
_CANCEL_SECONDS = 5.0
_LARGEST_JSON = 1 << 23  # bytes
_WORDS = 300  # letters of the engine's own


class Gone(OracleError):
    """The engine does not answer, or lets us in no more: there is no use in asking again."""


class Refused(OracleError):
    """The engine answers a request with an error."""


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        status: of HTTP.
        body: all of it.
    """

    status: int
    body: bytes


class Connection:
    """The engine at an address; every call opens a connection of its own, as the engine serves them.

    Args:
        address: of the engine.
        token: sent with every call but the first question, whether an engine is there.
        observer: asked for interruption while an answer is waited for.
    """

    def __init__(self, address: Address, token: Token, observer: Observer) -> None:
        self._address = address
        self._token = token
        self._observer = observer

    def get_object(self, path: str, *, with_token: bool = True) -> dict[str, Any]:
        """A JSON object.

        Raises:
            Gone, Refused, Misunderstanding: it does not come.
        """
        return self._object(self._ask("GET", path, with_token=with_token), path)

    def get_file(self, path: str, most: int) -> bytes:
        """A file of at most so many bytes; raises as :meth:`get_object`."""
        answer = self._ask("GET", quote(path), most=most)
        self._accept(answer, path)
        return answer.body

    def upload(self, path: str, name: str, content: bytes) -> dict[str, Any]:
        """Sends a file; the JSON object that answers it. Raises as :meth:`get_object`."""
        query = f"{path}?{urlencode({'name': name})}"
        return self._object(self._ask("POST", query, content, "application/octet-stream"), path)

    def cancel(self, path: str) -> None:
        """A call that asks for an end, short, and not interrupted itself. Raises as :meth:`get_object`."""
        self._accept(self._ask("POST", path, b"", seconds=_CANCEL_SECONDS, check=lambda: None), path)

    def stream(self, path: str, body: Mapping[str, Any], seconds: float) -> Iterator[str | Frame]:
        """The request's id, where the answer's head has it, and its frames.

        Args:
            path, body: of the request.
            seconds: without a frame before the wait ends.

        Raises:
            Gone, Refused, Misunderstanding: what ends it otherwise; or whatever the observer raises.
        """
        content = json.dumps(body).encode()

        def work(put: Callable[[Any], None], response: http.client.HTTPResponse) -> None:
            if response.status != 200:
                put(Answer(response.status, response.read(_LARGEST_JSON)))
                return
            put(response.headers.get(REQUEST_ID_HEADER, ""))
            for frame in frames(response.read):
                put(Frame(self._token.hidden_in(frame.type), self._token.hidden_in(dict(frame.header))))

        for item in self._exchange(
            "POST", path, content, "application/json", True, work, seconds, self._observer.check
        ):
            if isinstance(item, Answer):
                self._accept(item, path)
            else:
                yield item

    def _ask(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        kind: str = "application/json",
        *,
        with_token: bool = True,
        most: int = _LARGEST_JSON,
        seconds: float = _ANSWER_SECONDS,
        check: Callable[[], None] | None = None,
    ) -> Answer:
        def work(put: Callable[[Any], None], response: http.client.HTTPResponse) -> None:
            body = response.read(most + 1)
            if len(body) > most:
                raise Misunderstanding(f"The engine answers {path.partition('?')[0]} with more than {most:,} bytes.")
            length = response.length
            if length:
                raise http.client.IncompleteRead(b"", length)
            put(Answer(response.status, body))

        found = list(
            self._exchange(method, path, content, kind, with_token, work, seconds, check or self._observer.check)
        )
        return found[0]

    def _exchange(
        self,
        method: str,
        path: str,
        content: bytes | None,
        kind: str,
        with_token: bool,
        work: Callable[[Callable[[Any], None], http.client.HTTPResponse], None],
        seconds: float,
        check: Callable[[], None],
    ) -> Iterator[Any]:
        """What ``work`` makes of the answer's body, as it comes. The connection is closed after it, always."""
        opener = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = opener(self._address.host, self._address.port, timeout=_CONNECT_SECONDS)
        headers = {TOKEN_HEADER: self._token.header()} if with_token else {}
        if content is not None:
            headers["Content-Type"] = kind

        # the connection forgets its socket once an answer's head is there
        sockets: list[socket.socket] = []

        def run(put: Callable[[Any], None]) -> None:
            connection.connect()
            sockets.append(connection.sock)
            # who waits watches the clock
            connection.sock.settimeout(None)
            connection.request(method, path, content, headers)
            with connection.getresponse() as response:
                work(put, response)

        try:
            yield from arriving(run, seconds, check)
        except Silence:
            raise Gone(f"The engine at {self._address} sent nothing for {seconds:g} seconds.") from None
        except http.client.IncompleteRead:
            raise Misunderstanding(
                "The engine's answer ends before it is whole: the engine was stopped, or the connection was."
            ) from None
        except (http.client.HTTPException, ValueError):
            raise Misunderstanding(
                f"What runs at {self._address} does not speak HTTP as AI Toolkit's engine does. Check the address."
            ) from None
        except OSError as error:
            raise Gone(
                f"The engine at {self._address} cannot be reached: {reason(error)}. Start it; an engine.json of one "
                "that was killed stays behind, and a new one has another port."
            ) from None
        finally:
            # wakes the thread that reads
            for sock in sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _object(self, answer: Answer, path: str) -> dict[str, Any]:
        self._accept(answer, path)
        return self._token.hidden_in(parse_object(answer.body, f"an answer to {path}"))

    def _accept(self, answer: Answer, path: str) -> None:
        if answer.status == 200:
            return
        if answer.status == 401:
            raise Gone(
                f"The engine at {self._address} refuses the token. It draws a new one at every start: take that of the "
                "engine.json that it has written now."
            )
        words = self._words(answer.body)
        raise Refused(f"The engine answers {path.partition('?')[0]} with HTTP {answer.status}: {words}.")

    def _words(self, body: bytes) -> str:
        """What the engine says of an error, in quotes."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = body.decode(errors="replace").strip()
        if isinstance(value, dict):
            value = next((value[key] for key in ("error", "message", "detail") if value.get(key)), value)
        said = self._token.hidden_in(value)
        return shown(printable(said), _WORDS) if said and isinstance(said, str) else "no reason given"
