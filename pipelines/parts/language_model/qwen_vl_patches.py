"""What the processors of Qwen2.5-VL and Qwen3-VL have in common: a picture of whole tokens, cut into patches.

Source: transformers models/qwen2_vl/image_processing_qwen2_vl.py (5.23.0), whose class both models have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

MERGED, FRAMES = 2, 2  # patches a side of a token; frames that a patch is repeated for
LONGEST = 200  # the processor's limit of a picture's sides to each other


@dataclass(frozen=True)
class Limits:
    """How many pixels the processor leaves a picture, at the least and at the most."""

    least: int
    most: int


class Patches(NamedTuple):
    """What the tower gets.

    Attributes:
        values: float32 [patches, channels * frames * height * width], of all pictures one after the other.
        grids: int64 [pictures, 3]: frames, rows and columns of patches.
    """

    values: torch.Tensor
    grids: torch.Tensor

    @property
    def tokens(self) -> list[int]:
        """How many tokens each picture is."""
        return (self.grids.prod(-1) // MERGED**2).tolist()


def cut(pictures: Sequence[torch.Tensor], patch: int) -> Patches:
    """Normalised pictures as patches, in order.

    Args:
        pictures: float32 [1, C, h, w] each, of whole tokens.
        patch: pixels a side.
    """
    grids = [[1, image.shape[-2] // patch, image.shape[-1] // patch] for image in pictures]
    values = torch.cat([_patches(image[0], patch) for image in pictures])
    return Patches(values, torch.tensor(grids, device=values.device))


def of_whole_tokens(values: torch.Tensor, limits: Limits, patch: int) -> torch.Tensor:
    """[1, C, h, w] brought to :func:`processed_size` in float32, in its own dtype."""
    height, width = values.shape[-2:]
    size = processed_size(height, width, limits, patch)
    if size == (height, width):
        return values
    resized = functional.interpolate(values.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.to(values.dtype)


def processed_size(height: int, width: int, limits: Limits, patch: int) -> tuple[int, int]:
    """Height and width that the processor brings a picture to: whole tokens, within its limits."""
    step = patch * MERGED
    rows, columns = round(height / step) * step, round(width / step) * step
    if rows * columns > limits.most:
        shrink = math.sqrt(height * width / limits.most)
        rows, columns = (max(step, math.floor(side / shrink / step) * step) for side in (height, width))
    elif rows * columns < limits.least:
        grow = math.sqrt(limits.least / (height * width))
        rows, columns = (math.ceil(side * grow / step) * step for side in (height, width))
    return rows, columns


def _patches(image: torch.Tensor, patch: int) -> torch.Tensor:
    """[C, h, w] -> [patches, C * frames * patch * patch]: the patches of a token one after the other, in two frames."""
    tokens = image.unflatten(2, (-1, MERGED, patch)).unflatten(1, (-1, MERGED, patch))
    # rows and columns of tokens, rows and columns of patches in one, C, and the pixels of a patch
    blocks = tokens.permute(1, 4, 2, 5, 0, 3, 6)
    # a picture is a film of frames that are alike
    frames = blocks.unsqueeze(5).expand(-1, -1, -1, -1, -1, FRAMES, -1, -1)
    return frames.reshape(blocks.shape[:4].numel(), -1)
