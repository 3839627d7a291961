"""What a file holds, in 64 hex digits: read whole once, and known again by the file's stamp."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import FileError
from ..files.header import FileStamp
from ..pictures.saving import replace_file

SUFFIX = ".sha256"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 24  # bytes between two looks at the observer


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

    def of(self, stamp: FileStamp, check: Callable[[], None]) -> str:
        """The digest of a file as it was stamped.

        Args:
            stamp: of the file.
            check: called between pieces of a large one; raises to interrupt.

        Raises:
            FileError: it cannot be read, or is another one by now.
        """
        if FileStamp.of(stamp.path) != stamp:
            raise FileError(f"{stamp.path.name!r} was replaced after its node ran. Run again.")
        if stamp not in self._known:
            self._known[stamp] = self._remembered(stamp) or self._read(stamp, check)
        return self._known[stamp]

    def _remembered(self, stamp: FileStamp) -> str | None:
        path = self._place(stamp)
        with suppress(OSError, ValueError):
            if path is not None and path.is_file() and path.stat().st_size == 64:
                path.touch()
                return digest if _DIGEST.fullmatch(digest := path.read_text("ascii")) else None
        return None

    def _read(self, stamp: FileStamp, check: Callable[[], None]) -> str:
        digest = hashlib.sha256()
        try:
            with stamp.path.open("rb") as file:
                while piece := file.read(_CHUNK):
                    check()
                    digest.update(piece)
        except OSError as error:
            raise FileError(f"{stamp.path.name!r} cannot be read: {error.strerror}.") from error
        found = digest.hexdigest()
        if FileStamp.of(stamp.path) != stamp:
            raise FileError(f"{stamp.path.name!r} was changed while it was read. Run again.")
        if (path := self._place(stamp)) is not None:
            # where it cannot be kept, it is read again
            with suppress(OSError, FileError):
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, found.encode())
        return found

    def _place(self, stamp: FileStamp) -> Path | None:
        folder = self._folder()
        text = f"{stamp.path.absolute()}\0{stamp.size}\0{stamp.mtime_ns}\0{stamp.inode}"
        # a path may hold a user's name
        name = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest() + SUFFIX
        return None if folder is None else folder / name
