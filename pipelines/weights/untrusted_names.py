"""Turns the names that a workflow holds into paths, and never lets one leave the folders it may name.

A shared workflow is untrusted input. Names are relative, ``/``-separated, and resolve (links followed) to something
below one of the given roots. A root itself may be a link: users keep their models on other disks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import FileError
from ..words import shown


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
        raise FileError(f"No {what} is given: {name!r} is no name.")
    if posix.is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root or ".." in posix.parts:
        raise FileError(
            f"{what} {name!r} is refused: a workflow may only name files inside ComfyUI's own folders, "
            "so absolute paths and '..' are not allowed."
        )
    return posix


def resolve_name(name: str, roots: Sequence[Path], what: str) -> Path:
    """Finds ``name`` below the first of ``roots`` that has it.

    Raises:
        FileError: see :func:`check_name`; or nothing of that name is there; or a link leads out of the roots.
    """
    relative = check_name(name, what)
    inside = [real for root in roots if (real := _real(root)) is not None]
    for root in roots:
        path = root / relative
        target = _real(path)
        if target is None:
            continue
        if not any(target.is_relative_to(root) for root in inside):
            raise FileError(
                f"{what} {name!r} is refused: it is a link that leads out of ComfyUI's folders. Add the folder that "
                "really holds it to extra_model_paths.yaml and choose it from there."
            )
        return path
    raise FileError(
        f"{what} {name[:200]!r} is not there. It was looked for below: "
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
    """Files below ``root``, links followed; a folder that was seen already (links can make loops) or that cannot be
    read is skipped, and one that holds ``stop_at`` is not descended from."""
    seen: set[Path] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = _real(folder)
        if real is None or real in seen or not real.is_dir():
            continue
        seen.add(real)
        try:
            entries = list(folder.iterdir())
        except OSError:
            # a disk's lost+found must not take the node away
            continue
        whole = any(entry.name == stop_at for entry in entries)
        for entry in entries:
            target = _real(entry) if entry.is_symlink() else entry
            if target is None or (target is not entry and not target.is_relative_to(root.resolve())):
                # a broken link, or one that resolve_name would refuse
                continue
            if entry.is_dir():
                if not entry.name.startswith(".") and not whole:
                    waiting.append(entry)
            else:
                yield entry


def _real(path: Path) -> Path | None:
    """The path with its links followed; None where nothing is there, links loop, or a name is too long."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
