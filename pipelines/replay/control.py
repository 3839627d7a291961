"""A sample's control images by the paths that its job has, found where a job may name files and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from ..errors import FileError
from ..handle import ControlImages
from ..words import shown

if TYPE_CHECKING:
    import torch

MOST_PIXELS = 1 << 28  # of a picture: what no preview's reference comes near


@dataclass(frozen=True)
class ControlFolders:
    """The two folders whose pictures a job may name.

    Attributes:
        job: the job's.
        input: ComfyUI's.
    """

    job: Path
    input: Path


def open_control_images(paths: Sequence[str], folders: ControlFolders) -> ControlImages | None:
    """Reads a sample's control images in its order; None for a sample without any.

    A job's paths are of the trainer's machine. Each is looked for as it is, then by what follows the job's folder in
    it, then by its file's name; a link that leads out of both folders is not followed.

    Raises:
        FileError: one is in neither folder, or is no picture.
    """
    if not paths:
        return None
    found = [find_control_image(path, folders) for path in paths]
    notes = tuple(
        f"control image {shown(path)} was taken from {file.name!r} of the {where}"
        for path, (file, where, as_named) in zip(paths, found, strict=True)
        if not as_named
    )
    return ControlImages(tuple(_read(file) for file, _, _ in found), notes)


def find_control_image(path: str, folders: ControlFolders) -> tuple[Path, str, bool]:
    """A picture's file, in words which folder it is in, and whether it has the name that the job gives it.

    Raises:
        FileError: it is in neither folder.
    """
    for name, as_named in _names(path, folders.job.name):
        for root, where in ((folders.job, "job's folder"), (folders.input, "input folder")):
            try:
                file = (root / name).resolve(strict=True)
                inside = file.is_relative_to(root.resolve()) and file.is_file()
            except (OSError, RuntimeError, ValueError):
                continue
            if inside:
                return file, where, as_named
    raise FileError(
        f"Control image {shown(path, 200)} is neither in the job's folder nor in ComfyUI's input folder. Copy it there."
    )


def _names(path: str, job: str) -> Iterator[tuple[Path, bool]]:
    """The names under which a picture is looked for, and whether the job itself has that one."""
    windows = "\\" in path or bool(PureWindowsPath(path).drive)
    parts = (PureWindowsPath(path) if windows else PurePosixPath(path)).parts
    if not parts:
        return
    yield Path(path), True
    if job in parts:
        yield Path(*parts[parts.index(job) + 1 :]), True
    yield Path(parts[-1]), False


def _read(file: Path) -> torch.Tensor:
    """A picture as AI Toolkit opens it: ``convert("RGB")``, without turning it by its EXIF. [1, H, W, 3], 0..1."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise FileError(f"Control image {shown(file.name)} is too large: {picture.width} x {picture.height}.")
            pixels = np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileError(
            f"Control image {shown(file.name)} cannot be read: it is no picture, or it is damaged. Copy it again."
        ) from error
    return torch.from_numpy(pixels)[None].float() / 255
