"""Stand-ins for the nodes of ComfyUI's own that workflows of this pack use, so that they run without ComfyUI.

Class ids, inputs and outputs are core's. They read and write through the plain host's folders. Inside ComfyUI they are
not registered: core's own nodes are there.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..nodes.file_names import numbered, prefix_of, why_unusable
from ..nodes.host import PlainHost, current_host
from ..nodes.save_image import check_pictures
from ..pipelines.errors import FileError, WorkflowError
from ..pipelines.pictures.saving import reason, save_new
from ..pipelines.weights.untrusted_names import resolve_name
from ..pipelines.words import shown

if TYPE_CHECKING:
    import numpy
    import torch
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's names
_MOST_PIXELS = 100_000_000  # 1.2 GB as floats
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def _plain_host() -> PlainHost:
    host = current_host()
    if not isinstance(host, PlainHost):
        raise WorkflowError("The stand-ins of core's nodes run outside ComfyUI only. Use core's own nodes there.")
    return host


class LoadImage:
    """A picture of the input folder as IMAGE, float32 in 0..1, [1, H, W, 3], and its transparency as MASK.

    The mask is 1 - alpha, [1, H, W]; for a picture without alpha it is core's: zeros, [1, 64, 64]. Of an animation
    the first frame counts.
    """

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        try:
            there = [path.name for path in _plain_host().input.iterdir()]
        except OSError:
            # a folder that is not there, or not ours to read, has no pictures for us
            there = []
        pictures = sorted(name for name in there if name.lower().endswith(_PICTURES))
        return {"required": {"image": (pictures, {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        try:
            if image is not None:  # None: the name comes over a link
                _opened(image).close()
        except FileError as error:
            return str(error)
        return True

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        import torch
        from PIL import ImageOps

        try:
            with _opened(image) as opened:
                picture = ImageOps.exif_transpose(opened)
                pixels = torch.from_numpy(_rgb(picture))[None]
                if not picture.has_transparency_data:
                    return pixels, torch.zeros((1, 64, 64))
                alpha = _unit_floats(picture.convert("RGBA").getchannel("A"))
                return pixels, 1.0 - torch.from_numpy(alpha)[None]
        except FileError:
            raise
        except Exception as error:
            raise _unreadable(image, error) from error


class SaveImage:
    """Saves pictures as PNG into the output folder, with the workflow in their metadata."""

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return filename_prefix is None or why_unusable(filename_prefix) or True

    def save_images(
        self,
        images: torch.Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        saved = _save(images, filename_prefix, prompt, extra_pnginfo)
        return {"ui": {"images": [{**entry, "type": "output"} for entry in saved]}, "result": (images,)}


class PreviewImage:
    """Writes pictures into the folder ``temp`` of the output folder: there is no page to show them on."""

    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: torch.Tensor,
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        saved = _save(images, "temp/preview", prompt, extra_pnginfo)
        return {"ui": {"images": [{"filename": entry["filename"], "subfolder": "", "type": "temp"} for entry in saved]}}


class PreviewAny:
    """Any value as text."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "main"
    OUTPUT_NODE = True
    CATEGORY = "utilities"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any) -> dict[str, Any]:
        text = _as_text(source)
        return {"ui": {"text": (text,)}, "result": (text,)}


class _Primitive:
    """Passes one value on."""

    RETURN_TYPES: ClassVar[tuple[str, ...]]
    OPTIONS: ClassVar[dict[str, Any]]
    FUNCTION = "execute"
    CATEGORY = "utilities/primitive"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (cls.RETURN_TYPES[0], cls.OPTIONS)}}

    def execute(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveInt(_Primitive):
    RETURN_TYPES = ("INT",)
    OPTIONS: ClassVar[dict[str, Any]] = {"control_after_generate": "fixed"}


class PrimitiveFloat(_Primitive):
    RETURN_TYPES = ("FLOAT",)
    OPTIONS: ClassVar[dict[str, Any]] = {"step": 0.1}


class PrimitiveString(_Primitive):
    RETURN_TYPES = ("STRING",)
    OPTIONS: ClassVar[dict[str, Any]] = {"multiline": False}


class PrimitiveStringMultiline(_Primitive):
    RETURN_TYPES = ("STRING",)
    OPTIONS: ClassVar[dict[str, Any]] = {"multiline": True}


class PrimitiveBoolean(_Primitive):
    RETURN_TYPES = ("BOOLEAN",)
    OPTIONS: ClassVar[dict[str, Any]] = {}


CORE_CLASSES: dict[str, type] = {
    node_class.__name__: node_class
    for node_class in (
        LoadImage,
        SaveImage,
        PreviewImage,
        PreviewAny,
        PrimitiveInt,
        PrimitiveFloat,
        PrimitiveString,
        PrimitiveStringMultiline,
        PrimitiveBoolean,
    )
}

CORE_NAMES: dict[str, str] = {
    "LoadImage": "Load Image",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "PreviewAny": "Preview as Text",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveString": "Text",
    "PrimitiveStringMultiline": "Text (Multiline)",
    "PrimitiveBoolean": "Boolean",
}


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
    return resolve_name(input_name(name), [_plain_host().input], "image")


def _opened(name: str) -> Image.Image:
    """A picture of the input folder, of which only the header is read.

    Raises:
        FileError: it is none, or larger than a picture of this kind can be: a small file may unpack to gigabytes.
    """
    from PIL import Image

    path = _input_picture(name)
    with warnings.catch_warnings():
        # Pillow warns of large pictures; they are refused below
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(path, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise FileError(f"Image {shown(name)} is too large: it has more than {_MOST_PIXELS:,} pixels.") from error
        except Exception as error:
            raise _unreadable(name, error) from error
    if picture.width * picture.height > _MOST_PIXELS:
        size = f"{picture.width:,} x {picture.height:,}"
        picture.close()
        raise FileError(f"Image {shown(name)} is too large: {size} pixels, and at most {_MOST_PIXELS:,} are read.")
    return picture


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


def _save(
    images: torch.Tensor, prefix: str, prompt: dict[str, Any] | None, extra: dict[str, Any] | None
) -> list[dict[str, str]]:
    """Writes a batch [B, H, W, C] as PNG files; returns the name and subfolder of each."""
    import numpy
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    host = _plain_host()
    check_pictures(images)
    prefix = prefix_of(prefix, prompt, extra)
    target = host.save_target(prefix, width=images.shape[2], height=images.shape[1])
    metadata = PngInfo()
    for key, value in {"prompt": prompt, **(extra or {})}.items():
        if value is not None:
            metadata.add_text(key, json.dumps(value))
    saved: list[dict[str, str]] = []
    for number, image in enumerate(images):
        stem = target.stem.replace("%batch_num%", str(number))
        # Cut off, not rounded, as core does: equal tensors give equal files here and there.
        pixels = numpy.clip(255.0 * image.cpu().numpy(), 0, 255).astype(numpy.uint8)
        write = partial(Image.fromarray(pixels).save, format="PNG", pnginfo=metadata, compress_level=4)
        path = save_new(target.folder, numbered(stem, target.counter + number, "png"), write)
        saved.append({"filename": path.name, "subfolder": target.subfolder})
    return saved


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) or value is None:
        return str(value)
    try:
        return json.dumps(value, indent=4)
    except (TypeError, ValueError):
        return str(value)
