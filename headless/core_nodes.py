"""Stand-ins for the nodes of ComfyUI's own that workflows of this pack use, so that they run without ComfyUI.

Class ids, inputs and outputs are core's. They read and write through the plain host's folders. Inside ComfyUI they are
not registered: core's own nodes are there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from ..nodes.file_names import why_unusable
from ..pipelines.errors import FileError
from ..pipelines.words import shown
from .pictures import opened, pixels_of, plain_host, save

if TYPE_CHECKING:
    import torch

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
            there = [path.name for path in plain_host().input.iterdir()]
        except OSError:
            # a folder that is not there, or not ours to read, has no pictures for us
            there = []
        pictures = sorted(name for name in there if name.lower().endswith(_PICTURES))
        return {"required": {"image": (pictures, {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        try:
            if image is not None:  # None: the name comes over a link
                opened(image).close()
        except FileError as error:
            return str(error)
        return True

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels_of(image)


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
        saved = save(images, filename_prefix, prompt, extra_pnginfo)
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
        saved = save(images, "temp/preview", prompt, extra_pnginfo)
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


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) or value is None:
        return shown(value)
    try:
        return json.dumps(value, indent=4)
    except (RecursionError, TypeError, ValueError):
        return str(value)
