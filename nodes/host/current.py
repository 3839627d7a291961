"""The host in use, of this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .comfyui import ComfyHost
from .plain import PlainHost

if TYPE_CHECKING:
    from .protocol import Host

_host: Host | None = None


def current_host() -> Host:
    """The host in use: ComfyUI where its modules are loaded, else what :func:`use_host` was given."""
    global _host
    if _host is None:
        if "folder_paths" in sys.modules:
            _host = ComfyHost()
        else:
            here = Path.cwd()
            _host = PlainHost(here / "models", here / "input", here / "output")
    return _host


def use_host(host: Host | None) -> None:
    """Sets the host for this process; ``None`` goes back to finding it out."""
    global _host
    _host = host
