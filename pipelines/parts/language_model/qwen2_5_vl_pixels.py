"""Pictures as Qwen2.5-VL's vision tower gets them: the arithmetic of AI Toolkit and of transformers' image processor.

Written out with torch alone: transformers' processor needs torchvision, whose resize of a tensor is torch's
interpolation in float32, cast back.

A picture comes as values of 0 to 1, and the processor divides by 255 once more, as it does with bytes. So the tower
sees a picture that is nearly black. AI Toolkit trains and previews with that, and a LoRA expects it.

Sources: AI Toolkit toolkit/models/base_model.py generate_images (``to_tensor``, the cast), qwen_image_edit.py
get_prompt_embeds (27a03a91); transformers models/qwen2_vl/image_processing_qwen2_vl.py and
image_processing_backends.py rescale_and_normalize (5.23.0); torchvision transforms/v2/functional/_geometry.py
resize_image (0.28.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ...errors import InputError
from .qwen_vl_patches import LONGEST, Limits, Patches, cut, of_whole_tokens

if TYPE_CHECKING:
    from ...pictures.picture import Picture

PATCH = 14  # pixels a side
LIMITS = Limits(3136, 12845056)  # of the released preprocessor_config.json
_STEP = 32  # pixels, to which AI Toolkit rounds the sides
_LEVELS = 255.0
# CLIP's, of the released preprocessor_config.json
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sight:
    """How pictures are brought to a size before the processor sees them.

    Attributes:
        area: pixels that each has afterwards, about.
        times: how often: what is resized already is resized once more, which changes some sizes.
        swapped: whether width and height of the target change places.
    """

    area: int
    times: int = 1
    swapped: bool = False


def patches_of(pictures: Sequence[Picture], sight: Sight, limits: Limits, dtype: torch.dtype, device: str) -> Patches:
    """Pictures as patches, in order.

    Args:
        pictures: at least one; :func:`check_seen` takes their shapes.
        sight: how they are resized.
        limits: of the processor.
        dtype: the run's, in which they are resized.
        device: where.
    """
    resized = (_resized(picture, sight, dtype, device) for picture in pictures)
    return cut([_normalised(of_whole_tokens(values, limits, PATCH)) for values in resized], PATCH)


def check_seen(width: int, height: int, number: int, sight: Sight) -> None:
    """Raises InputError where a picture is too long for the processor; ``number`` counts from 1."""
    rows, columns = target(height, width, sight)
    if min(rows, columns) == 0 or max(rows, columns) > LONGEST * min(rows, columns):
        raise InputError(
            f"Control image {number} is {width} x {height}, too long for the text encoder, which would see it at "
            f"{columns} x {rows}. Crop it."
        )


def target(height: int, width: int, sight: Sight) -> tuple[int, int]:
    """Height and width that a picture is brought to: multiples of 32, halves rounded to even."""
    ratio = height / width
    first = math.sqrt(sight.area * ratio)
    second = first / ratio
    rounded = round(first / _STEP) * _STEP, round(second / _STEP) * _STEP
    return (rounded[1], rounded[0]) if sight.swapped else rounded


def _resized(picture: Picture, sight: Sight, dtype: torch.dtype, device: str) -> torch.Tensor:
    """[1, 3, h, w] of 0..1 in the run's dtype."""
    values = picture.pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)[None].to(device, dtype)
    for _ in range(sight.times):
        _, _, height, width = values.shape
        # no antialiasing
        values = functional.interpolate(values, size=target(height, width, sight), mode="bilinear")
    return values


def _normalised(values: torch.Tensor) -> torch.Tensor:
    """Divided by 255, CLIP's mean subtracted, and divided by its deviation, in one and in float32."""
    mean, std = (torch.tensor(own, device=values.device).view(-1, 1, 1) * _LEVELS for own in (_MEAN, _STD))
    return values.to(torch.float32).sub(mean).div(std)
