"""Collecting reference images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pipelines.errors import InputError
from ..pipelines.handle import ControlImages
from ..pipelines.words import shown
from .shared import CATEGORY, search_words, takes_control_images

if TYPE_CHECKING:
    import torch

_ALPHA = "the transparency of {} is left out, as AI Toolkit does: colours are taken as they are stored"


class AITKControlImages:
    """Up to three pictures to one ordered value."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "Reference image {}, AI Toolkit's ctrl_img_{}. Their order matters."
        return {
            "required": {},
            "optional": {f"image_{n}": ("IMAGE", {"tooltip": tooltip.format(n, n)}) for n in (1, 2, 3)},
        }

    RETURN_TYPES = ("AITK_CONTROL",)
    RETURN_NAMES = ("control",)
    OUTPUT_TOOLTIPS = ("For the sampler's control input.",)
    FUNCTION = "collect"
    CATEGORY = CATEGORY
    DESCRIPTION = "Reference images for models that edit or combine pictures, in order. " + takes_control_images()
    SEARCH_ALIASES = search_words("reference image", "ctrl_img", "image edit", "control image")

    def collect(
        self,
        image_1: torch.Tensor | None = None,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
    ) -> tuple[ControlImages]:
        images = {"image_1": image_1, "image_2": image_2, "image_3": image_3}
        given = {name: image for name, image in images.items() if image is not None}
        if not given:
            raise InputError("No image is connected. Connect at least one, or remove AITK Control Images.")
        for name, image in given.items():
            _check(name, image)
        notes = [_ALPHA.format(name) for name, image in given.items() if image.shape[3] in (2, 4)]
        return (ControlImages(tuple(map(_rgb, given.values())), tuple(notes)),)


def _check(name: str, image: object) -> None:
    """Refuses what is no picture, or more than one."""
    import torch

    if not isinstance(image, torch.Tensor):
        raise InputError(f"{name} is {shown(image)}, no IMAGE. Connect a picture.")
    shape = list(image.shape)
    if image.ndim != 4 or image.shape[3] not in (1, 2, 3, 4) or not image.is_floating_point():
        raise InputError(
            f"{name} is no picture: its values have the shape {shape}, and a picture's are [1, height, width, 3]. "
            "Connect an IMAGE; Convert Mask to Image makes one of a mask."
        )
    if image.shape[0] != 1:
        raise InputError(f"{name} holds {image.shape[0]} pictures. Connect one picture to each input.")
    if 0 in image.shape:
        raise InputError(f"{name} is {shape[2]} x {shape[1]} pixels: there is no picture in it.")
    if not bool(torch.isfinite(image).all()):
        raise InputError(f"{name} holds NaN or Inf: what made it failed.")


def _rgb(image: torch.Tensor) -> torch.Tensor:
    """The picture as Pillow's ``convert("RGB")`` makes it, which AI Toolkit calls: without alpha, grey three times."""
    return image[..., :3] if image.shape[3] >= 3 else image[..., :1].expand(-1, -1, -1, 3)
