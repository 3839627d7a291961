"""Parts that a training job takes from elsewhere than its base: by a repository's id, or a path of another machine.

A path is looked for by its last name, and only in ComfyUI's folders of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..errors import FileError
from ..files import SUFFIXES
from ..words import shown
from .choice import FOLDERS, PART_FILES, Roots, folders
from .choose import of_role
from .folder import FolderSource
from .hub import fetch_from, is_repository
from .single_file import open_part
from .untrusted_names import resolve_name

if TYPE_CHECKING:
    from ..observer import Observer
    from .part_files import ModelFiles
    from .source import Source

_PARTS_OF_A_HUB_FILE = 3  # owner/name/file


def last_name(path: str) -> str:
    """The last name of a path of any machine."""
    return PurePosixPath(path.replace("\\", "/")).name


def open_elsewhere(
    named: str, part: str, model: ModelFiles, roots: Roots, observer: Observer, *, key: str, alone: bool
) -> Source:
    """A part by what a job's config names.

    Args:
        named: a repository's id, ``owner/name/file``, or the path of a file or a folder.
        part: which.
        model: whose part it is.
        roots: finds ComfyUI's folders.
        observer: told of a download.
        key: of the config, for messages.
        alone: whether the part lies in the root of the repository or folder.

    Raises:
        FileError, HubError: it is not there, or it is no such part.
    """
    role, file = model.parts[part].role, last_name(named)
    if file.lower().endswith(tuple(SUFFIXES)):
        pieces = named.split("/")
        if _has(file, PART_FILES[role], roots):
            return _only(of_role(model, role, file, roots), part, key, named)
        if len(pieces) == _PARTS_OF_A_HUB_FILE and is_repository("/".join(pieces[:2])):
            return fetch_from("/".join(pieces[:2]), part, model, pieces[2], alone=True, observer=observer)
        raise FileError(_gone(key, named, part, f"'{PART_FILES[role][0]}'"))
    if is_repository(named):
        return fetch_from(named, part, model, model.parts[part].file, alone=alone, observer=observer)
    if not _has(file, FOLDERS, roots):
        raise FileError(_gone(key, named, part, f"'{FOLDERS[0]}'"))
    return _in_folder(resolve_name(file, folders(FOLDERS, roots), key), file, part, model, alone=alone)


def _in_folder(folder: Path, name: str, part: str, model: ModelFiles, *, alone: bool) -> Source:
    facts = model.parts[part]
    if facts.file:
        return open_part(folder / facts.file, f"{name}/{facts.file}", part, model)
    return FolderSource.open(folder, name, part, facts, alone=alone)


def _has(name: str, kinds: tuple[str, ...], roots: Roots) -> bool:
    try:
        resolve_name(name, folders(kinds, roots), "file")
    except FileError:
        return False
    return True


def _only(found: Mapping[str, Source], part: str, key: str, named: str) -> Source:
    if part not in found:
        raise FileError(f"model.{key} of the job is {shown(named, 200)}, whose file here holds no {part}.")
    return found[part]


def _gone(key: str, named: str, part: str, where: str) -> str:
    return (
        f"The job takes its {part} from {shown(named, 200)} (model.{key}), which is no repository, and nothing in "
        f"{where} here has that name. Put it there as {shown(last_name(named))}."
    )
