"""A process of our own beside this one: a line of JSON at a time to it and from it, ended at once where it must."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class Child:
    """The process, and what it says.

    Args:
        program: a file of this pack, run by this interpreter with nothing of it imported.
        settings: environment variables beside those of this process.

    Raises:
        OSError, ValueError: it cannot be started.
    """

    def __init__(self, program: Path, settings: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # libraries write addresses with signatures there
            stderr=subprocess.DEVNULL,
            env={**os.environ, **settings},
            # no window on Windows
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        # it has ended
        self._lines.put(b"")

    def send(self, line: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            # it has ended, and heard() says so
            pass

    def heard(self, timeout: float) -> dict[str, Any] | None:
        """The next line, or ``error`` and ``why`` where it has ended; None where nothing comes in that many seconds."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            return None
        if not line:
            return {"error": "other", "why": "its process ended"}
        try:
            return json.loads(line)
        except ValueError:
            # a library's own words
            return None

    def end(self) -> None:
        """Ends it at once, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
