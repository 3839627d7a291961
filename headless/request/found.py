"""From what a request names to files of the models folder, or beside the request. Imports no torch at the top."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from ...nodes.host import PlainHost
from ...pipelines.errors import AITKError, InputError
from ...pipelines.files import SUFFIXES
from ...pipelines.models import catalogue, find_model
from ...pipelines.weights.choice import DEFAULT, FOLDERS, PART_FILES, WEIGHT_FILES, Choice
from ...pipelines.words import shown

if TYPE_CHECKING:
    from ...pipelines.models.facts import ModelFacts
    from ...pipelines.options import Role
    from .rendering import LoraUse, Rendering

_LORA_SUFFIXES = (".safetensors", ".sft")


@dataclass(frozen=True)
class Found:
    """A request whose files are there.

    Attributes:
        rendering: with the names that a workflow gives them.
        extra: model kind -> a file beside the request, which the host offers as one of that kind.
    """

    rendering: Rendering
    extra: Mapping[str, Path]


def named_file(value: str, where: str, roots: Sequence[Path]) -> Path | None:
    """The file that a request's relative name means, below the first root that has it; None where none has.

    Raises:
        InputError: it is an address of the network, or leads out of the roots.
    """
    if value.lower().startswith(("http://", "https://")):
        raise InputError(f"{where} is an address, and nothing is downloaded. Download it, and write its file's name.")
    parts = PurePosixPath(value.replace("\\", "/"))
    windows = PureWindowsPath(value)
    if parts.is_absolute() or windows.drive or windows.root or ".." in parts.parts:
        raise InputError(
            f"{where} leads out of the folders of this run. Put {shown(parts.name)} below --models or beside the "
            "request, and write its name from there."
        )
    return next((root / parts for root in roots if os.path.isfile(root / parts)), None)


def find_server_files(rendering: Rendering, models: Path, beside: Path, weights: Choice | None) -> Found:
    """The files of a server's request.

    Args:
        rendering: as the body was read.
        models: the models folder.
        beside: the request's folder.
        weights: what the user chose; None looks for a folder of the model.

    Raises:
        InputError: a LoRA is not there, or its name means two files; several folders fit the model.
    """
    host = PlainHost(models, beside, beside)
    (lora,) = rendering.loras
    path = named_file(lora.name, "loras[0].path", [*host.model_roots("loras"), beside])
    if path is None:
        raise InputError(
            f"loras[0].path {shown(lora.name)} is not there. Put it into the folder 'loras' of --models, or beside the "
            "request."
        )
    name, extra = lora.name.replace("\\", "/"), {}
    if not any(path == root / name for root in host.model_roots("loras")):
        name, extra = path.name, {"loras": path}
        if any(os.path.exists(root / name) for root in host.model_roots("loras")):
            raise InputError(
                f"loras[0].path {shown(lora.name)} lies beside the request, and the folder 'loras' of --models has "
                f"another {shown(name)}. Rename one of the two."
            )
    choice = weights or Choice(_folder_of(find_model(rendering.model), host))
    return Found(replace(rendering, loras=(replace(lora, name=name),), weights=choice), extra)


def find_script_files(rendering: Rendering, models: Path) -> Found:
    """The files of a command line, whose paths are another program's: found by their names below the models folder.

    Raises:
        InputError: a file is not there, or several have its name.
    """
    host = PlainHost(models, models, models)
    paths = rendering.weights
    parts: dict[Role, str] = {
        role: _by_name(path, PART_FILES[role], tuple(SUFFIXES), host) for role, path in paths.files.items()
    }
    weights = Choice(_by_name(paths.weights, WEIGHT_FILES, tuple(SUFFIXES), host), files=parts)
    loras = tuple(_lora_by_name(lora, host) for lora in rendering.loras)
    return Found(replace(rendering, weights=weights, loras=loras), {})


def _lora_by_name(lora: LoraUse, host: PlainHost) -> LoraUse:
    return replace(lora, name=_by_name(lora.name, ("loras",), _LORA_SUFFIXES, host))


def _by_name(path: str, kinds: Sequence[str], suffixes: tuple[str, ...], host: PlainHost) -> str:
    """The name below the folders of model kinds that a path of the command line ends in."""
    given = PurePosixPath(path.replace("\\", "/"))
    listed = dict.fromkeys(name for kind in kinds for name in host.model_files(kind, suffixes))
    names = [name for name in listed if PurePosixPath(name).name == given.name]
    # of several, the one whose folders the path has, too
    fitting = [name for name in names if given.as_posix().endswith(f"/{name}")] if len(names) > 1 else names
    if len(fitting) == 1:
        return fitting[0]
    folders = " or ".join(repr(kind) for kind in kinds)
    if names:
        raise InputError(
            f"--sd-scripts: {shown(given.name)} is in --models more than once: {', '.join(map(shown, names[:10]))}. "
            "Rename all but one."
        )
    raise InputError(
        f"--sd-scripts: {shown(given.name)} is not there. Put it into the folder {folders} of --models: files of the "
        "command line are found by their names."
    )


def _folder_of(facts: ModelFacts, host: PlainHost) -> str:
    """The model folder with a model's weights, or ``default``, its repository, where there is none.

    Models of one class are told apart by their folders' names alone: one that is called like another model's
    repository is that one's.

    Raises:
        InputError: several fit.
    """
    from ...pipelines.weights.checkpoint import folder_markers

    listed = [
        name for kind in FOLDERS for marker in folder_markers(facts.files) for name in host.model_folders(kind, marker)
    ]
    others = {_last(other.files.repository) for other in catalogue().values() if other is not facts}
    names = [name for name in dict.fromkeys(listed) if _last(name) not in others and _holds(facts, name, host)]
    own = [name for name in names if _last(name) == _last(facts.files.repository)]
    fitting = own or names
    if len(fitting) > 1:
        raise InputError(
            f"--models has several folders of {facts.title}: {', '.join(map(shown, fitting[:10]))}. Choose one with "
            "--weights."
        )
    return fitting[0] if fitting else DEFAULT


def _last(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _holds(facts: ModelFacts, name: str, host: PlainHost) -> bool:
    """Whether a folder's own configuration says that it is of the model's class; nothing is fetched."""
    from ...pipelines.weights.choose import local_sources

    try:
        main = local_sources(facts.files, Choice(name), host.model_roots).get(facts.files.main)
        return main is not None and main.config().get("_class_name") == facts.files.main_class
    except (AITKError, OSError):
        # a damaged folder is none of this model's as far as can be told; chosen by name, the loader says what is wrong
        return False
