"""A second file that a single file needs, beside it: llama.cpp keeps a vision tower in a GGUF file of its own.

Which file belongs to which is told by their names, as ComfyUI-GGUF does (loader.py, gguf_mmproj_loader): it lies in the
same folder, and its name has ``mmproj`` in it, and the first one's name, but for what that says of its quantisation.
Where several fit, ComfyUI-GGUF takes one of them; here the user decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileError
from ..files import read_header
from ..words import shown

if TYPE_CHECKING:
    from ..files.header import Header

_WORD, _ENDING = "mmproj", ".gguf"
# ComfyUI-GGUF's; and what it leaves: a dot in front, and files that are not quantised
_QUANTISED = re.compile(r"[-_]?(?:ud-)?i?q[0-9]_[a-z0-9_\-]{1,8}$")
_DTYPE = re.compile(r"[-_.]*(?:(?:ud-)?i?q[0-9]_[a-z0-9_\-]{1,8}|b?f16|fp16|f32|fp32)?[-_.]*$")
_MOST_NAMED = 4


@dataclass(frozen=True)
class Beside:
    """What a second file has to be.

    Attributes:
        lacks: a single file's header -> whether the part needs one more file.
        projector: what it calls itself, ``clip.projector_type``.
        title: whose it is, for people.
    """

    lacks: Callable[[Header], bool]
    projector: str
    title: str


def beside(path: Path, name: str, wanted: Beside) -> Path | None:
    """The file that belongs to another; None where none is there.

    Args:
        path: the other, without which it is of no use.
        name: how messages call that.
        wanted: what it has to be.

    Raises:
        FileError: several could be it, or the one that could is another model's; or it is damaged.
    """
    found = _fitting(path)
    if len(found) > 1:
        raise FileError(
            f"{name!r} needs the vision tower that belongs to it, and {len(found)} files beside it could be that: "
            f"{_named(found)}. Keep one of them there, and move the others to another folder."
        )
    if not found:
        return None
    metadata = read_header(found[0]).metadata
    kind = metadata.get("clip.vision.projector_type") or metadata.get("clip.projector_type") or wanted.projector
    if kind != wanted.projector:
        raise FileError(
            f"{found[0].name!r} beside {name!r} is no vision tower of {wanted.title}: its projector is "
            f"{shown(kind, 60)}, and {wanted.projector!r} is needed. Put the one of {wanted.title} in its place."
        )
    return found[0]


def how_to_put(path: Path, title: str) -> str:
    """What to do where a file lacks its second one; closes a sentence, without a full stop."""
    others = _mmprojs(path)
    example = f"{_short(path.stem, _DTYPE, lower=False)}-{_WORD}-F16{_ENDING}"
    told = f"Put that of {title} into the same folder, called like {example!r}"
    if not others:
        return told
    return f"{told} ({_named(others)} there has a name that does not say whose it is)"


def _fitting(path: Path) -> list[Path]:
    """Those whose names say that they belong to a file: by ComfyUI-GGUF's rule, or else by a wider one."""
    candidates = _mmprojs(path)
    for pattern in (_QUANTISED, _DTYPE):
        own = _short(path.stem, pattern)
        found = [other for other in candidates if own in other.stem.lower()]
        if found:
            return found
    return []


def _mmprojs(path: Path) -> list[Path]:
    try:
        entries = sorted(path.parent.iterdir())
    except OSError as error:
        raise FileError(f"The folder of {path.name!r} cannot be read: {error.strerror}.") from error
    return [
        entry
        for entry in entries
        if entry.suffix.lower() == _ENDING and _WORD in entry.stem.lower() and entry != path and entry.is_file()
    ]


def _short(stem: str, pattern: re.Pattern[str], *, lower: bool = True) -> str:
    """A name without what it says of the quantisation."""
    match = pattern.search(stem.lower())
    cut = stem if match is None else stem[: match.start()]
    return cut.lower() if lower else cut


def _named(files: list[Path]) -> str:
    more = len(files) - _MOST_NAMED
    names = ", ".join(repr(file.name) for file in files[:_MOST_NAMED])
    return names + (f" and {more} more" if more > 0 else "")
