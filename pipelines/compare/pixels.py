"""Pictures to compare: from values or files to uint8 [H, W, 3], and back as the trainer writes them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, InputError
from ..words import shown

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ..jobs.job import Format

    Pixels = NDArray[np.uint8]

# Pillow's names of what a job's sample.format may be
_NAMES: dict[Format, str] = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


@dataclass(frozen=True, eq=False)
class StoredPicture:
    """A picture as a file has it.

    Attributes:
        name: the file's.
        pixels: uint8 [H, W, 3].
        format: by its content, not by its name.
        content: all bytes of the file.
        notes: what the comparison leaves out, a sentence each.
    """

    name: str
    pixels: Pixels
    format: Format
    content: bytes
    notes: tuple[str, ...] = ()


def check_pixels(name: str, pixels: object) -> None:
    """Raises InputError where something is no uint8 [H, W, 3] with a pixel in it; ``name`` is in the message."""
    import numpy as np

    if not isinstance(pixels, np.ndarray):
        raise InputError(f"{name} is {shown(pixels)}, no picture. Give an array of uint8 [height, width, 3].")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(
            f"{name} has shape {list(pixels.shape)} and type {pixels.dtype}; a picture is [height, width, 3] of uint8. "
            "Convert it first."
        )


def batch_pixels(name: str, images: object) -> tuple[list[Pixels], tuple[str, ...]]:
    """ComfyUI's IMAGE as pictures, and what was left out of them.

    Args:
        name: of the input, for messages.
        images: [B, H, W, 3] of 0..1, or 4 where transparency comes along. Rounded to levels, half to even.

    Raises:
        InputError: it is no IMAGE, holds no picture, or NaN or Inf.
    """
    import torch

    if not isinstance(images, torch.Tensor):
        raise InputError(f"{name} is {shown(images)}, no IMAGE. Connect pictures.")
    shape = list(images.shape)
    if images.ndim != 4 or shape[3] not in (3, 4) or not images.is_floating_point():
        raise InputError(
            f"{name} has shape {shape} and type {str(images.dtype).removeprefix('torch.')}; pictures are [batch, "
            "height, width, 3 or 4], of floats. Connect an IMAGE."
        )
    if 0 in shape:
        raise InputError(f"{name} has shape {shape}: there is no picture in it. Connect pictures.")
    pictures = []
    for index, image in enumerate(images):
        if not bool(torch.isfinite(image).all()):
            raise InputError(f"Picture {index + 1} of {name} holds NaN or Inf: what made it failed. Render it again.")
        pictures.append(_levels(image[..., :3]))
    notes = (f"the transparency of {name} is not compared",) if shape[3] == 4 else ()
    return pictures, notes


def _levels(image: torch.Tensor) -> Pixels:
    return (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()


def read_picture(path: Path) -> StoredPicture:
    """A picture's file, read once.

    Raises:
        FileError: it cannot be read, is no PNG, JPEG or WebP picture, or is an animation.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{shown(path.name)} cannot be read: {error.strerror or type(error).__name__}.") from error
    return decoded(path.name, content)


def encoded(pixels: Pixels, format: Format) -> bytes:
    """A picture as AI Toolkit writes it: ``image.save(path)`` of its ``GenerateImageConfig``, with Pillow's defaults.

    Args:
        pixels: uint8 [H, W, 3].
        format: the job's ``sample.format``; JPEG then has quality 75 and 4:2:0 chroma, WebP quality 80.

    Raises:
        InputError: the picture is too large for its format.
    """
    from PIL import Image

    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).save(buffer, _NAMES[format])
    except (OSError, ValueError) as error:
        size = f"{pixels.shape[1]:,} x {pixels.shape[0]:,}"
        raise InputError(f"A picture of {size} pixels cannot be written as {format}: {error}. Choose png.") from error
    return buffer.getvalue()


def as_stored(pixels: Pixels, format: Format) -> StoredPicture:
    """Our picture after it went through a file of the trainer's format; see :func:`encoded`."""
    content = encoded(pixels, format)
    if format == "png":
        return StoredPicture("ours", pixels, format, content)
    return decoded("ours", content)


def decoded(name: str, content: bytes) -> StoredPicture:
    """A picture of a file's bytes; ``name`` is in messages. Raises FileError as :func:`read_picture`."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            format = _format(name, image)
            transparent = "A" in image.getbands() or "transparency" in image.info
            # a plain convert drops transparency and keeps the colours as they are stored
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise FileError(f"{shown(name)} is no picture that Pillow can read. Is it whole?") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f"{shown(name)} cannot be decoded: {error}. Is it whole?") from error
    notes = (f"the transparency of {name} is not compared",) if transparent else ()
    return StoredPicture(name, pixels, format, content, notes)


def _format(name: str, image: Image) -> Format:
    found: Any = image.format
    for format, known in _NAMES.items():
        if found == known:
            if getattr(image, "n_frames", 1) > 1:
                raise FileError(f"{shown(name)} is an animation; only still previews are compared.")
            return format
    raise FileError(f"{shown(name)} is a {shown(found)} picture. AI Toolkit's previews are png, jpg or webp.")
