"""What a file holds, in 64 hex digits: read whole once, and known again by the file's stamp."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import FileError
from ..files.header import FileStamp
from ..pictures.saving import replace_file

SUFFIX = ".sha256"
LARGE = 1 << 26  # bytes of a file that no run waits for
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 24  # bytes that are in memory at a time


class FileDigests:
    """SHA-256 of whole files; of those that were read before, in any process, it is read from a folder.

    A text encoder has up to 48 GB. A digest of samples would be soon made, and the same for two files of which one had
    a single row of the vocabulary changed.

    Args:
        folder: where digests are kept, each under that of its file's stamp; None keeps them in memory alone.
    """

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        self._folder = folder
        self._known: dict[FileStamp, str] = {}

    def knows(self, stamp: FileStamp) -> bool:
        """Whether a file's digest is to be had without reading the file."""
        return stamp in self._known or self._remembered(stamp) is not None

    def told(self, stamp: FileStamp) -> str | None:
        """The digest for people, where it is to be had without reading the file; else None.

        One that was made before, or the one that the hub gave: huggingface_hub calls a large file in its cache by its
        SHA-256.
        """
        real = stamp.path.resolve()
        by_hub = real.name if real.parent.name == "blobs" and _DIGEST.fullmatch(real.name) else None
        return self._known.get(stamp) or self._remembered(stamp) or by_hub

    def of(self, stamp: FileStamp) -> str:
        """The digest of a file as it was stamped.

        Raises:
            FileError: it cannot be read, or is another one by now.
        """
        if FileStamp.of(stamp.path) != stamp:
            raise FileError(f"{stamp.path.name!r} was replaced after its node ran. Run again.")
        path, known = self._place(stamp), self._known.get(stamp)
        if known is None and (known := self._remembered(stamp)) is None:
            known = _read(stamp)
            _keep(path, known)
        elif not _use(path):
            _keep(path, known)
        self._known[stamp] = known
        return known

    def _remembered(self, stamp: FileStamp) -> str | None:
        path = self._place(stamp)
        with suppress(OSError, ValueError):
            if path is not None and path.is_file() and path.stat().st_size == 64:
                return digest if _DIGEST.fullmatch(digest := path.read_text("ascii")) else None
        return None

    def _place(self, stamp: FileStamp) -> Path | None:
        folder = self._folder()
        text = f"{stamp.path.absolute()}\0{stamp.size}\0{stamp.mtime_ns}\0{stamp.inode}"
        # a path may hold a user's name
        name = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest() + SUFFIX
        return None if folder is None else folder / name


def _read(stamp: FileStamp) -> str:
    digest = hashlib.sha256()
    try:
        with stamp.path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
    except OSError as error:
        raise FileError(f"{stamp.path.name!r} cannot be read: {error.strerror}.") from error
    if FileStamp.of(stamp.path) != stamp:
        raise FileError(f"{stamp.path.name!r} was changed while it was read. Run again.")
    return digest.hexdigest()


def _keep(path: Path | None, digest: str) -> None:
    """Writes a digest; where it cannot be kept, its file is read again."""
    if path is not None:
        with suppress(OSError, FileError):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, digest.encode())


def _use(path: Path | None) -> bool:
    """Notes that a digest was used now; False where it is not there any more."""
    if path is not None:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:
            # of a folder that cannot be written nothing leaves either
            return True
    return True
