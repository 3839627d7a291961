"""Where all parts of a model lie.

A :class:`Checkpoint` is a frozen value that is made without reading any weights. It is part of the pipeline handle, so
that a folder whose files were replaced is another checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FileError
from .files.header import FileStamp
from .sources.folder import FolderSource
from .sources.source import Source, fingerprint

if TYPE_CHECKING:
    from .models.facts import ModelFacts

MODEL_INDEX = "model_index.json"


@dataclass(frozen=True)
class Checkpoint:
    """The sources of a model's parts.

    Attributes:
        name: how it is shown: a hub id with its commit, a folder, or a file. Never an absolute path.
        sources: one for each part, in the order of the model's facts.
    """

    name: str
    sources: tuple[Source, ...]

    @classmethod
    def open(cls, folder: Path, name: str, model: ModelFacts) -> Checkpoint:
        """Looks at a diffusers folder without reading weights.

        Args:
            folder: a folder with ``model_index.json``.
            name: how it is shown.
            model: what should be in it.

        Raises:
            FileError: the folder, its index, a component or a weight file is missing.
        """
        if not (folder / MODEL_INDEX).is_file():
            raise FileError(f"{name!r} is no diffusers model folder: it has no {MODEL_INDEX}.")
        missing = [component for component in model.components if not (folder / component).is_dir()]
        if missing:
            raise FileError(
                f"{name!r} is incomplete: it has no folder {', '.join(missing)}. "
                "Download the whole repository, not only the transformer."
            )
        return cls(
            name,
            tuple(
                FolderSource.open(folder, name, part, tuple(facts.companions), facts.strip)
                for part, facts in model.parts.items()
            ),
        )

    @classmethod
    def assemble(cls, name: str, found: Mapping[str, Source], model: ModelFacts) -> Checkpoint:
        """A checkpoint of parts from several places.

        Args:
            name: how the whole is shown: as the source of the transformer.
            found: part -> source.
            model: whose parts these are.

        Raises:
            FileError: a part is missing.
        """
        missing = [part for part in model.parts if part not in found]
        if missing:
            own = [part for part, source in found.items() if source.name == name]
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
