"""Collecting reference images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..pipelines.errors import InputError
from ..pipelines.handle import ControlImages
from .shared import CATEGORY, search_words, takes_control_images

if TYPE_CHECKING:
    import torch


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
    SEARCH_ALIASES = search_words("reference image", "ctrl_img", "edit", "control image")

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
            if image.ndim != 4 or image.shape[0] != 1:
                raise InputError(f"{name} holds {image.shape[0]} pictures. Connect one picture to each input.")
        return (ControlImages(tuple(given.values())),)
