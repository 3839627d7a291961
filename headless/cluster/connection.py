"""The way to a Ray cluster. The only module that imports Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ...pipelines.errors import InputError
from ...pipelines.words import cut, shown

_LISTEN = 10.0  # seconds until nobody is taken to listen at an address
_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"  # Ray's own variable: how often it tries, a minute or less each time
_INSTALL = (
    'Install it: .venv/bin/python -m pip install "ray>=2.40" in this checkout, and on every machine of the cluster.'
)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster that runs.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"--ray needs Ray, which is not installed. {_INSTALL}") from error
    try:
        _check_listening(address)
        with _one_attempt():
            # the workers speak through the driver alone
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        why = cut(str(error).rstrip(". "), 300)
        raise InputError(
            f"No Ray cluster answers at --ray {shown(address)}: {why}. Start one with 'ray start --head', and give the "
            "address that it prints, or auto on one of its machines."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises OSError or ValueError where nobody listens: Ray itself would ask for twenty minutes, and say nothing."""
    # auto and ray://... are Ray's own to find, which it does at once
    where = urlsplit(f"//{address}")
    if "://" not in address and where.port is not None:
        socket.create_connection((where.hostname or "", where.port), _LISTEN).close()


@contextmanager
def _one_attempt() -> Iterator[None]:
    """Has Ray try once to connect, for about a minute, and not twenty times."""
    before = os.environ.get(_ATTEMPTS)
    os.environ.setdefault(_ATTEMPTS, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ATTEMPTS]
