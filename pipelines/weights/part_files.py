"""Where the parts of a model can come from, as data that the models state. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..options import Role
    from .layout import SingleFiles


@dataclass(frozen=True)
class Repository:
    """A Hugging Face repository, or a folder of one, that holds a part or a tokenizer alone.

    Attributes:
        id: ``owner/name``.
        patterns: of the files that are needed.
        folder: where in it a tokenizer is; empty is its root.
        whole: whether it has diffusers' layout, with a subfolder for the part; else the part lies in its root.
    """

    id: str
    patterns: tuple[str, ...]
    folder: str = ""
    whole: bool = False


def _as_it_is(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config)


@dataclass(frozen=True)
class PartFiles:
    """Where a part of a model can come from.

    Attributes:
        role: what the part does.
        files: what files of it look like.
        folder: its subfolder of the diffusers layout; empty where that is called like the part.
        companions: subfolders that it needs beside its own; the first of a text encoder is its tokenizer's.
        config: a folder's ``config.json`` -> the configuration in the keys of the part's class.
        file: the file that AI Toolkit reads instead, in the root of a folder or repository; empty where there is none.
        lone_file: whether the only safetensors file in a folder's root is that file, whatever it is called.
        repository: where AI Toolkit takes the part from, whatever the weights hold besides.
        tokenizer: where the tokenizer of a single file comes from that has none inside.
        comfy_file: what ComfyUI's users call its single file, for tooltips.
    """

    role: Role
    files: SingleFiles
    folder: str = ""
    companions: tuple[str, ...] = ()
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = _as_it_is
    file: str = ""
    lone_file: bool = False
    repository: Repository | None = None
    tokenizer: Repository | None = None
    comfy_file: str = ""


@dataclass(frozen=True)
class ModelFiles:
    """Where a whole model can come from.

    Attributes:
        title: of the model, for people.
        parts: part -> where it can come from.
        main: the part that a checkpoint is called after, and that no other model has.
        repository: the model's own Hugging Face repository, ``owner/name``.
        main_class: ``_class_name`` in the main part's configuration; tells one model's folder from another's.
    """

    title: str
    parts: Mapping[str, PartFiles]
    main: str
    repository: str
    main_class: str

    def of_role(self, role: Role) -> tuple[str, ...]:
        """The parts of a role, in order."""
        return tuple(part for part, files in self.parts.items() if files.role == role)
