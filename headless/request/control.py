"""Control images of a request as PNG files, with the pixels that the server would take of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from ...pipelines.errors import FileError, InputError
from ...pipelines.pictures.saving import make_folder, replace_file
from ...pipelines.words import shown
from ..pictures import read_rgb
from .found import named_file

FOLDER = "control_images"
_DATA = "data:"


def stage(value: str, where: str, roots: Sequence[Path], folder: Path) -> str:
    """Writes one control image into a folder, and returns its name there, which equal pictures share.

    Args:
        value: a file's name below one of ``roots``, or the picture itself in base64, alone or as a data URL.
        where: the field, for messages.
        roots: where files may lie.
        folder: is made.

    Raises:
        InputError: it is an address, leads out of the roots, or is no picture.
    """
    source = BytesIO(_decoded(value, where)) if _is_base64(value) else _file(value, where, roots)
    try:
        # as the server reads one
        picture = read_rgb(source, where)
    except FileError as error:
        raise InputError(str(error)) from error
    raw = BytesIO()
    picture.save(raw, "PNG")
    content = raw.getvalue()
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.png"
    make_folder(folder, shown(folder.name))
    replace_file(folder / name, content)
    return name


def _is_base64(value: str) -> bool:
    # base64 has no dot, and a picture's name has one
    return value.startswith(_DATA) or ("." not in value and "://" not in value)


def _decoded(value: str, where: str) -> bytes:
    text = value.partition(",")[2] if value.startswith(_DATA) else value
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where} is neither a picture's file name nor base64: {error}. Encode it again.") from error


def _file(value: str, where: str, roots: Sequence[Path]) -> Path:
    path = named_file(value, where, roots)
    if path is None:
        raise InputError(f"{where} {shown(value)} is not there. Put it beside the request.")
    return path
