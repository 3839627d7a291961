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
from .qwen2_5_vl_pixels import FRAMES, MERGED, Limits, Patches

if TYPE_CHECKING:
    from ...pictures.picture import Picture

PATCH = 16  # pixels a side
LIMITS = Limits(65536, 16777216)  # of the released preprocessor_config.json
_STEP = PATCH * MERGED
_SHORTEST = 28  # pixels of a side at least
_LONGEST = 200  # the processor's limit of a picture's sides to each other
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
    seen = [_processed(_resized(picture, sight, dtype, device), limits).sub(_MEAN).div(_STD) for picture in pictures]
    grids = [[1, image.shape[-2] // PATCH, image.shape[-1] // PATCH] for image in seen]
    return Patches(torch.cat([_cut(image) for image in seen]), torch.tensor(grids, device=device))


def check_seen(width: int, height: int, number: int, sight: Sight) -> None:
    """Raises InputError where a picture is too long for the processor; ``number`` counts from 1."""
    rows, columns = target(height, width, sight)
    if max(rows, columns) > _LONGEST * min(rows, columns):
        raise InputError(
            f"Control image {number} is {width} x {height}, too long for the text encoder, which takes sides up to "
            f"{_LONGEST} to 1. Crop it."
        )


def target(height: int, width: int, sight: Sight) -> tuple[int, int]:
    """Height and width that a picture is brought to: no picture is enlarged but for a side of a few pixels."""
    scale = min(1.0, math.sqrt(sight.area / (height * width)))
    return max(round(height * scale), _SHORTEST), max(round(width * scale), _SHORTEST)


def processed_size(height: int, width: int, limits: Limits) -> tuple[int, int]:
    """Height and width that the processor brings a picture to: whole tokens, within its limits."""
    rows, columns = round(height / _STEP) * _STEP, round(width / _STEP) * _STEP
    if rows * columns > limits.most:
        shrink = math.sqrt(height * width / limits.most)
        rows, columns = (max(_STEP, math.floor(side / shrink / _STEP) * _STEP) for side in (height, width))
    elif rows * columns < limits.least:
        grow = math.sqrt(limits.least / (height * width))
        rows, columns = (math.ceil(side * grow / _STEP) * _STEP for side in (height, width))
    return rows, columns


def _resized(picture: Picture, sight: Sight, dtype: torch.dtype, device: str) -> torch.Tensor:
    """float32 [1, 3, h, w] of 0..1."""
    values = picture.pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)[None].to(device)
    values = values.to(dtype).float() if sight.rounded else values
    height, width = values.shape[-2:]
    size = target(height, width, sight)
    if size == (height, width):
        return values
    return functional.interpolate(values, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def _processed(values: torch.Tensor, limits: Limits) -> torch.Tensor:
    height, width = values.shape[-2:]
    size = processed_size(height, width, limits)
    if size == (height, width):
        return values
    return functional.interpolate(values, size=size, mode="bicubic", align_corners=False, antialias=True)


def _cut(values: torch.Tensor) -> torch.Tensor:
    """[1, C, h, w] -> [patches, C * frames * 16 * 16]: the patches of a token one after the other, in two frames."""
    image = values[0].unflatten(2, (-1, MERGED, PATCH)).unflatten(1, (-1, MERGED, PATCH))
    # rows and columns of tokens, rows and columns of patches in one, C, and the pixels of a patch
    blocks = image.permute(1, 4, 2, 5, 0, 3, 6)
    # a picture is a film of frames that are alike
    frames = blocks.unsqueeze(5).expand(-1, -1, -1, -1, -1, FRAMES, -1, -1)
    return frames.reshape(blocks.shape[:4].numel(), -1)
