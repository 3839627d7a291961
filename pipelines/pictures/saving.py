"""Files that appear under their names only when they are whole, and never in another one's place."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ..errors import FileError
from ..words import shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_DRAFT = re.compile(r"\.[0-9a-f]{32}\.part")
_LEFT_ALONE = 3600  # seconds
LONGEST_NAME = 255  # bytes: of ext4, APFS and NTFS alike, and of most others


def save_new(folder: Path, names: Iterable[str], write: Callable[[BinaryIO], None]) -> Path:
    """Writes a file under the first name that nobody has taken, not even another process in the meantime.

    It is written beside its place under a hidden name first. A program that is killed leaves that one behind, which a
    later save removes, see :func:`remove_leftovers`; on a file system without links it may also leave an empty file
    under the name that it had just taken.

    Args:
        folder: is there.
        names: in the order in which they are tried.
        write: fills the file.

    Raises:
        FileError: it cannot be written, e.g. because the disk is full; nothing is left.
    """
    name = ""
    try:
        with _draft(folder, write) as draft:
            for name in names:
                if _claim(draft, folder / name):
                    return folder / name
    except OSError as error:
        raise FileError(f"{shown(name or 'The file')} cannot be saved: {reason(error)}. {_ADVICE}") from error
    raise FileError(f"{shown(name)} cannot be saved: all of its names are taken.")


def remove_leftovers(folder: Path) -> None:
    """Removes the hidden files that killed programs left in a folder; never one that somebody still writes.

    Whoever writes one holds a lock on it, which ends with the program. Windows removes no file that is open. Where
    locks are not to be had, e.g. on some network shares, all of them stay. A file is left alone for its first hour: a
    lock is taken a moment after the file is made.
    """
    try:
        with os.scandir(folder) as entries:
            drafts = [entry for entry in entries if _DRAFT.fullmatch(entry.name)]
        for entry in drafts:
            old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFT_ALONE
            if old and entry.is_file(follow_symlinks=False):
                _remove_unlocked(Path(entry.path))
    except OSError:
        # tidying up is no reason to lose a picture; what is wrong with the folder, the save says
        return


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all, in the place of one that is there.

    Raises:
        FileError: it cannot be written.
    """
    try:
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        with _draft(path.parent, lambda file: file.write(raw)) as draft:
            draft.replace(path)
    except OSError as error:
        raise FileError(f"{shown(path.name)} cannot be saved: {reason(error)}. {_ADVICE}") from error


def make_folder(folder: Path, what: str) -> None:
    """Makes a folder where it is missing, and tries that a file can be written there.

    Args:
        folder: where files will be saved.
        what: names it in errors.

    Raises:
        FileError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _draft(folder, lambda file: file.write(b".")):
            pass
    except OSError as error:
        raise FileError(f"{what} cannot be used: {reason(error)}. {_ADVICE}") from error


def reason(error: OSError) -> str:
    """The system's words for what went wrong, without the path."""
    return error.strerror or type(error).__name__


_ADVICE = "Check that the folder is there, that you may write to it, and that the disk has room."


@contextmanager
def _draft(folder: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A whole file under a hidden name, which is gone after the block unless the block gave it another one."""
    path = folder / f".{uuid4().hex}.part"
    try:
        # "x": never through a link that somebody put there
        with path.open("xb") as file:
            _lock(file)
            write(file)
            file.flush()
            # a name must not outlive a power cut that its contents do not
            os.fsync(file.fileno())
            if fcntl is None:
                # Windows renames no open file
                file.close()
            yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _lock(file: BinaryIO) -> None:
    """Says to others that the file is being written. A file system without locks has none to say it with."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        if fcntl is not None:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        else:
            path.unlink()


def _claim(draft: Path, path: Path) -> bool:
    """Gives the draft its name; False where the name is taken."""
    try:
        if os.name == "nt":
            # refuses a name that is taken
            draft.rename(path)
        else:
            os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise
        # a file system without links, e.g. exFAT: the name is taken first, and filled in one step
        try:
            path.open("xb").close()
        except FileExistsError:
            return False
        try:
            draft.replace(path)
        except OSError:
            path.unlink()
            raise
    return True
