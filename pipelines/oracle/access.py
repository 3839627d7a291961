"""Where the engine is and how it lets us in: an address that stays on this machine, a token that stays in memory."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import FileError, InputError
from ..jobs.previews import inside
from ..pictures.saving import reason
from ..words import shown

TOKEN_VARIABLE = "AITK_ENGINE_TOKEN"
ENGINE_FILE = "engine.json"
_LARGEST_FILE = 1 << 16  # bytes
# a shorter one could not be kept out of messages without making riddles of them
_TOKEN_LENGTHS = range(8, 513)
_HIDDEN = "[token]"
_LOCAL_NAME, _LOOPBACK = "localhost", "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """An engine's address.

    Attributes:
        scheme: ``http`` or ``https``.
        host, port: of the engine.
    """

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Token:
    """The engine's token. It writes itself as ``[token]``, and takes itself out of what the engine says."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return _HIDDEN

    def header(self) -> str:
        """For a request, and for nothing else."""
        return self._text

    def hidden_in(self, value: Any) -> Any:
        """JSON of the engine's with the token taken out of every text and name."""
        if isinstance(value, str):
            return value.replace(self._text, _HIDDEN)
        if isinstance(value, list):
            return [self.hidden_in(one) for one in value]
        if isinstance(value, dict):
            return {self.hidden_in(key): self.hidden_in(one) for key, one in value.items()}
        return value


def parse_address(url: str, *, remote: bool = False) -> Address:
    """Reads what the user typed.

    Args:
        url: ``http://127.0.0.1:PORT``.
        remote: whether another machine is allowed: prompts, paths and the token then leave this one.

    Raises:
        InputError: it is no address, has more in it than one, or leads off this machine.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        plain = url.isascii() and url.isprintable() and " " not in url
        usable = plain and parts.scheme in ("http", "https") and bool(host) and bool(port)
    except ValueError:
        raise InputError(f"--oracle is no address. {_HOW}") from None
    # what is wrong with it may be a token or a password that was typed into it: it is not shown
    if not usable or port is None:
        raise InputError(f"--oracle is no address. {_HOW}")
    if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InputError(
            f"--oracle has more in it than an address. {_HOW} The token comes from {ENGINE_FILE} or {TOKEN_VARIABLE}."
        )
    if not remote and not _is_loopback(host):
        raise InputError(
            f"--oracle leads to {shown(host)}, which is not this machine: prompts and the token would leave it. Use "
            "127.0.0.1, e.g. at the end of an SSH tunnel (ssh -L), or add --oracle-remote to allow it."
        )
    # the name is whatever a hosts file says, the number is not
    return Address(parts.scheme, _LOOPBACK if host == _LOCAL_NAME else host, port)


_HOW = "Write it like http://127.0.0.1:8765, with the port that the engine's engine.json has."


def find_token(address: Address, file: Path | None, job: Path, *, remote: bool = False) -> Token:
    """The engine's token: from the file that the user names, else the environment, else the job's folder.

    Args:
        address: where it will be sent; an engine.json of another port is refused.
        file: an engine.json.
        job: the job's folder. It may be anybody's, so that a link out of it is not followed.
        remote: whether the address may be another machine's; then the job's folder is not asked.

    Raises:
        FileError, InputError: there is none, or what is there is none.
    """
    if file is not None:
        return _from_file(file, address)
    text = os.environ.get(TOKEN_VARIABLE, "")
    if text:
        return _checked(text, f"The environment variable {TOKEN_VARIABLE}")
    found = job / ENGINE_FILE
    if not remote and inside(found, job):
        return _from_file(found, address)
    raise InputError(
        f"Nothing tells the token of the engine at {address}. Name its {ENGINE_FILE} by --oracle-file, or set "
        f"{TOKEN_VARIABLE}."
    )


def _from_file(path: Path, address: Address) -> Token:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise FileError(
            f"{shown(path.name)} cannot be read: {reason(error)}. It is made by a running engine."
        ) from error
    try:
        value = json.loads(content) if len(content) <= _LARGEST_FILE else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping):
        # nothing of it is shown, nor kept in a traceback: it may be half a file with a token in it
        raise FileError(
            f"{shown(path.name)} is none that AI Toolkit's engine writes. Name its {ENGINE_FILE}."
        ) from None
    port = value.get("port")
    if port != address.port:
        raise FileError(
            f"{shown(path.name)} is of an engine at port {shown(port)}, and --oracle names port {address.port}. Name "
            f"the {ENGINE_FILE} of that engine by --oracle-file, or correct the address."
        )
    return _checked(value.get("token"), f"The token in {shown(path.name)}")


def _checked(text: Any, what: str) -> Token:
    fits = isinstance(text, str) and len(text) in _TOKEN_LENGTHS and text.isascii() and text.isprintable()
    if not fits or " " in text:
        raise FileError(
            f"{what} is none that can be sent and kept secret: it is a text of {_TOKEN_LENGTHS[0]} to "
            f"{_TOKEN_LENGTHS[-1]} letters, digits and signs. Start the engine without a token of your own."
        )
    return Token(text)


def _is_loopback(host: str) -> bool:
    if host == _LOCAL_NAME:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name may be anybody's
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
