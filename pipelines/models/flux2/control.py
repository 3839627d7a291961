"""FLUX.2's reference images: to tokens behind the picture's own.

Source: AI Toolkit extensions_built_in/diffusion_models/flux2/src/sampling.py, encode_image_refs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from ...errors import InputError
from .tokens import DOWNSCALE, image_ids, tokens_of

if TYPE_CHECKING:
    from ...parts.flux2_vae.network import Flux2AutoEncoder

_MOST_PIXELS = 1024**2
_SMALLEST_SIDE = 64
_LARGEST_RATIO = 8
_POSITION = 10  # of the first reference on the first axis, and from one to the next


class ControlTokens(NamedTuple):
    """``tokens``: bfloat16 [1, tokens, C]; ``ids``: int64 [1, tokens, 4]."""

    tokens: torch.Tensor
    ids: torch.Tensor


def check_size(width: int, height: int, number: int) -> None:
    """Raises InputError where a reference image is too small or too long; ``number`` counts from 1."""
    if min(width, height) < _SMALLEST_SIDE:
        raise InputError(
            f"Control image {number} is {width} x {height}: FLUX.2 needs {_SMALLEST_SIDE} pixels a side. Scale it up."
        )
    if max(width, height) > _LARGEST_RATIO * min(width, height):
        raise InputError(
            f"Control image {number} is {width} x {height}: FLUX.2 takes sides up to {_LARGEST_RATIO} to 1. Crop it."
        )


def prepared(image: torch.Tensor) -> torch.Tensor:
    """A picture as the autoencoder gets it.

    Above 1024 * 1024 pixels it is scaled down with LANCZOS, then its middle is cut to multiples of 16.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        float32 [3, H', W'], -1..1.
    """
    picture = Image.fromarray(image.numpy())
    pixels = picture.width * picture.height
    if pixels > _MOST_PIXELS:
        scale = math.sqrt(_MOST_PIXELS / pixels)
        size = (int(picture.width * scale), int(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    width, height = (side // DOWNSCALE * DOWNSCALE for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    picture = picture.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).to(torch.float32) / 255 * 2 - 1


def encode(vae: Flux2AutoEncoder, images: Sequence[torch.Tensor], dtype: torch.dtype, device: str) -> ControlTokens:
    """The tokens of pictures uint8 [H, W, 3], in order; AI Toolkit rounds them to bfloat16 whatever the run is in."""
    tokens, ids = [], []
    for index, image in enumerate(images):
        latents = vae.encode(prepared(image)[None].to(device, dtype))
        tokens.append(tokens_of(latents))
        ids.append(image_ids(latents.shape[2], latents.shape[3], _POSITION * (index + 1)).to(device))
    return ControlTokens(torch.cat(tokens, dim=1).to(torch.bfloat16), torch.cat(ids, dim=1))
