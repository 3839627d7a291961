"""Files that appear under their names only when they are whole, and never in another one's place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ..errors import FileError
from ..words import shown

LONGEST_NAME = 255  # bytes: of ext4, APFS and NTFS alike, and of most others


def save_new(folder: Path, names: Iterable[str], write: Callable[[BinaryIO], None]) -> Path:
    """Writes a file under the first name that nobody has taken, not even another process in the meantime.

    It is written beside its place under a hidden name first. A program that is killed leaves that one behind at most.

    Args:
        folder: is there.
        names: in the order in which they are tried.
        write: fills the file.

    Raises:
        FileError: it cannot be written, e.g. because the disk is full; nothing is left.
    """
    draft = folder / f".{uuid4().hex}.part"
    name = ""
    try:
        _write(draft, write)
        for name in names:
            if _claim(draft, folder / name):
                return folder / name
    except OSError as error:
        raise FileError(f"{shown(name or 'The file')} cannot be saved: {reason(error)}. {_ADVICE}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    raise FileError(f"{shown(name)} cannot be saved: all of its names are taken.")


def replace_file(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all, in the place of one that is there.

    Raises:
        FileError: it cannot be written.
    """
    draft = path.with_name(f".{uuid4().hex}.part")
    try:
        _write(draft, lambda file: file.write(text.encode("utf-8", "replace")))
        draft.replace(path)
    except OSError as error:
        raise FileError(f"{shown(path.name)} cannot be saved: {reason(error)}. {_ADVICE}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def make_folder(folder: Path, what: str) -> None:
    """Makes a folder where it is missing, and tries that a file can be written there.

    Args:
        folder: where files will be saved.
        what: names it in errors.

    Raises:
        FileError: it cannot be made or written to.
    """
    draft = folder / f".{uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(draft, lambda file: file.write(b"."))
    except OSError as error:
        raise FileError(f"{what} cannot be used: {reason(error)}. {_ADVICE}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """The system's words for what went wrong, without the path."""
    return error.strerror or type(error).__name__


_ADVICE = "Check that the folder is there, that you may write to it, and that the disk has room."


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    # "x": never through a link that somebody put there
    with path.open("xb") as file:
        write(file)
        file.flush()
        # a name must not outlive a power cut that its contents do not
        os.fsync(file.fileno())


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
