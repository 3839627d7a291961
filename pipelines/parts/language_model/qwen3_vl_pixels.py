"""Pictures as Qwen3-VL's vision tower gets them: the arithmetic of AI Toolkit and of transformers' image processor.

Written out with torch alone: transformers' processor needs torchvision, whose resize of a tensor is torch's
interpolation in float32.

Sources: AI Toolkit toolkit/models/base_model.py generate_images (``to_tensor``, the cast), krea2.py _prep_vlm_images
(27a03a91); transformers models/qwen2_vl/image_processing_qwen2_vl.py (5.23.0), whose class Qwen3-VL has.
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

PATCH = 16  # pixels a side
LIMITS = Limits(65536, 16777216)  # of the released preprocessor_config.json
_SHORTEST = 28  # pixels of a side at least
_MEAN = _STD = 0.5  # of the released preprocessor_config.json, for each channel


@dataclass(frozen=True)
class Sight:
    """How pictures are brought to a size before the processor sees them.

    Attributes:
        area: pixels that each has afterwards at most, about.
        rounded: whether their values are rounded to the run's dtype first.
    """

    area: int
    rounded: bool


def patches_of(pictures: Sequence[Picture], sight: Sight, limits: Limits, dtype: torch.dtype, device: str) -> Patches:
    """Pictures as patches, in order.

    Args:
        pictures: at least one; :func:`check_seen` takes their shapes.
        sight: how they are resized.
        limits: of the processor.
        dtype: the run's.
        device: where they are resized.
    """
    resized = (_resized(picture, sight, dtype, device) for picture in pictures)
    return cut([of_whole_tokens(values, limits, PATCH).sub(_MEAN).div(_STD) for values in resized], PATCH)


def check_seen(width: int, height: int, number: int, sight: Sight) -> None:
    """Raises InputError where a picture is too long for the processor; ``number`` counts from 1."""
    rows, columns = target(height, width, sight)
    if max(rows, columns) > LONGEST * min(rows, columns):
        raise InputError(
            f"Control image {number} is {width} x {height}, too long for the text encoder, which takes sides up to "
            f"{LONGEST} to 1. Crop it."
        )


def target(height: int, width: int, sight: Sight) -> tuple[int, int]:
    """Height and width that a picture is brought to: no picture is enlarged but for a side of a few pixels."""
    scale = min(1.0, math.sqrt(sight.area / (height * width)))
    return max(round(height * scale), _SHORTEST), max(round(width * scale), _SHORTEST)


def _resized(picture: Picture, sight: Sight, dtype: torch.dtype, device: str) -> torch.Tensor:
    """float32 [1, 3, h, w] of 0..1."""
    values = picture.pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)[None].to(device)
    values = values.to(dtype).float() if sight.rounded else values
    height, width = values.shape[-2:]
    size = target(height, width, sight)
    if size == (height, width):
        return values
    return functional.interpolate(values, size=size, mode="bicubic", antialias=True).clamp(0, 1)
