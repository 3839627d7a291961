"""Where all parts of a model lie.

A :class:`Checkpoint` is a frozen value that is made without reading any weights. It is part of the pipeline handle, so
that a folder whose files were replaced is another checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from .folder import FolderSource
from .single_file import open_part
from .source import Source, fingerprint

if TYPE_CHECKING:
    from ..files.header import FileStamp
    from .part_files import ModelFiles, PartFiles

MODEL_INDEX = "model_index.json"  # of diffusers' layout


@dataclass(frozen=True)
class Checkpoint:
    """The sources of a model's parts.

    Attributes:
        name: how it is shown: a hub id with its commit, a folder, or a file. Never an absolute path.
        sources: one for each part, in the order of the model's files.
    """

    name: str
    sources: tuple[Source, ...]

    @classmethod
    def open(cls, folder: Path, name: str, model: ModelFiles) -> Checkpoint:
        """Looks at a folder that holds a whole model, without reading weights; see :func:`parts_in`.

        Raises:
            FileError: the folder, its index, a component or a weight file is missing.
        """
        return cls.assemble(name, parts_in(folder, name, model), model)

    @classmethod
    def assemble(cls, name: str, found: Mapping[str, Source], model: ModelFiles) -> Checkpoint:
        """A checkpoint of parts from several places.

        Args:
            name: how the whole is shown: as the source of its main part.
            found: part -> source.
            model: whose parts these are.

        Raises:
            FileError: a part is missing.
        """
        missing = [part for part in model.parts if part not in found]
        if missing:
            own = [part for part, source in found.items() if source.name.startswith(name)]
            raise FileError(
                f"{name!r} holds only the {' and the '.join(own)} of {model.title}. Choose a file for "
                f"{' and '.join(missing)} on Load AITK Model too."
            )
        return cls(name, tuple(found[part] for part in model.parts))

    def source(self, part: str) -> Source:
        """Where a part lies."""
        return next(source for source in self.sources if source.component == part)

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration; raises FileError where it is missing or no JSON object."""
        return self.source(part).config()

    @property
    def files(self) -> tuple[FileStamp, ...]:
        """Every file of every part."""
        return tuple(dict.fromkeys(stamp for source in self.sources for stamp in source.files))

    def fingerprint(self) -> str:
        """16 hex digits that tell these weights from others."""
        return fingerprint(self.sources)


def parts_in(folder: Path, name: str, model: ModelFiles, given: Collection[str] = ()) -> dict[str, Source]:
    """Part -> source, for every part that a model folder holds: AI Toolkit's files first, then diffusers' subfolders.

    Parts that AI Toolkit takes from a repository of their own may be missing; any other is an error.

    Args:
        folder: a folder with ``model_index.json`` or with AI Toolkit's files.
        name: how it is shown.
        model: what should be in it.
        given: parts that come from elsewhere and are not looked for.

    Raises:
        FileError: it is no such folder, or a part or its companion is missing.
    """
    markers = folder_markers(model)
    main = folder / (model.parts[model.main].folder or model.main) / "config.json"
    # some repositories hold the main part's folder alone, without an index
    known = any(path.is_file() for path in (*(folder / marker for marker in markers), main))
    if not known and not _own_file(folder, model.parts[model.main]):
        raise FileError(f"{name!r} is no model folder of {model.title}: it has no {' and no '.join(markers)}.")
    found: dict[str, Source] = {}
    missing: list[str] = []
    for part, facts in model.parts.items():
        if part in given:
            continue
        file = _own_file(folder, facts)
        if file:
            found[part] = open_part(folder / file, f"{name}/{file}", part, model)
            continue
        absent = [sub for sub in (facts.folder or part, *facts.companions) if not (folder / sub).is_dir()]
        if not absent:
            found[part] = FolderSource.open(folder, name, part, facts)
        elif facts.repository is None:
            missing += absent
    if missing:
        raise FileError(
            f"{name!r} is incomplete: it has no folder {', '.join(missing)}. "
            "Download the whole repository, not only the transformer."
        )
    return found


def _own_file(folder: Path, facts: PartFiles) -> str:
    """The name of AI Toolkit's file of a part in a folder's root; empty where there is none."""
    if facts.file and (folder / facts.file).is_file():
        return facts.file
    alone = [path.name for path in folder.glob("*.safetensors")] if facts.lone_file else []
    return alone[0] if len(alone) == 1 else ""


def folder_markers(model: ModelFiles) -> tuple[str, ...]:
    """Files, any of which makes a folder one of this model's."""
    main = model.parts[model.main].file
    return (MODEL_INDEX, main) if main else (MODEL_INDEX,)
