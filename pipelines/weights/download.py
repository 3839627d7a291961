"""A download that is watched: how much comes and whether there is room, how far it is, and how it is stopped.

It runs in a process of its own (``download_child.py``), which is ended where the user presses Cancel.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..amounts import duration, share, size
from ..errors import HubError
from ..machine.child import Child

if TYPE_CHECKING:
    from ..observer import Observer

_CHILD = Path(__file__).with_name("download_child.py")
_PIECE = 1 << 24  # bytes that are asked for at once, at most
_ASK_EVERY = 0.1  # seconds between two looks at the observer
_SHOW_EVERY = 0.5  # seconds
_SPEED_OVER = 20.0  # seconds


class DownloadError(Exception):
    """Why a download failed.

    Attributes:
        kind: ``gated``, ``missing``, ``unreachable`` or ``other``.
        why: a few words, without addresses.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind = kind
        self.why = why


def download(repo_id: str, patterns: Sequence[str], observer: Observer) -> Path:
    """Brings files of a repository into Hugging Face's cache; goes on where an earlier call was stopped.

    Args:
        repo_id: whose.
        patterns: which files.
        observer: told how far it is; where it raises, the download ends at once.

    Returns:
        The snapshot's folder.

    Raises:
        HubError: the disk has no room for it.
        DownloadError: it failed otherwise.
    """
    observer.stage(f"asking the hub for the files of {repo_id}")
    with _child() as child:
        child.send({"repo_id": repo_id, "patterns": list(patterns), "path": list(map(str, sys.path)), "most": _PIECE})
        shown = _Shown(repo_id, observer)
        while True:
            said = child.heard(_ASK_EVERY)
            observer.check()
            if said is None:
                shown.again()
            elif "folder" in said:
                shown.end()
                return Path(said["folder"])
            elif "error" in said:
                raise DownloadError(said["error"], said["why"])
            elif "plan" in said:
                _check_room(repo_id, said["plan"] - said["there"])
                shown.begin(said["plan"], said["there"])
                child.send({})
            else:
                shown.done(said["done"])


class _Shown:
    """What the observer is told of a download."""

    def __init__(self, repo_id: str, observer: Observer) -> None:
        self._repo_id = repo_id
        self._observer = observer
        self._total = self._there = self._done = 0
        self._start = self._next = time.monotonic()
        # when, and how much was there
        self._past: deque[tuple[float, int]] = deque()

    def begin(self, total: int, there: int) -> None:
        self._total, self._there, self._start = total, there, time.monotonic()
        self.done(there)

    def done(self, count: int) -> None:
        self._done = count
        self.again()

    def again(self) -> None:
        now = time.monotonic()
        if not self._total or now < self._next:
            return
        self._next = now + _SHOW_EVERY
        self._past.append((now, self._done))
        while now - self._past[0][0] > _SPEED_OVER:
            self._past.popleft()
        text = f"downloading {self._repo_id}: {share(self._done, self._total)}"
        since, before = self._past[0]
        if now - since >= 1 and self._done > before:
            speed = (self._done - before) / (now - since)
            text += f", {size(speed)}/s, {duration(max(0, self._total - self._done) / speed)} left"
        self._observer.progress(text)

    def end(self) -> None:
        if self._total:
            took = duration(time.monotonic() - self._start)
            self._observer.stage(f"downloaded {self._repo_id}: {size(self._total - self._there)} in {took}")


@contextmanager
def _child() -> Iterator[Child]:
    """Starts the process, and ends it on the way out."""
    from huggingface_hub import constants

    # as this process has them: it may have been told otherwise since its start
    settings = {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_CACHE": str(constants.HF_HUB_CACHE),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    try:
        child = Child(_CHILD, settings)
    except (OSError, ValueError) as error:
        raise DownloadError("other", "its process cannot be started") from error
    try:
        yield child
    finally:
        child.end()


def _check_room(repo_id: str, needed: int) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HubError(
            f"{repo_id!r} needs {size(needed)} more, and the disk of Hugging Face's cache has {size(free)} free. Make "
            "room on it, or set the environment variable HF_HOME to a folder on another disk and start again."
        )
