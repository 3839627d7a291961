"""Saving pictures with the workflow and the report inside the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import InputError
from .host import current_host
from .shared import CATEGORY

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL.Image import Image

FORMATS = ("png", "jpg", "webp")
REPORT_KEY = "aitk_report"
# EXIF tags, as ComfyUI writes a workflow into WebP: one "name:JSON" string in each tag from Make (0x010F) downwards
_FIRST_TAG = 0x010F
_JPEG_EXIF_LIMIT = 65533 - 6  # bytes: one APP1 segment without its "Exif\0\0"


class AITKSaveImage:
    """Pictures to files."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures to save."}),
                "report": (
                    "STRING",
                    {"forceInput": True, "tooltip": "The sampler's report; it is stored in the file."},
                ),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": "aitk",
                        "tooltip": "Start of the file name, below the output folder. A / makes a subfolder; %width%, "
                        "%height%, %year%, %month%, %day%, %hour%, %minute% and %second% are filled in.",
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
    SEARCH_ALIASES = ["save image", "export", "output", "jpg", "webp", "metadata"]

    def save(
        self,
        images: torch.Tensor,
        report: str,
        filename_prefix: str = "aitk",
        format: str = "png",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        from PIL import Image

        if format not in FORMATS:
            raise InputError(f"format {format!r} is unknown. Choose one of: {', '.join(FORMATS)}.")
        if images.ndim != 4 or images.shape[3] not in (3, 4):
            raise InputError(f"images has shape {list(images.shape)}; pictures are [batch, height, width, 3 or 4].")
        host = current_host()
        texts: dict[str, str] = {}
        if host.metadata_enabled():
            if prompt is not None:
                texts["prompt"] = json.dumps(prompt)
            texts |= {name: json.dumps(value) for name, value in (extra_pnginfo or {}).items()}
            texts[REPORT_KEY] = report
        target = host.save_target(filename_prefix, images.shape[2], images.shape[1])
        saved = []
        for index, image in enumerate(images):
            name = f"{target.stem}_{target.counter + index:05}_.{format}"
            pixels = (image.float().cpu() * 255).round().clamp(0, 255).byte().numpy()
            picture = Image.fromarray(pixels)
            if format == "jpg":
                # JPEG has no alpha
                picture = picture.convert("RGB")
            left_out = write_image(picture, target.folder / name, format, texts)
            if left_out:
                host.show_text(unique_id, left_out)
            saved.append({"filename": name, "subfolder": target.subfolder, "type": "output"})
        return {"ui": {"images": saved}}


def write_image(image: Image, path: Path, format: str, texts: dict[str, str]) -> str:
    """Writes one picture; returns what the user should know about its metadata, or an empty string.

    Pixels are encoded with Pillow's defaults, as AI Toolkit does (``image.save(path)``): JPEG quality 75 with 4:2:0
    chroma, WebP quality 80. Texts go into PNG text chunks, or into EXIF.
    """
    if format == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        image.save(path, pnginfo=info)
        return ""
    data = _exif(texts)
    note = ""
    if format == "jpg" and len(data) > _JPEG_EXIF_LIMIT:
        note = (
            f"{path.name} was saved without the workflow: it needs {len(data):,} bytes, and a JPEG holds "
            f"{_JPEG_EXIF_LIMIT:,}. Save as png or webp to keep it."
        )
        data = _exif({REPORT_KEY: texts[REPORT_KEY]})
        if len(data) > _JPEG_EXIF_LIMIT:
            data = b""
            note = note.replace("the workflow", "the workflow and the report")
    if data:
        image.save(path, exif=data)
    else:
        image.save(path)
    return note


def _exif(texts: dict[str, str]) -> bytes:
    """``texts`` as EXIF, empty without any."""
    from PIL.Image import Exif

    exif = Exif()
    for tag, (key, value) in zip(range(_FIRST_TAG, 0, -1), texts.items(), strict=False):
        exif[tag] = f"{key}:{_ascii(value)}"
    return exif.tobytes() if texts else b""


def _ascii(text: str) -> str:
    """JSON text with everything beyond ASCII escaped: EXIF strings hold nothing else."""
    return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
