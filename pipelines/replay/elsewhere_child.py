"""Renders cells for ``elsewhere.py``, in a process that has kernels of its own. It is run as a file."""

from __future__ import annotations

import base64
import importlib
import json
import os
import queue
import sys
import threading
import types
from pathlib import Path
from typing import Any


def _listen(lines: queue.SimpleQueue[dict[str, Any]]) -> None:
    while line := sys.stdin.buffer.readline():
        lines.put(json.loads(line))
    # who started it is gone
    os._exit(1)


def main() -> None:
    """Renders each cell that comes in, until it is ended."""
    out = sys.stdout.buffer
    # what libraries print is not for who listens
    sys.stdout = sys.stderr

    def say(**line: Any) -> None:
        out.write(json.dumps(line).encode() + b"\n")
        out.flush()

    lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    start = lines.get()
    sys.path[:] = start["path"]
    # the pack by the name that cells have from where they come; its nodes, which ask for a host, are not imported
    package = types.ModuleType(start["package"])
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules[package.__name__] = package
    renderer = importlib.import_module(f"{package.__name__}.pipelines.replay.rendering")
    render = renderer.renderer(start["threads"], lambda text: say(stage=text))
    while True:
        try:
            pixels, report = render(lines.get()["cell"])
        except Exception as error:
            # another one's traceback would be of no use to who listens
            say(failed=renderer.in_words(error))
        else:
            say(pixels=base64.b64encode(pixels).decode(), shape=list(pixels.shape), report=report)


if __name__ == "__main__":
    main()
