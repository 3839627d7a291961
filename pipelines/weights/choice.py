"""What a workflow's names are of. Imports no reader of files: ComfyUI starts with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileError
from .untrusted_names import resolve_name

if TYPE_CHECKING:
    from ..options import Role

DEFAULT = "default"
# ComfyUI's folders: of model folders, and of single files; whole checkpoints and denoisers alone are both `weights`
FOLDERS = ("diffusers",)
WEIGHT_FILES = ("diffusion_models", "checkpoints")
WEIGHTS = (*FOLDERS, *WEIGHT_FILES)
PART_FILES: Mapping[Role, tuple[str, ...]] = {"encoder": ("text_encoders",), "autoencoder": ("vae",)}
INPUTS: Mapping[Role, str] = {"encoder": "text_encoder", "autoencoder": "vae"}  # of the loader's node
Roots = Callable[[str], Sequence[Path]]  # a model kind of ComfyUI -> its folders


@dataclass(frozen=True)
class Choice:
    """What the loader's inputs name.

    Attributes:
        weights: a model folder, a single file, or ``default``: the model's own repository.
        repo_id: another repository of the model; only with ``default``.
        files: role -> a single file with the parts of this role, or ``default``: those of ``weights``.
    """

    weights: str = DEFAULT
    repo_id: str = ""
    files: Mapping[Role, str] = field(default_factory=dict)


def why_refused(name: str, kinds: Sequence[str], what: str, roots: Roots) -> str:
    """The message of a name that cannot be resolved below the folders of model kinds; empty for one that can."""
    try:
        resolve_name(name, folders(kinds, roots), what)
    except FileError as error:
        return str(error)
    return ""


def folders(kinds: Sequence[str], roots: Roots) -> list[Path]:
    """Those of several kinds, in order."""
    return [root for kind in kinds for root in roots(kind)]
