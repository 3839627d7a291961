"""Pictures of the plain host's folders, read and written as ComfyUI's own nodes do it."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..nodes.file_names import numbered, prefix_of
from ..nodes.host import PlainHost, current_host
from ..nodes.save_image import check_pictures
from ..pipelines.errors import FileError, WorkflowError
from ..pipelines.pictures.saving import reason, remove_leftovers, save_new
from ..pipelines.weights.untrusted_names import resolve_name
from ..pipelines.words import shown

if TYPE_CHECKING:
    import numpy
    import torch
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's names
_MOST_PIXELS = 100_000_000  # 1.2 GB as floats


def plain_host() -> PlainHost:
    host = current_host()
    if not isinstance(host, PlainHost):
        raise WorkflowError("The stand-ins of core's nodes run outside ComfyUI only. Use core's own nodes there.")
    return host


def input_name(value: str) -> str:
    """The file's name in the input folder: ComfyUI's page writes ``name [input]`` or plain ``name``.

    Raises:
        FileError: the page wrote another folder behind the name.
    """
    if not isinstance(value, str):
        raise FileError(f"No image is given: {shown(value)} is no name.")
    for folder in ("output", "temp"):
        if value.endswith(f" [{folder}]"):
            raise FileError(
                f"Image {shown(value)} lies in ComfyUI's {folder} folder, and only pictures of the input folder can be "
                "loaded here. Copy it into the input folder and name it without the brackets."
            )
    return value.removesuffix(" [input]")


def _input_picture(name: str) -> Path:
    return resolve_name(input_name(name), [plain_host().input], "image")


def opened(name: str) -> Image.Image:
    """A picture of the input folder, of which only the header is read.

    Raises:
        FileError: it is none, or larger than a picture of this kind can be: a small file may unpack to gigabytes.
    """
    return read_picture(_input_picture(name), name)


def read_picture(file: Path | BinaryIO, name: str) -> Image.Image:
    """The same of any file, or of its bytes; ``name`` is what messages call it."""
    from PIL import Image

    with warnings.catch_warnings():
        # Pillow warns of large pictures; they are refused below
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise FileError(f"Image {shown(name)} is too large: it has more than {_MOST_PIXELS:,} pixels.") from error
        except Exception as error:
            raise _unreadable(name, error) from error
    if picture.width * picture.height > _MOST_PIXELS:
        size = f"{picture.width:,} x {picture.height:,}"
        picture.close()
        raise FileError(f"Image {shown(name)} is too large: {size} pixels, and at most {_MOST_PIXELS:,} are read.")
    return picture


def pixels_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of the input folder as ComfyUI's IMAGE and MASK."""
    import torch
    from PIL import ImageOps

    try:
        with opened(name) as file:
            picture = ImageOps.exif_transpose(file)
            pixels = torch.from_numpy(_rgb(picture))[None]
            if not picture.has_transparency_data:
                return pixels, torch.zeros((1, 64, 64))
            alpha = _unit_floats(picture.convert("RGBA").getchannel("A"))
            return pixels, 1.0 - torch.from_numpy(alpha)[None]
    except FileError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def read_rgb(file: Path | BinaryIO, name: str) -> Image.Image:
    """A picture's colours as they are stored: without alpha, and not turned as EXIF asks.

    Raises:
        FileError: see :func:`opened`; or it is damaged.
    """
    try:
        with read_picture(file, name) as picture:
            return picture.convert("RGB")
    except FileError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> FileError:
    # Pillow's words hold the whole path
    why = reason(error) if isinstance(error, OSError) and error.strerror else "it is damaged, or no picture"
    return FileError(f"Image {shown(name)} cannot be read: {why}. Save it again as PNG or JPEG.")


def _unit_floats(picture: Image.Image, white: float = 255.0) -> numpy.ndarray:
    import numpy

    return numpy.asarray(picture).astype(numpy.float32) / numpy.float32(white)


def _rgb(picture: Image.Image) -> numpy.ndarray:
    """[H, W, 3], float32 in 0..1."""
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        import numpy

        return numpy.repeat(_unit_floats(picture, 65535.0)[..., None], 3, axis=2)
    return _unit_floats(picture.convert("RGB"))


def save(
    images: torch.Tensor, prefix: str, prompt: dict[str, Any] | None, extra: dict[str, Any] | None
) -> list[dict[str, str]]:
    """Writes a batch [B, H, W, C] as PNG files; returns the name and subfolder of each."""
    import numpy
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    host = plain_host()
    check_pictures(images)
    prefix = prefix_of(prefix, prompt, extra)
    target = host.save_target(prefix, width=images.shape[2], height=images.shape[1])
    remove_leftovers(target.folder)
    metadata = PngInfo()
    for key, value in {"prompt": prompt, **(extra or {})}.items():
        if value is not None:
            metadata.add_text(key, json.dumps(value))
    saved: list[dict[str, str]] = []
    for number, image in enumerate(images):
        stem = target.stem.replace("%batch_num%", str(number))
        # Cut off, not rounded, as core does: equal tensors give equal files here and there.
        pixels = numpy.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(numpy.uint8)
        write = partial(Image.fromarray(pixels).save, format="PNG", pnginfo=metadata, compress_level=4)
        path = save_new(target.folder, numbered(stem, target.counter + number, "png"), write)
        saved.append({"filename": path.name, "subfolder": target.subfolder})
    return saved
