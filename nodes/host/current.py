"""The host in use, of this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .comfyui import ComfyHost, serve_answers
from .plain import PlainHost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .protocol import Answer, Host

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


def serve(answers: Mapping[str, Answer]) -> None:
    """Has ComfyUI's server answer the editor's questions, by path; where there is no ComfyUI there is no editor."""
    if "folder_paths" in sys.modules:
        serve_answers(answers)
