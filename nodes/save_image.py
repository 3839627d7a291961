"""Saving pictures with the workflow and the report inside the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from ..pipelines.errors import InputError
from ..pipelines.pictures.saving import remove_leftovers, save_new
from ..pipelines.words import shown
from .file_names import numbered, prefix_of, why_unusable
from .host import current_host
from .shared import CATEGORY, PACK_WORDS, check_texts

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

FORMATS = ("png", "jpg", "webp")
MAX_PNG_SIDE = 2**31 - 1
_LARGEST_SIDE = {"png": MAX_PNG_SIDE, "jpg": 65_500, "webp": 16_383}  # of libjpeg and libwebp
REPORT_KEY = "aitk_report"
# EXIF tags, as ComfyUI writes a workflow into WebP: one "name:JSON" string in each tag from Make (0x010F) downwards
_FIRST_TAG = 0x010F
_NAME = re.compile(r"[\x20-\x7E]{1,79}")
_JPEG_EXIF_LIMIT = 65533 - 6  # bytes: one APP1 segment without its "Exif\0\0"


class AITKSaveImage:
    """Pictures to files."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures to save."}),
            },
            # all the others: workflows know an input by its position, and required ones would come before the report
            "optional": {
                "report": (
                    "STRING",
                    {
                        "forceInput": True,
                        "tooltip": "The sampler's report, to be stored in the file.",
                    },
                ),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": "aitk",
                        "tooltip": "Start of the file name, below the output folder. A / makes a subfolder; %width%, "
                        "%height%, %year%, %month%, %day%, %hour%, %minute%, %second%, %date:yyyy-MM-dd% and "
                        "%Node.input% are filled in.",
                    },
                ),
                "format": (
                    list(FORMATS),
                    {
                        "default": "png",
                        "tooltip": "png keeps every pixel. jpg (quality 75) and webp (quality 80) are encoded as AI "
                        "Toolkit encodes its previews.",
                    },
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY
    DESCRIPTION = "Saves pictures with the workflow and the sampler's report inside."
    SEARCH_ALIASES = ["save image", "export", "output", "jpg", "webp", "metadata", *PACK_WORDS]

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuses a name that no file can have before the pictures are made; a linked one waits."""
        return filename_prefix is None or why_unusable(filename_prefix) or True

    def save(
        self,
        images: torch.Tensor,
        report: str | None = None,
        filename_prefix: str = "aitk",
        format: str = "png",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        from PIL import Image

        if format not in FORMATS:
            raise InputError(f"format {shown(format)} is unknown. Choose one of: {', '.join(FORMATS)}.")
        check_texts({} if report is None else {"report": report})
        check_pictures(images, _LARGEST_SIDE[format])
        host = current_host()
        texts = _texts(report, prompt, extra_pnginfo) if host.metadata_enabled() else {}
        prefix = prefix_of(filename_prefix, prompt, extra_pnginfo)
        target = host.save_target(prefix, images.shape[2], images.shape[1])
        remove_leftovers(target.folder)
        saved = []
        for index, image in enumerate(images):
            pixels = (image.float().cpu() * 255).round().clamp(0, 255).byte().numpy()
            picture = Image.fromarray(pixels)
            if format == "jpg":
                # JPEG has no alpha
                picture = picture.convert("RGB")
            texts_in, left_out = _that_fit(texts, format)
            names = numbered(target.stem, target.counter + index, format)
            path = save_new(target.folder, names, partial(write_image, picture, format, texts_in))
            if left_out:
                host.show_text(unique_id, f"{path.name} {left_out}")
            saved.append({"filename": path.name, "subfolder": target.subfolder, "type": "output"})
        return {"ui": {"images": saved}}


def check_pictures(images: object, largest: int = MAX_PNG_SIDE) -> None:
    """Raises InputError where something is no IMAGE, or one that is too large for its format."""
    import torch

    if not isinstance(images, torch.Tensor):
        raise InputError(f"images is {shown(images)}, no IMAGE. Connect pictures.")
    if images.ndim != 4 or images.shape[3] not in (3, 4) or not images.is_floating_point():
        raise InputError(
            f"images has shape {list(images.shape)} and type {str(images.dtype).removeprefix('torch.')}; pictures are "
            "[batch, height, width, 3 or 4], of floats."
        )
    if 0 in images.shape:
        raise InputError(f"images has shape {list(images.shape)}: there is no picture in it.")
    if max(images.shape[1:3]) > largest:
        size = f"{images.shape[2]:,} x {images.shape[1]:,}"
        raise InputError(f"images is {size} pixels, and the format has at most {largest:,} a side. Save it as png.")


def _texts(report: str | None, prompt: object, extra_pnginfo: Mapping[str, Any] | None) -> dict[str, str]:
    """What goes into the file: the graph in both formats, and the report."""
    parts = {} if prompt is None else {"prompt": prompt}
    # a name that PNG does not take is no workflow's
    parts |= {name: value for name, value in (extra_pnginfo or {}).items() if _NAME.fullmatch(name)}
    texts = {name: text for name, value in parts.items() if (text := _json(value)) is not None}
    if report is not None:
        # a lone half of a character has no bytes, and NUL ends a text
        texts[REPORT_KEY] = report.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    return texts


def _json(value: object) -> str | None:
    """A part of the workflow as text; None where JSON cannot hold it: the picture is worth more than that."""
    try:
        return json.dumps(value)
    except (RecursionError, TypeError, ValueError):
        return None


def write_image(image: Image, format: str, texts: Mapping[str, str], file: BinaryIO) -> None:
    """Writes one picture.

    Pixels are encoded with Pillow's defaults, as AI Toolkit does (``image.save(path)``): JPEG quality 75 with 4:2:0
    chroma, WebP quality 80. Texts go into PNG text chunks, or into EXIF.
    """
    if format == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        image.save(file, "PNG", pnginfo=info)
        return
    data = _exif(texts)
    own = {"jpg": "JPEG", "webp": "WEBP"}[format]
    if data:
        image.save(file, own, exif=data)
    else:
        image.save(file, own)


def _that_fit(texts: Mapping[str, str], format: str) -> tuple[Mapping[str, str], str]:
    """The texts that a file of the format holds, and what the user should know of the others."""
    size = len(_exif(texts)) if format == "jpg" else 0
    if size <= _JPEG_EXIF_LIMIT:
        return texts, ""
    alone = {name: value for name, value in texts.items() if name == REPORT_KEY}
    fits = len(_exif(alone)) <= _JPEG_EXIF_LIMIT
    what = "the workflow" if fits else "the workflow and the report"
    note = (
        f"was saved without {what}: it needs {size:,} bytes, and a JPEG holds {_JPEG_EXIF_LIMIT:,}. Save as png or "
        "webp to keep it."
    )
    return alone if fits else {}, note


def _exif(texts: Mapping[str, str]) -> bytes:
    """``texts`` as EXIF, empty without any."""
    from PIL.Image import Exif

    exif = Exif()
    for tag, (key, value) in zip(range(_FIRST_TAG, 0, -1), texts.items(), strict=False):
        exif[tag] = f"{key}:{_ascii(value)}"
    return exif.tobytes() if texts else b""


def _ascii(text: str) -> str:
    """JSON text with everything beyond ASCII escaped: EXIF strings hold nothing else."""
    return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
