"""Turns the names that a workflow holds into paths, and never lets one leave the folders it may name.

A shared workflow is untrusted input. Names are relative, ``/``-separated and without ``..``: they name something below
one of the given roots. Links are followed wherever they lead, as in ComfyUI: a workflow cannot make one, whoever owns
the folder did, e.g. a tool that shares one store of models between programs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import FileError
from ..words import shown

_MOST_VISITS = 16  # of one folder under several names; links among folders could make names without end


def check_name(name: str, what: str) -> PurePosixPath:
    """Returns ``name`` as a relative path, or says why it cannot be one.

    Args:
        name: what stands in the workflow, with ``/`` or ``\\`` between its parts.
        what: what the name stands for, e.g. ``"LoRA"``; used in the message.

    Raises:
        FileError: the name is empty, absolute, has a drive, or has a ``..`` part.
    """
    if not isinstance(name, str):
        raise FileError(f"No {what} is given: {shown(name)} is no name.")
    posix = PurePosixPath(name.replace("\\", "/"))
    whole = name.encode(errors="replace").decode() == name
    if not name.strip() or "\0" in name or posix.name == "" or not whole:
        raise FileError(f"No {what} is given: {shown(name)} is no name.")
    if posix.is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root or ".." in posix.parts:
        raise FileError(
            f"{what} {shown(name)} is refused: a workflow may only name files inside ComfyUI's own folders, "
            "so absolute paths and '..' are not allowed."
        )
    return posix


def resolve_name(name: str, roots: Sequence[Path], what: str) -> Path:
    """Finds ``name`` below the first of ``roots`` that has it.

    Raises:
        FileError: see :func:`check_name`; or nothing of that name is there.
    """
    relative = check_name(name, what)
    for root in roots:
        path = root / relative
        if _real(path) is not None:
            return path
    raise FileError(
        f"{what} {shown(name, 200)} is not there. It was looked for below: "
        + (", ".join(dict.fromkeys(repr(root.name) for root in roots)) or "no folder (none is configured)")
        + ". Put it there, or choose another one in the node's list."
    )


def list_files(roots: Iterable[Path], suffixes: Sequence[str]) -> list[str]:
    """Relative, ``/``-separated names of the files below ``roots`` whose name ends in one of ``suffixes``, sorted."""
    return sorted(
        {
            path.relative_to(root).as_posix()
            for root in roots
            for path in _walk(root)
            if path.name.lower().endswith(tuple(suffixes))
        }
    )


def list_folders_with(roots: Iterable[Path], marker: str) -> list[str]:
    """Relative, ``/``-separated names of the folders below ``roots`` that hold a file called ``marker``, sorted.

    What lies below such a folder belongs to it and is not looked at.
    """
    return sorted(
        {
            path.parent.relative_to(root).as_posix()
            for root in roots
            for path in _walk(root, marker)
            if path.name == marker and path.parent != root
        }
    )


def _walk(root: Path, stop_at: str = "") -> Iterator[Path]:
    """Files below ``root``, links followed; a folder that lies in itself (links can make loops) or that cannot be read
    is skipped, and one that holds ``stop_at`` is not descended from."""
    visits: Counter[Path] = Counter()
    waiting: list[tuple[Path, frozenset[Path]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        real = _real(folder)
        if real is None or real in above or visits[real] >= _MOST_VISITS or not real.is_dir():
            continue
        visits[real] += 1
        try:
            entries = list(folder.iterdir())
        except OSError:
            # a disk's lost+found must not take the node away
            continue
        whole = any(entry.name == stop_at for entry in entries)
        for entry in entries:
            if entry.is_symlink() and _real(entry) is None:
                # what a broken link named cannot be read
                continue
            if os.path.isdir(entry):  # unlike Path's, it does not fail where a folder may not be searched
                if not entry.name.startswith(".") and not whole:
                    waiting.append((entry, above | {real}))
            else:
                yield entry


def _real(path: Path) -> Path | None:
    """The path with its links followed; None where nothing is there, links loop, or a name is too long."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
